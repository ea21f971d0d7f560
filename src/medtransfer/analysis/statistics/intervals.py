"""Intervals of a mean over cases and seeds, both random and crossed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from medtransfer.analysis.statistics.case_values import BOUNDS

Floats = NDArray[np.float64]
Over = Literal["cases and seeds", "cases", "seeds", "nothing"]

ALPHA = 0.05
# Below this a standard error is rounding, not spread.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean, its confidence interval, and the two-sided p of the mean being zero.

    `over` names the sources of error that the interval covers; with "nothing" (one value, or none
    defined) every number but the estimate is NaN. `df` is Satterthwaite's degrees of freedom.
    """

    estimate: float
    lo: float
    hi: float
    p: float
    df: float
    se: float
    over: Over


def two_way_interval(
    values: ArrayLike, groups: ArrayLike | None = None, level: float = 1 - ALPHA
) -> Interval:
    """Return the interval of a mean over cases and seeds, both random and crossed.

    Every seed's model sees the same cases, so neither may be counted as n x m independent values.
    var(mean) = (MS_case + MS_seed - MS_error) / (n m) with Satterthwaite (1946) degrees of
    freedom. A negative estimate of a variance component counts as zero, which keeps the variance
    positive and errs on the wide side.

    Args:
        values: Shape (cases, seeds). With one seed the interval is over cases only, with one case
            over seeds only.
        groups: Patient of each case, shape (cases,). Cases of a patient are not independent: their
            deviations are summed, and patients take the place of cases (Obuchowski 1997). The mean
            stays the mean over cases.
        level: Coverage, in (0, 1).
    """
    matrix = np.asarray(values, dtype=np.float64)
    if groups is not None and matrix.size:
        matrix = _group_totals(matrix, np.asarray(groups))
    n, m = matrix.shape
    estimate = float(matrix.mean()) if matrix.size else np.nan
    variance, df = np.nan, np.nan
    over: Over = "nothing"
    if np.isfinite(estimate) and matrix.size > 1:
        if n > 1 and m > 1:
            (variance, df), over = _crossed(matrix), "cases and seeds"
        else:
            variance, df = float(matrix.var(ddof=1)) / matrix.size, matrix.size - 1.0
            over = "cases" if n > 1 else "seeds"
    se = float(np.sqrt(variance))
    if se <= _NO_SPREAD:
        p = 1.0 if abs(estimate) <= _NO_SPREAD else 0.0
        return Interval(estimate, estimate, estimate, p, df, 0.0, over)
    half = float(stats.t.ppf((1 + level) / 2, df)) * se
    p = float(2 * stats.t.sf(abs(estimate) / se, df))
    return Interval(estimate, estimate - half, estimate + half, p, df, se, over)


def within_bounds(interval: Interval, metric: str) -> tuple[float, float]:
    """Return the ends of a mean's interval, kept inside what the metric can be.

    Near a bound a symmetric interval both leaves the range and covers too rarely (an AUROC of 0.99
    on 60 cases and 5 seeds: 84 % instead of 95 %). It is therefore built on the logit scale by the
    delta method, as is usual for an AUROC (Pepe 2003): 94 % in the same simulation.
    """
    if metric not in BOUNDS:
        return interval.lo, interval.hi
    low, high = BOUNDS[metric]
    share = (interval.estimate - low) / (high - low)
    if not 0 < share < 1 or not interval.hi > interval.lo:
        return max(interval.lo, low), min(interval.hi, high)
    half = (interval.hi - interval.lo) / 2 / (high - low) / (share * (1 - share))
    ends = special.expit(special.logit(share) + np.array([-half, half]))
    return float(low + (high - low) * ends[0]), float(low + (high - low) * ends[1])


def _crossed(matrix: Floats) -> tuple[float, float]:
    """Return the variance of the grand mean and its degrees of freedom."""
    n, m = matrix.shape
    mean = matrix.mean()
    by_case = matrix.mean(axis=1, keepdims=True)
    by_seed = matrix.mean(axis=0, keepdims=True)
    case = float(m * ((by_case - mean) ** 2).sum() / (n - 1))
    seed = float(n * ((by_seed - mean) ** 2).sum() / (m - 1))
    error = float(((matrix - by_case - by_seed + mean) ** 2).sum() / ((n - 1) * (m - 1)))
    total = max(case, error) + max(seed, error) - error
    spread = case**2 / (n - 1) + seed**2 / (m - 1) + error**2 / ((n - 1) * (m - 1))
    df = total**2 / spread if spread > 0 else min(n, m) - 1.0
    return total / (n * m), df


def _group_totals(matrix: Floats, groups: NDArray[np.generic]) -> Floats:
    """Return shape (groups, seeds); each column keeps its mean over cases."""
    names, member = np.unique(groups, return_inverse=True)
    # Totals of deviations, not of values: a patient with many images is not a better patient.
    mean: Floats = matrix.mean(axis=0)
    totals = np.zeros((len(names), matrix.shape[1]))
    np.add.at(totals, member, matrix - mean)
    return mean + totals * (len(names) / len(matrix))

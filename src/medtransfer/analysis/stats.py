"""Per-case values of a metric, intervals over cases and seeds, corrections and verdicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from medtransfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Floats = NDArray[np.float64]
Over = Literal["cases and seeds", "cases", "seeds", "nothing"]
Verdict = Literal["better", "worse", "equivalent", "undecided"]

LOWER_IS_BETTER = frozenset({"brier", "nll", "ece", "loss", "hd95", "count_error"})
# What a metric can be; one not listed has no bounds.
BOUNDS = {
    "brier": (0.0, 2.0),
    **dict.fromkeys(("accuracy", "auroc", "balanced_accuracy"), (0.0, 1.0)),
    **dict.fromkeys(("dice", "jaccard", "nsd", "map", "ap50", "ap75", "froc"), (0.0, 1.0)),
}
ALPHA = 0.05
# Below this a standard error is rounding, not spread.
_NO_SPREAD = 1e-12


def case_values(metric: str, target: ArrayLike, scores: ArrayLike) -> Floats:
    """Return one value per case whose mean is the metric.

    The values of `auroc` and `balanced_accuracy` are pseudo-values: deviations from the mean of
    the case's own class, scaled so that `variance(ddof=1) / n` is the variance of the metric given
    the class sizes. For `auroc` that is exactly the variance of DeLong et al. (1988), and for the
    difference of two sets of values DeLong's variance of the difference of two correlated areas.

    Args:
        metric: One of `CASE_METRICS`.
        target: Class indices, shape (n,).
        scores: Probabilities in class order, shape (n, k); the last column is the positive class
            where k <= 2.

    Returns:
        Values, shape (n,); all NaN where the metric is undefined, as AUROC is on a single class.
        `brier` follows scikit-learn: in [0, 1] for two classes, in [0, 2] for more.
    """
    if metric not in CASE_METRICS:
        raise ConfigError(
            f"metric '{metric}' has no values per case", value=metric, choices=CASE_METRICS
        )
    return _CASE_VALUES[metric](np.asarray(target), np.asarray(scores, dtype=np.float64))


def _accuracy(target: NDArray[np.int_], scores: Floats) -> Floats:
    return np.asarray(scores.argmax(axis=1) == target, dtype=np.float64)


def _balanced_accuracy(target: NDArray[np.int_], scores: Floats) -> Floats:
    hit = _accuracy(target, scores)
    classes = np.unique(target)
    recalls = [hit[target == each].mean() for each in classes]
    estimate = float(np.mean(recalls)) if recalls else np.nan
    return estimate + _deviations(hit, target) / max(len(classes), 1)


def _auroc(target: NDArray[np.int_], scores: Floats) -> Floats:
    if scores.shape[1] <= 2:
        return _binary_auroc(target == scores.shape[1] - 1, scores[:, -1])
    # A class without cases has no area; the mean is over those that have.
    areas = [_binary_auroc(target == c, scores[:, c]) for c in np.unique(target)]
    return np.asarray(np.mean(areas, axis=0)) if areas else np.empty(0)


def _binary_auroc(positive: NDArray[np.bool_], score: Floats) -> Floats:
    """Placement values from midranks in O(n log n), Sun & Xu (2014)."""
    n_positive = int(positive.sum())
    n_negative = positive.size - n_positive
    if not n_positive or not n_negative:
        return np.full(positive.size, np.nan)
    rank = stats.rankdata(score)
    placement = np.empty(positive.size)
    placement[positive] = (rank[positive] - stats.rankdata(score[positive])) / n_negative
    placement[~positive] = 1 - (rank[~positive] - stats.rankdata(score[~positive])) / n_positive
    return float(placement[positive].mean()) + _deviations(placement, positive)


def _brier(target: NDArray[np.int_], scores: Floats) -> Floats:
    k = scores.shape[1]
    error: Floats = np.square(scores - (target[:, None] == np.arange(k)))
    return error[:, -1] if k <= 2 else error.sum(axis=1)


def _deviations(values: Floats, strata: NDArray[np.generic]) -> Floats:
    """Deviations from the stratum's mean; `variance(ddof=1) / n` is the sum over strata of theirs.

    Class sizes are a fact about the test set, not a source of error: without centring within
    classes a classifier that is always right would have an uncertain balanced accuracy.
    """
    n = values.size
    deviations = np.zeros(n)
    for stratum in np.unique(strata):
        members = strata == stratum
        size = int(members.sum())
        if size > 1:
            scale = np.sqrt(n * (n - 1) / (size * (size - 1)))
            deviations[members] = scale * (values[members] - values[members].mean())
    return deviations


_CASE_VALUES: Mapping[str, Callable[[NDArray[np.int_], Floats], Floats]] = {
    "accuracy": _accuracy,
    "auroc": _auroc,
    "balanced_accuracy": _balanced_accuracy,
    "brier": _brier,
}
CASE_METRICS = tuple(_CASE_VALUES)


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


def holm(p: ArrayLike) -> Floats:
    """Return Holm's (1979) adjusted p-values; a NaN is no test and stays NaN."""
    raw = np.asarray(p, dtype=np.float64)
    adjusted = np.full(raw.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(raw))
    order = tested[np.argsort(raw[tested])]
    steps = raw[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def verdict(lo: float, hi: float, rope: float, *, p_adj: float = 0.0) -> Verdict:
    """Return what the interval of a gain (positive is good) says.

    The region of practical equivalence comes first: an interval inside [-rope, rope] is
    `equivalent` even where it excludes 0, for a difference that small does not matter. Then an
    interval that excludes 0 is `better` or `worse`, if `p_adj`, corrected for the other
    comparisons, agrees. An interval without width inside the region comes from data that did not
    vary, such as two perfect arms on an easy test set; that is `undecided`, not equivalence.
    """
    if not np.isfinite([lo, hi]).all():
        return "undecided"
    if -rope <= lo and hi <= rope:
        return "equivalent" if hi > lo else "undecided"
    if lo <= 0 <= hi or not p_adj < ALPHA:
        return "undecided"
    return "better" if lo > 0 else "worse"

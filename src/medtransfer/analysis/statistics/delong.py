"""DeLong's comparison of two correlated areas under the ROC curve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medtransfer.analysis.statistics.case_values import case_values
from medtransfer.analysis.statistics.intervals import ALPHA

Floats = NDArray[np.float64]
# Below this a standard error is rounding, not spread.
_NO_SPREAD = 1e-12


@dataclass(frozen=True)
class DeLong:
    """Two areas on the same cases.

    Attributes:
        areas: Of the first and the second score, in [0, 1].
        covariance: Of the areas, shape (2, 2).
        difference: First minus second.
        lo: Lower end of the difference's interval.
        hi: Upper end.
        p: Two-sided, of no difference.
    """

    areas: tuple[float, float]
    covariance: Floats
    difference: float
    lo: float
    hi: float
    p: float


def delong(
    target: ArrayLike, score_a: ArrayLike, score_b: ArrayLike, level: float = 1 - ALPHA
) -> DeLong:
    """Compare two models on the same cases (DeLong et al. 1988).

    It is about this one pair of models: other seeds would give others, and of that it knows
    nothing. `two_way_interval` does.

    Args:
        target: 1 for positive cases, 0 for negative ones, shape (n,).
        score_a: Higher for more suspect cases, shape (n,); only the order counts.
        score_b: The same of the other model.
        level: Coverage, in (0, 1).

    Returns:
        NaN throughout where the cases are all of one class, or a score is NaN.
    """
    positive = (np.asarray(target) == 1).astype(np.int64)
    scores = [np.asarray(score, dtype=np.float64) for score in (score_a, score_b)]
    # The mean of these values is the area, and the variance of the mean is DeLong's.
    values = np.stack([case_values("auroc", positive, np.column_stack([-s, s])) for s in scores])
    n = values.shape[1]
    if not n or not np.isfinite(values).all():
        covariance = np.full((2, 2), np.nan)
        return DeLong((np.nan, np.nan), covariance, np.nan, np.nan, np.nan, np.nan)
    areas = values.mean(axis=1)
    covariance = np.cov(values) / n
    difference = float(areas[0] - areas[1])
    se = float((values[0] - values[1]).std(ddof=1) / np.sqrt(n))
    if se <= _NO_SPREAD:
        se, p = 0.0, float(abs(difference) <= _NO_SPREAD)
    else:
        p = float(2 * stats.norm.sf(abs(difference) / se))
    half = float(stats.norm.ppf((1 + level) / 2)) * se
    both = (float(areas[0]), float(areas[1]))
    return DeLong(both, covariance, difference, difference - half, difference + half, p)

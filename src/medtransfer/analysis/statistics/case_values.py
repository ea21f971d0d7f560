"""One value per case whose mean is a metric; what a metric can be, and which way it is better."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medtransfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Floats = NDArray[np.float64]

LOWER_IS_BETTER = frozenset({"brier", "nll", "ece", "loss", "hd95", "count_error"})
# What a metric can be; one not listed has no bounds.
BOUNDS = {
    "brier": (0.0, 2.0),
    **dict.fromkeys(("accuracy", "auroc", "balanced_accuracy"), (0.0, 1.0)),
    **dict.fromkeys(("dice", "jaccard", "nsd", "map", "ap50", "ap75", "froc"), (0.0, 1.0)),
}


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

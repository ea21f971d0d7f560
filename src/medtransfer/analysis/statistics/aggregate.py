"""One figure over datasets and seeds: interquartile mean and probability of improvement."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medtransfer.analysis.statistics.bootstrap import DRAWS, Resampled
from medtransfer.analysis.statistics.intervals import ALPHA

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CUT = 0.25  # of the scores, at each end


def iqm(
    scores: ArrayLike, rng: np.random.Generator, *, level: float = 1 - ALPHA, draws: int = DRAWS
) -> Resampled:
    """Return the interquartile mean of an arm's scores and its interval (Agarwal et al. 2021).

    The mean of the middle half of all scores: one odd seed moves it less than the mean, and it
    wastes less than the median. At each end a quarter of the scores is left out, rounded down:
    of three none, of five one. The interval is a percentile bootstrap over seeds, drawn anew
    within each dataset: the datasets are those that there are. It is too narrow for few seeds and
    few datasets.

    Args:
        scores: Of one metric, shape (datasets, seeds).
        rng: Draws the seeds.
        level: Nominal coverage, in (0, 1).
        draws: Number of resamples.

    Returns:
        NaN throughout where a score is missing: left out, it would favour who failed.
    """
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    if not table.size or not np.isfinite(table).all():
        return _undefined()
    seeds = rng.integers(table.shape[1], size=(draws, *table.shape))
    resampled = np.take_along_axis(table[None], seeds, axis=2).reshape(draws, -1)
    found = np.asarray(stats.trim_mean(resampled, _CUT, axis=1))
    return _percentiles(float(stats.trim_mean(table, _CUT, axis=None)), found, table.shape, level)


def probability_of_improvement(
    a: ArrayLike,
    b: ArrayLike,
    rng: np.random.Generator,
    *,
    level: float = 1 - ALPHA,
    draws: int = DRAWS,
) -> Resampled:
    """Return how likely a seed of `a` scores higher than one of `b`, and the interval.

    The Mann-Whitney statistic of each dataset, in [0, 1] with ties as one half, averaged over
    datasets (Agarwal et al. 2021). It says how often, not by how much. Seeds are drawn as for
    `iqm`, those of `a` and `b` on their own.

    Args:
        a: Scores, shape (datasets, seeds of a); negated where lower is better.
        b: Scores on the same datasets, shape (datasets, seeds of b).
        rng: Draws the seeds.
        level: Nominal coverage, in (0, 1).
        draws: Number of resamples.

    Returns:
        NaN throughout where a score is missing.

    Raises:
        ValueError: `a` and `b` have not as many datasets.
    """
    first, second = (np.atleast_2d(np.asarray(each, dtype=np.float64)) for each in (a, b))
    if len(first) != len(second):
        raise ValueError(f"scores on {len(first)} and on {len(second)} datasets cannot be compared")
    if not first.size or not np.isfinite(first).all() or not np.isfinite(second).all():
        return _undefined()
    wins = (np.sign(first[:, :, None] - second[:, None, :]) + 1) / 2
    times = [_times(table, rng, draws) for table in (first, second)]
    found = np.einsum("kdi,dij,kdj->k", times[0], wins, times[1], optimize=True) / wins.size
    # two arms of one seed each leave nothing to draw
    shape = (len(wins), max(wins.shape[1:]))
    return _percentiles(float(wins.mean()), found, shape, level)


def _times(table: Floats, rng: np.random.Generator, draws: int) -> Ints:
    """Return how often each seed is in each draw, shape (draws, datasets, seeds)."""
    datasets, seeds = table.shape
    return rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=(draws, datasets))


def _percentiles(estimate: float, found: Floats, shape: tuple[int, ...], level: float) -> Resampled:
    if shape[1] < 2:
        return Resampled(estimate, np.nan, np.nan, np.nan, "nothing", 0)
    lo, hi = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    se = float(found.std(ddof=1))
    return Resampled(estimate, float(lo), float(hi), se, "seeds", len(found))


def _undefined() -> Resampled:
    return Resampled(np.nan, np.nan, np.nan, np.nan, "nothing", 0)

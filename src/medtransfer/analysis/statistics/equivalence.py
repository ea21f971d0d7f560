"""Whether a difference is too small to matter: two one-sided tests, and posterior shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

if TYPE_CHECKING:
    from medtransfer.analysis.statistics.intervals import Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RopeShares:
    """Posterior probabilities of a difference; they sum to 1.

    Attributes:
        left: Below -rope.
        inside: Within [-rope, rope], the region of practical equivalence.
        right: Above rope.
    """

    left: float
    inside: float
    right: float


def tost(interval: Interval, rope: float) -> float:
    """Return p of the difference lying outside of [-rope, rope] (Schuirmann 1987).

    The greater of two one-sided p-values. Below alpha it says equivalence, as does the interval of
    level 1 - 2 alpha inside the region; `verdict` asks the 95 % interval, and thereby p < 0.025.

    Args:
        interval: Of the difference.
        rope: Half the width of the region of practical equivalence, in units of the metric.

    Returns:
        NaN where the interval has no width: values that did not vary are no evidence.
    """
    if not interval.se > 0:
        return np.nan
    above = stats.t.sf((interval.estimate + rope) / interval.se, interval.df)
    below = stats.t.cdf((interval.estimate - rope) / interval.se, interval.df)
    return float(max(above, below))


def rope_probabilities(interval: Interval, rope: float) -> RopeShares:
    """Return the shares of Student's t about the estimate, the posterior under a flat prior.

    Of an interval by `corrected_resampled_t` that is the Bayesian correlated t-test (Benavoli et
    al. 2017, JMLR 18(77)).

    Args:
        interval: Of the difference.
        rope: Half the width of the region of practical equivalence, in units of the metric.

    Returns:
        NaN where the interval has no width.
    """
    if not interval.se > 0:
        return RopeShares(np.nan, np.nan, np.nan)
    left = float(stats.t.cdf((-rope - interval.estimate) / interval.se, interval.df))
    right = float(stats.t.sf((rope - interval.estimate) / interval.se, interval.df))
    return RopeShares(left, max(0.0, 1 - left - right), right)


def signed_rank_probabilities(
    differences: ArrayLike,
    rope: float,
    rng: np.random.Generator,
    *,
    prior: float = 0.5,
    draws: int = 20_000,
) -> RopeShares:
    """Return the shares of the Bayesian signed-rank test over datasets (Benavoli et al. 2014).

    A Dirichlet process over differences: each draw weighs them, and the means of all pairs of them
    fall left of, inside or right of the region. The shares say how often each weighs most; equal
    weights share a draw.

    Args:
        differences: One a dataset, shape (n,).
        rope: Half the width of the region of practical equivalence, in units of the metric.
        rng: Draws the weights.
        prior: Weight of one further difference of zero, in datasets.
        draws: Number of draws.

    Returns:
        NaN without differences, or where one is NaN.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        return RopeShares(np.nan, np.nan, np.nan)
    values = np.append(0.0, values)
    means = (values[:, None] + values) / 2
    weights = rng.dirichlet(np.append(prior, np.ones(len(values) - 1)), draws)
    # on the border of the region a pair counts half for either side
    left, right = np.heaviside(-means - rope, 0.5), np.heaviside(means - rope, 0.5)
    inside = 1 - left - right
    shares = np.stack([((weights @ side) * weights).sum(axis=1) for side in (left, inside, right)])
    most = shares == shares.max(axis=0)
    probabilities = (most / most.sum(axis=0)).mean(axis=1)
    return RopeShares(*(float(each) for each in probabilities))

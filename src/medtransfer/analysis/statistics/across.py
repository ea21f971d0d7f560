"""Arms over several datasets: ranks, and tests against one declared baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medtransfer.analysis.statistics.intervals import ALPHA
from medtransfer.analysis.statistics.verdicts import holm
from medtransfer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """Arms over datasets, each dataset one value an arm (Demsar 2006).

    Attributes:
        arms: Their names, in the order of the columns.
        baseline: The arm that the others are tested against.
        complete: Datasets that have a value of every arm, shape (datasets,); no other counts.
        rank: Mean over datasets, 1 for the best, shape (arms,); equal scores share a rank.
        difference: Mean of arm - baseline in units of the metric, shape (arms,).
        p: Two-sided, of Wilcoxon's signed-rank test against the baseline, shape (arms,); NaN for
            the baseline.
        p_adj: The same, corrected by Holm.
        friedman: p of all arms ranking alike; NaN below three arms or two datasets.
        critical_difference: Nemenyi's: mean ranks that lie closer cannot be told apart. With few
            datasets it is so wide that it describes rather than tests.
    """

    arms: tuple[str, ...]
    baseline: str
    complete: NDArray[np.bool_]
    rank: Floats
    difference: Floats
    p: Floats
    p_adj: Floats
    friedman: float
    critical_difference: float


def across_datasets(
    scores: ArrayLike,
    arms: Sequence[str],
    baseline: str,
    *,
    lower_is_better: bool = False,
    alpha: float = ALPHA,
) -> Ranking:
    """Rank arms over datasets and test each against the baseline.

    Args:
        scores: Shape (datasets, arms); NaN where an arm has none.
        arms: Names of the columns.
        baseline: One of them.
        lower_is_better: Whether the least score ranks first.
        alpha: Of the critical difference, in (0, 1).

    Raises:
        ConfigError: No arm is named like the baseline.
    """
    names = tuple(arms)
    if baseline not in names:
        raise ConfigError(f"no arm is named '{baseline}'", value=baseline, choices=names)
    table = np.asarray(scores, dtype=np.float64).reshape(-1, len(names))
    complete = np.asarray(np.isfinite(table).all(axis=1))
    table = table[complete]
    at = names.index(baseline)
    p = np.full(len(names), np.nan)
    rank, difference = p.copy(), p.copy()
    if len(table):
        rank = stats.rankdata(table if lower_is_better else -table, axis=1).mean(axis=0)
        difference = (table - table[:, [at]]).mean(axis=0)
        others = [arm for arm in range(len(names)) if arm != at]
        p[others] = [signed_rank(table[:, arm] - table[:, at]) for arm in others]
    return Ranking(
        arms=names,
        baseline=baseline,
        complete=complete,
        rank=rank,
        difference=difference,
        p=p,
        p_adj=holm(p),
        friedman=friedman(table),
        critical_difference=critical_difference(len(names), len(table), alpha),
    )


def signed_rank(differences: ArrayLike) -> float:
    """Return the two-sided p of Wilcoxon's signed-rank test; NaN without differences.

    Exact where there are few. Datasets without a difference count half for either side (Demsar
    2006): were they left out, ties would speak for a difference.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        return np.nan
    return float(stats.wilcoxon(values, zero_method="zsplit").pvalue)


def friedman(scores: ArrayLike) -> float:
    """Return p of Friedman's (1937) test that all arms rank alike.

    Args:
        scores: Shape (datasets, arms), without gaps; the direction does not matter.

    Returns:
        1 where all arms tie on every dataset; NaN below three arms or two datasets.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.shape[0] < 2 or table.shape[1] < 3:
        return np.nan
    if (table == table[:, :1]).all():
        return 1.0
    return float(stats.friedmanchisquare(*table.T).pvalue)


def critical_difference(arms: int, datasets: int, alpha: float = ALPHA) -> float:
    """Return Nemenyi's (1963) critical difference of mean ranks; NaN below two of either."""
    if arms < 2 or datasets < 2:
        return np.nan
    quantile = stats.studentized_range.isf(alpha, arms, np.inf)
    return float(quantile * np.sqrt(arms * (arms + 1) / (12 * datasets)))

"""Arms over several datasets."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite, nan
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medtransfer.analysis.grid import where
from medtransfer.analysis.results import Across, Arm, Rank
from medtransfer.analysis.statistics.across import across_datasets
from medtransfer.analysis.statistics.aggregate import iqm, probability_of_improvement
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER
from medtransfer.analysis.statistics.equivalence import signed_rank_probabilities

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medtransfer.analysis.load import Study

Floats = NDArray[np.float64]

AXIS = "dataset"
SEED = 0  # of what is drawn: the same results give the same report
_ENOUGH = 3


def across(study: Study, arms: Sequence[Arm]) -> Across | None:
    """Return how arms rank over datasets; None where a study has fewer than three of them.

    A dataset counts where every arm has all of its seeds. Of other axes, such as fractions, the
    last setting counts. The baseline is `b` of the declared contrast, else the first declared arm.
    All values are of one metric, the study's.
    """
    settings = list(dict.fromkeys(_rest(row.axes) for row in arms if AXIS in row.axes))
    rows = [row for row in arms if AXIS in row.axes and _rest(row.axes) == settings[-1]]
    datasets = list(dict.fromkeys(row.axes[AXIS] for row in rows))
    names = sorted({row.arm for row in rows})
    if len(datasets) < _ENOUGH or len(names) < 2:
        return None
    at = {
        (row.axes[AXIS], row.arm): nan if row.incomplete or row.mean is None else row.mean
        for row in rows
    }
    scores = [[at.get((dataset, arm), nan) for arm in names] for dataset in datasets]
    declared = (study.protocol.get("primary") or {}).get("b"), *study.protocol.get("arms", {})
    baseline = next((arm for arm in declared if arm in names), names[0])
    found = across_datasets(
        scores, names, baseline, lower_is_better=study.metric in LOWER_IS_BETTER
    )
    counted = [each for each, whole in zip(datasets, found.complete, strict=True) if whole]
    if len(counted) < _ENOUGH:
        return None
    seeds = {arm: _by_seed(rows, arm, counted) for arm in names}
    sign = -1 if study.metric in LOWER_IS_BETTER else 1
    ranks = []
    for k, arm in enumerate(names):
        whole = iqm(seeds[arm], np.random.default_rng(SEED))
        rank = Rank(
            arm=arm,
            rank=float(found.rank[k]),
            mean_diff=None if arm == baseline else _defined(found.difference[k]),
            p_adj=_defined(found.p_adj[k]),
            iqm=_defined(whole.estimate),
            iqm_lo=_defined(whole.lo),
            iqm_hi=_defined(whole.hi),
        )
        if arm != baseline:
            gains = sign * (seeds[arm].mean(axis=1) - seeds[baseline].mean(axis=1))
            rng = np.random.default_rng(SEED)
            shares = signed_rank_probabilities(gains, study.rope, rng)
            chance = probability_of_improvement(sign * seeds[arm], sign * seeds[baseline], rng)
            rank = replace(
                rank,
                improvement=_defined(chance.estimate),
                shares=(shares.left, shares.inside, shares.right),
            )
        ranks.append(rank)
    return Across(
        datasets=tuple(counted),
        baseline=baseline,
        p=_defined(found.friedman),
        critical_difference=_defined(found.critical_difference),
        ranks=tuple(sorted(ranks, key=lambda each: (each.rank, each.arm))),
    )


def _by_seed(rows: Sequence[Arm], arm: str, datasets: Sequence[str]) -> Floats:
    """Return an arm's values, shape (datasets, seeds)."""
    of = {row.axes[AXIS]: row.by_seed for row in rows if row.arm == arm}
    return np.array([[*of[dataset].values()] for dataset in datasets])


def _rest(axes: Mapping[str, str]) -> str:
    return where({key: value for key, value in axes.items() if key != AXIS})


def _defined(value: float) -> float | None:
    return float(value) if isfinite(value) else None

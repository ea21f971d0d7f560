"""Arms with their intervals, and every pair of arms on common cases and seeds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import TYPE_CHECKING

import numpy as np

from medtransfer.analysis.cases import Cases
from medtransfer.analysis.grid import Cell, cells, same, where
from medtransfer.analysis.notes import notes
from medtransfer.analysis.results import Arm, Contrast
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER
from medtransfer.analysis.statistics.intervals import ALPHA, Interval, within_bounds
from medtransfer.analysis.statistics.power import Needed, needed
from medtransfer.analysis.statistics.verdicts import holm, verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medtransfer.analysis.cases import Matrix
    from medtransfer.analysis.load import Study

    Pair = tuple[Cell, Cell, Matrix]

ENOUGH_SEEDS = 5
# Of so many contrasts what each undecided one would need is worked out, which takes milliseconds;
# of more only where the best arm of a setting is in it.
_FEW = 500


@dataclass(frozen=True)
class Comparison:
    """Arms best first within each setting of the axes, all pairs of them, and what to know.

    Args:
        primary: The contrast that the study declared as its question, one of `contrasts`.
        untested: Why there is none although the study declared one; empty otherwise.
    """

    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    notes: tuple[str, ...]
    primary: Contrast | None = None
    untested: str = ""


def compare(study: Study, split: str = "test", cases: Cases | None = None) -> Comparison:
    """Compare every pair of arms under each setting of the data axes.

    Trials are paired seed by seed, and only where they were tested on the same split. A seed that
    one of the arms lacks is left out of their contrast, and a note says which. The contrast that
    the study declared beforehand is tested as it is; the others are corrected among themselves.

    Args:
        study: What to compare.
        split: `test`, or `external` for another site's data, where no contrast is the primary one.
        cases: The predictions of the split, where something else reads them too.
    """
    cases = cases or Cases.of(study, split)
    if split == "external":
        trials = tuple(replace(trial, metrics=trial.external) for trial in study.trials)
        study = replace(study, trials=trials, protocol={})
    grid = cells(study, split)
    arms: list[Arm] = []
    pairs: list[Pair] = []
    for setting in grid:
        rows = [(arm_row(cell, cases, study.metric), cell) for cell in setting]
        rows.sort(key=lambda row: _best_first(row[0], study.metric))
        arms += [row for row, _ in rows]
        for (_, a), (_, b) in itertools.combinations(rows, 2):
            if seeds := paired_seeds(a, b):
                pairs.append((a, b, difference(a, b, seeds, cases)))
    primary, untested = _declared(study, grid, pairs)
    if primary is not None:
        pairs[primary] = _as_declared(pairs[primary], study.protocol["primary"]["a"])
    contrasts = _contrasts(study, arms, pairs, primary)
    told = notes(study, split, grid=grid, arms=arms, pairs=pairs, cases=cases)
    if untested:
        told.append(f"the primary contrast could not be tested: {untested}")
    return Comparison(
        arms=tuple(arms),
        contrasts=tuple(contrasts),
        notes=tuple(told),
        primary=None if primary is None else contrasts[primary],
        untested=untested,
    )


def arm_row(cell: Cell, cases: Cases, metric: str) -> Arm:
    """Return the row of a cell; its interval keeps to the bounds of the metric."""
    trials = list(cell.trials.values())
    costs = sorted({name for trial in trials for name in trial.cost})
    values = cases.matrix(trials)
    interval = values.interval()
    lo, hi = within_bounds(interval, metric)
    return Arm(
        arm=cell.arm,
        axes=cell.axes,
        n_seeds=len(trials),
        n_cases=values.n_cases,
        n_groups=values.n_groups,
        mean=_defined(interval.estimate),
        lo=_defined(lo),
        hi=_defined(hi),
        over=interval.over,
        cost={c: float(np.mean([t.cost[c] for t in trials if c in t.cost])) for c in costs},
        failed=cell.failed,
        by_seed={"-" if s is None else f"{s}": t.metrics[metric] for s, t in cell.trials.items()},
        incomplete=bool(cell.missing),
    )


def paired_seeds(a: Cell, b: Cell) -> list[int | None]:
    """Return the seeds that both finished on the same split; an unknown split is no pair."""
    return [
        seed
        for seed, trial in a.trials.items()
        if seed in b.trials and trial.split_hash and trial.split_hash == b.trials[seed].split_hash
    ]


def difference(a: Cell, b: Cell, seeds: Sequence[int | None], cases: Cases) -> Matrix:
    """Return `a` - `b`, shape (cases, seeds), on the cases that all of these trials have."""
    both = [cell.trials[seed] for cell in (a, b) for seed in seeds]
    return cases.matrix(both).minus_second_half()


def _declared(
    study: Study, grid: Sequence[Sequence[Cell]], pairs: Sequence[Pair]
) -> tuple[int | None, str]:
    """Return the place of the pair that the study declared, else why there is none."""
    if not (primary := study.protocol.get("primary")):
        return None, ""
    a, b, at = primary["a"], primary["b"], primary.get("at") or {}
    arms = {cell.arm for setting in grid for cell in setting}
    if unknown := [arm for arm in (a, b) if arm not in arms]:
        return None, f"no trial is of {' or '.join(unknown)}"
    settings = [setting[0].axes for setting in grid]
    fitting = [axes for axes in settings if all(same(v, axes.get(k, "")) for k, v in at.items())]
    if not fitting:
        return None, f"no trial is @ {where(at)}"
    chosen = fitting[-1]
    for place, (one, other, _) in enumerate(pairs):
        if one.axes == chosen and {one.arm, other.arm} == {a, b}:
            return place, ""
    label = f" @ {where(chosen)}" if chosen else ""
    return None, f"{a} and {b}{label} share no finished seed on the same split"


def _as_declared(pair: Pair, first: str) -> Pair:
    a, b, values = pair
    return pair if a.arm == first else (b, a, replace(values, values=-values.values))


def _contrasts(
    study: Study, arms: Sequence[Arm], pairs: Sequence[Pair], primary: int | None
) -> list[Contrast]:
    intervals = [values.interval() for *_, values in pairs]
    p = np.array([interval.p for interval in intervals])
    secondary = np.arange(len(pairs)) != (-1 if primary is None else primary)
    corrected = p.copy()
    corrected[secondary] = holm(p[secondary])
    tests = int(np.isfinite(p[secondary]).sum())
    best: dict[str, str] = {}
    for row in arms:
        best.setdefault(where(row.axes), row.arm)
    found = []
    for place, (pair, interval) in enumerate(zip(pairs, intervals, strict=True)):
        contrast = _contrast(pair, interval, float(corrected[place]), study)
        contrast = replace(contrast, primary=place == primary)
        told = len(pairs) <= _FEW or best[where(contrast.axes)] in {contrast.a, contrast.b}
        if contrast.verdict == "undecided" and (told or contrast.primary):
            level = 1 - ALPHA / _correction(contrast, tests)
            more = _needed(pair[-1], level)
            contrast = replace(contrast, more_cases=more.more_cases, more_seeds=more.more_seeds)
        found.append(contrast)
    return found


def _correction(contrast: Contrast, tests: int) -> float:
    """Return by how much the correction has raised p; where it has met 1, by how much at most."""
    if contrast.primary or not contrast.p or contrast.p_adj is None:
        return 1.0
    return contrast.p_adj / contrast.p if contrast.p_adj < 1 else float(tests)


def _needed(values: Matrix, level: float) -> Needed:
    more = needed(values.values, values.groups, level=level)
    # Without values of cases nothing is known of how they differ.
    return more if values.n_cases else replace(more, more_cases=None)


def _contrast(pair: Pair, interval: Interval, p_adj: float, study: Study) -> Contrast:
    a, b, values = pair
    gain = (interval.lo, interval.hi)
    if study.metric in LOWER_IS_BETTER:
        gain = (-interval.hi, -interval.lo)
    n_seeds = values.values.shape[1]
    return Contrast(
        a=a.arm,
        b=b.arm,
        axes=a.axes,
        diff=_defined(interval.estimate),
        lo=_defined(interval.lo),
        hi=_defined(interval.hi),
        p_adj=_defined(p_adj),
        verdict=verdict(*gain, study.rope, p_adj=p_adj),
        provisional=n_seeds < ENOUGH_SEEDS,
        n_cases=values.n_cases,
        n_groups=values.n_groups,
        n_seeds=n_seeds,
        over=interval.over,
        p=_defined(interval.p),
    )


def _best_first(row: Arm, metric: str) -> tuple[float, bool, float, str]:
    """Order by the mean; a mean over fewer seeds than others have is in no order with them."""
    if row.mean is None:
        return inf, row.incomplete, 0.0, row.arm
    mean = row.mean if metric in LOWER_IS_BETTER else -row.mean
    return 0.0, row.incomplete, mean, row.arm


def _defined(value: float) -> float | None:
    return float(value) if isfinite(value) else None

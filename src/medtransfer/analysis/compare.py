"""Arms with their intervals, and every pair of arms on common cases and seeds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING

import numpy as np

from medtransfer.analysis.cases import case_frame, matrix, rare_classes, values_of
from medtransfer.analysis.grid import Cell, cells, where
from medtransfer.analysis.results import Arm, Contrast
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER
from medtransfer.analysis.statistics.intervals import Interval, within_bounds
from medtransfer.analysis.statistics.verdicts import holm, verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd

    from medtransfer.analysis.cases import Matrix
    from medtransfer.analysis.load import Study, Trial

    Pair = tuple[Cell, Cell, Matrix]
    Frames = Mapping[str, pd.DataFrame | None]

ENOUGH_SEEDS = 5
# A logged metric further than this from the one recomputed is not rounding.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Comparison:
    """Arms best first within each setting of the axes, all pairs of them, and what to know."""

    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    notes: tuple[str, ...]


def compare(study: Study) -> Comparison:
    """Compare every pair of arms under each setting of the data axes.

    Trials are paired seed by seed, and only where they were tested on the same split. A seed that
    one of the arms lacks is left out of their contrast, and a note says which.
    """
    grid = cells(study)
    trials = [t for setting in grid for cell in setting for t in cell.trials.values()]
    frames = {trial.run_id: case_frame(study, trial) for trial in trials}
    arms: list[Arm] = []
    pairs: list[Pair] = []
    for setting in grid:
        rows = [(arm_row(cell, frames, study.metric), cell) for cell in setting]
        rows.sort(key=lambda row: _best_first(row[0], study.metric))
        arms += [row for row, _ in rows]
        for (_, a), (_, b) in itertools.combinations(rows, 2):
            if seeds := paired_seeds(a, b):
                pairs.append((a, b, difference(a, b, seeds, frames, study.metric)))
    intervals = [values.interval() for *_, values in pairs]
    corrected = holm([interval.p for interval in intervals])
    contrasts = [
        _contrast(pair, interval, float(p_adj), study)
        for pair, interval, p_adj in zip(pairs, intervals, corrected, strict=True)
    ]
    notes = [
        *study.notes,
        *(f"{c.label}: {', '.join(c.missing)}" for row in grid for c in row if c.missing),
        *_arm_notes(arms, study.metric),
        *_frame_notes(trials, frames, study.metric),
        *_pair_notes(grid, pairs),
    ]
    return Comparison(tuple(arms), tuple(contrasts), tuple(notes))


def arm_row(cell: Cell, frames: Frames, metric: str) -> Arm:
    """Return the row of a cell; its interval keeps to the bounds of the metric."""
    trials = list(cell.trials.values())
    costs = sorted({name for trial in trials for name in trial.cost})
    values = matrix(trials, frames, metric)
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
    )


def paired_seeds(a: Cell, b: Cell) -> list[int | None]:
    """Return the seeds that both finished on the same split; an unknown split is no pair."""
    return [
        seed
        for seed, trial in a.trials.items()
        if seed in b.trials and trial.split_hash and trial.split_hash == b.trials[seed].split_hash
    ]


def difference(
    a: Cell, b: Cell, seeds: Sequence[int | None], frames: Frames, metric: str
) -> Matrix:
    """Return `a` - `b`, shape (cases, seeds), on the cases that all of these trials have."""
    both = [cell.trials[seed] for cell in (a, b) for seed in seeds]
    return matrix(both, frames, metric).minus_second_half()


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
    )


def _arm_notes(arms: Sequence[Arm], metric: str) -> Iterator[str]:
    finished = [arm for arm in arms if arm.n_seeds]
    if loose := [arm for arm in finished if not arm.n_cases]:
        names = "every arm" if loose == finished else "; ".join(map(_label, loose))
        yield (
            f"intervals over seeds alone for {names}: no predictions hold {metric} case by case, "
            "or the seeds were tested on different splits"
        )
    for arm in finished:
        if arm.mean is not None and arm.lo == arm.hi:
            yield (
                f"{_label(arm)}: {metric} did not vary over cases or seeds, so that its interval "
                "has no width; it does not mean certainty"
            )


def _frame_notes(trials: Iterable[Trial], frames: Frames, metric: str) -> Iterator[str]:
    rare: dict[tuple[str, str], int] = {}
    for trial in trials:
        if (frame := frames[trial.run_id]) is None:
            continue
        values = values_of(frame, metric)
        values = values[np.isfinite(values)]
        recomputed = float(values.mean()) if values.size else np.nan
        if not abs(recomputed - trial.metrics[metric]) <= _ROUNDING:
            yield (
                f"run {trial.run_id} logged test/{metric} {trial.metrics[metric]:.4f}, but its "
                f"predictions give {recomputed:.4f}, which is what is reported here"
            )
        rare |= {(where(trial.axes), n): k for n, k in rare_classes(frame, metric).items()}
    for (setting, name), count in rare.items():
        yield (
            f"class '{name}' has {count} test cases{' @ ' if setting else ''}{setting}: "
            f"intervals of {metric} may be too narrow"
        )


def _pair_notes(grid: Sequence[Sequence[Cell]], pairs: Iterable[Pair]) -> Iterator[str]:
    for setting in grid:
        for a, b in itertools.combinations([cell for cell in setting if cell.trials], 2):
            common = [seed for seed in a.trials if seed in b.trials]
            if not common:
                yield f"{a.label} and {b.label} share no finished seed: not compared"
            elif lost := [str(seed) for seed in common if seed not in paired_seeds(a, b)]:
                yield (
                    f"{a.label} and {b.label} were tested on different splits (split_hash) at "
                    f"seed {', '.join(lost)}: not paired there"
                )
    for a, b, values in pairs:
        if values.dropped:
            yield (
                f"{a.label} and {b.label} are compared on {values.n_cases} of "
                f"{values.n_cases + values.dropped} cases: the others lack a value in some trial"
            )


def _best_first(row: Arm, metric: str) -> tuple[float, str]:
    if row.mean is None:
        return inf, row.arm
    return (row.mean if metric in LOWER_IS_BETTER else -row.mean), row.arm


def _label(arm: Arm) -> str:
    return f"{arm.arm} @ {where(arm.axes)}" if arm.axes else arm.arm


def _defined(value: float) -> float | None:
    return float(value) if isfinite(value) else None

"""What a reader must know of a comparison: what is missing from it, and what is odd."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from medtransfer.analysis.grid import Cell, where

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from medtransfer.analysis.cases import Cases, Matrix
    from medtransfer.analysis.load import Study, Trial
    from medtransfer.analysis.results import Arm

# A logged metric further than this from the one recomputed is not rounding.
_ROUNDING = 1e-3
# So many runs are told one by one.
_TOLD = 10


def notes(
    study: Study,
    split: str,
    *,
    grid: Sequence[Sequence[Cell]],
    arms: Sequence[Arm],
    pairs: Iterable[tuple[Cell, Cell, Matrix]],
    cases: Cases,
) -> list[str]:
    """Return the study's own notes, then those on cells, arms, predictions and pairs.

    Args:
        study: Its trials have the metrics of the split.
        split: `test` or `external`.
        grid: The cells of each setting.
        arms: Their rows.
        pairs: The cells that were compared, and their differences.
        cases: The predictions of the split.
    """
    trials = [t for setting in grid for cell in setting for t in cell.trials.values()]
    return [
        *study.notes,
        *(f"{c.label}: {', '.join(c.missing)}" for row in grid for c in row if c.missing),
        *_arm_notes(arms, study.metric),
        *_run_notes(trials, cases, f"{split}/{study.metric}"),
        *_class_notes(trials, cases, study.metric),
        *_pair_notes(grid, pairs),
    ]


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


def _run_notes(trials: Iterable[Trial], cases: Cases, metric: str) -> Iterator[str]:
    off = []
    for trial in trials:
        if cases.layout(trial) is None:
            continue
        values = cases.values(trial)
        values = values[np.isfinite(values)]
        recomputed = float(values.mean()) if values.size else np.nan
        logged = trial.metrics[metric.partition("/")[2]]
        if not abs(recomputed - logged) <= _ROUNDING:
            off.append(
                f"run {trial.run_id} logged {metric} {logged:.4f}, but its predictions give "
                f"{recomputed:.4f}, which is what is reported here"
            )
    yield from off[:_TOLD]
    if more := len(off) - _TOLD if len(off) > _TOLD else 0:
        yield f"so it is with {more} more run{'s' if more > 1 else ''}"


def _class_notes(trials: Iterable[Trial], cases: Cases, metric: str) -> Iterator[str]:
    rare: dict[tuple[str, str], int] = {}
    for trial in trials:
        if (layout := cases.layout(trial)) and layout.rare:
            rare |= {(where(trial.axes), name): count for name, count in layout.rare.items()}
    for (setting, name), count in rare.items():
        yield (
            f"class '{name}' has {count} test cases{' @ ' if setting else ''}{setting}: "
            f"intervals of {metric} may be too narrow"
        )


def _pair_notes(
    grid: Sequence[Sequence[Cell]], pairs: Iterable[tuple[Cell, Cell, Matrix]]
) -> Iterator[str]:
    for setting in grid:
        for a, b in itertools.combinations([cell for cell in setting if cell.trials], 2):
            common = [seed for seed in a.trials if seed in b.trials]
            lost = [
                str(seed)
                for seed in common
                if not (split := a.trials[seed].split_hash) or split != b.trials[seed].split_hash
            ]
            if not common:
                yield f"{a.label} and {b.label} share no finished seed: not compared"
            elif lost:
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


def _label(arm: Arm) -> str:
    return f"{arm.arm} @ {where(arm.axes)}" if arm.axes else arm.arm

"""Where one arm's learning curve overtakes another's, over what a trial may train on."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medtransfer.analysis.compare import paired_seeds
from medtransfer.analysis.grid import Cell, cells, where
from medtransfer.analysis.results import Crossing
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER
from medtransfer.analysis.statistics.crossing import crossing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from medtransfer.analysis.cases import Cases
    from medtransfer.analysis.load import Study, Trial

AXES = {"dataset.fraction": "of the training data", "dataset.shots": "training cases per class"}
"""What a learning curve runs over, and what it counts where trials do not say how many they saw."""

_SIZE = "medtransfer.n_train"
_PAIRS = 6  # of so many all are looked at, without one that the study declared


def crossings(study: Study, cases: Cases) -> tuple[Crossing, ...]:
    """Return for each pair of arms where the one that is ahead at the end overtakes the other.

    The pair is the one that the study declared; without one all, if they are few. Resamples are
    drawn from the study's seed.

    Args:
        study: With an axis among `AXES`, and two or more values of it.
        cases: Its predictions on test data.
    """
    grid = [[cell for cell in setting if cell.trials] for setting in cells(study)]
    rng = np.random.default_rng(int(study.protocol.get("seed") or 0))
    found = []
    for axis in AXES:
        for curve in _curves(grid, axis):
            for a, b in _pairs(study, curve):
                both = [(at[a], at[b]) for at in curve]
                told = _crossing(study, cases, axis, curve=both, rng=rng)
                found += [told] if told else []
    return tuple(found)


def _curves(grid: Sequence[Sequence[Cell]], axis: str) -> Iterator[list[dict[str, Cell]]]:
    """Yield for each setting of the other axes the cells of each arm along this one."""
    curves: dict[str, list[dict[str, Cell]]] = {}
    for setting in grid:
        if setting and axis in setting[0].axes:
            rest = {key: value for key, value in setting[0].axes.items() if key != axis}
            curves.setdefault(where(rest), []).append({cell.arm: cell for cell in setting})
    yield from (curve for curve in curves.values() if len(curve) > 1)


def _pairs(study: Study, curve: Sequence[dict[str, Cell]]) -> list[tuple[str, str]]:
    arms = [arm for arm in curve[0] if all(arm in at for at in curve)]
    primary = study.protocol.get("primary") or {}
    pairs = list(itertools.combinations(arms, 2))
    if {primary.get("a"), primary.get("b")} <= {*arms}:
        return [pair for pair in pairs if {*pair} == {primary["a"], primary["b"]}]
    return pairs if len(pairs) <= _PAIRS else []


def _crossing(
    study: Study,
    cases: Cases,
    axis: str,
    *,
    curve: Sequence[tuple[Cell, Cell]],
    rng: np.random.Generator,
) -> Crossing | None:
    """Return where the arms' curves cross; None where they share no seed, or sizes are not told."""
    common = [seed for seed in curve[0][0].trials if all(seed in paired_seeds(*at) for at in curve)]
    # Seed by seed at each size: first all trials of the one arm, then all of the other.
    trials = [[at[arm].trials[seed] for at in curve for seed in common] for arm in (0, 1)]
    sizes, unit = _sizes(axis, curve)
    if not common or sizes[0] <= 0 or not (np.diff(sizes) > 0).all():
        return None
    matrix = cases.matrix([*trials[0], *trials[1]])
    difference = matrix.minus_second_half().values.reshape(-1, len(curve), len(common))
    gains = np.moveaxis(difference, 0, 1) * (-1 if study.metric in LOWER_IS_BETTER else 1)
    if not np.isfinite(gains).all():
        return None
    a, b = curve[0][1].arm, curve[0][0].arm
    if gains[-1].mean() < 0:
        a, b, gains = b, a, -gains
    point = crossing(sizes, gains, rng, groups=matrix.groups)
    rest = {key: value for key, value in curve[0][0].axes.items() if key != axis}
    told = Crossing(a, b, axis, point.at, point.lo, point.hi, unit, text="", axes=rest)
    return replace(told, text=_in_words(told, sizes, gains))


def _sizes(axis: str, curve: Sequence[tuple[Cell, Cell]]) -> tuple[list[float], str]:
    """Return how much the trials were trained on at each place, and what that counts."""
    counts = [[_count(t) for cell in at for t in cell.trials.values()] for at in curve]
    if all(count > 0 for at in counts for count in at):
        trial = next(iter(curve[0][0].trials.values()))
        exams = trial.tags.get("medtransfer.task", "").startswith("exam")
        return [float(np.mean(at)) for at in counts], f"training {'exams' if exams else 'cases'}"
    try:
        return [float(at[0].axes[axis]) for at in curve], AXES[axis]
    except ValueError:  # such as null, for all
        return [0.0], AXES[axis]


def _count(trial: Trial) -> float:
    text = trial.tags.get(_SIZE, "")
    return float(text) if text.replace(".", "", 1).isdigit() else 0.0


def _in_words(told: Crossing, sizes: Sequence[float], gains: NDArray[np.float64]) -> str:
    """Return a crossing as a sentence; `gains` are what `b` is better by, sizes first."""
    a, b, unit = told.a, told.b, told.unit
    first, last = _size(sizes[0]), _size(sizes[-1])
    setting = f" with {where(told.axes)}" if told.axes else ""
    if told.at is None:
        ahead = bool((gains.mean(axis=(1, 2)) > 0).all())
        means = f"is ahead of {a} throughout" if ahead else f"does not overtake {a}"
        return f"{b} {means}, from {first} to {last} {unit}{setting}"
    lo = f"below {first}" if told.lo is None else _size(told.lo)
    hi = f"above {last}" if told.hi is None else _size(told.hi)
    return f"{b} overtakes {a} at {_size(told.at)} {unit} (95 % CI {lo} to {hi}){setting}"


def _size(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"

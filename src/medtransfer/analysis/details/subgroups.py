"""The study's metric on the cases that share a value, such as those of one site."""

from __future__ import annotations

import itertools
from math import inf, isfinite
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medtransfer.analysis.cases import Matrix, matrix, values_of
from medtransfer.analysis.details.parts import Subgroup
from medtransfer.analysis.statistics.case_values import CASE_METRICS
from medtransfer.analysis.statistics.intervals import within_bounds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from medtransfer.analysis.load import Trial
    from medtransfer.analysis.statistics.case_values import Floats

    Frames = Mapping[str, pd.DataFrame]

ATTRIBUTE = "attribute_"
MOST = 8
"""Values of a column that are told apart; the rarer ones stand together as `other`."""

ENOUGH = 10
"""Cases from which on there is a mean."""

OTHER = "other"


def subgroups(
    arms: Mapping[str, Sequence[Trial]], frames: Frames, metric: str
) -> tuple[Subgroup, ...]:
    """Return each arm under each value of each column `attribute_*`, with its 95 % interval.

    The metric is computed anew within the subgroup, over cases and seeds as for all cases. There is
    no mean of fewer than `ENOUGH` cases, nor of cases of one class. Numbers of many values are cut
    into three parts of equally many cases.

    Args:
        arms: The trials of each arm.
        frames: Predictions of each trial that has any, with one row for each `sample_id`.
        metric: The study's; without values of cases there are no subgroups.
    """
    having = {arm: [t for t in trials if t.run_id in frames] for arm, trials in arms.items()}
    aligned = {
        arm: _aligned([frames[t.run_id] for t in trials], _one_split(trials))
        for arm, trials in having.items()
        if all(_has(frames[t.run_id], metric) for t in trials)
    }
    found = []
    for column, names, group in _columns([f for tables in aligned.values() for f in tables]):
        own = {
            arm: [table["sample_id"].map(group).to_numpy() for table in tables]
            for arm, tables in aligned.items()
        }
        for value, (arm, tables) in itertools.product(names, aligned.items()):
            parts = [t[each == value] for t, each in zip(tables, own[arm], strict=True)]
            count = min((len(part) for part in parts), default=0)
            found.append(
                Subgroup(column, value, arm, count, *_interval(having[arm], parts, metric))
            )
    return tuple(found)


def _interval(
    trials: Sequence[Trial], parts: Sequence[pd.DataFrame], metric: str
) -> tuple[float | None, float | None, float | None]:
    """Return the mean and the ends of its interval; `parts` are each trial's cases."""
    one_class = any("target" in part and part["target"].nunique() < 2 for part in parts)
    if one_class or min((len(part) for part in parts), default=0) < ENOUGH:
        return None, None, None
    if _one_split(trials):
        by_run = {trial.run_id: part for trial, part in zip(trials, parts, strict=True)}
        values = matrix(trials, by_run, metric)
    else:  # cases and seeds are not crossed: of each trial its own mean
        values = Matrix(np.array([[_mean(values_of(part, metric)) for part in parts]]), None)
    interval = values.interval()
    lo, hi = within_bounds(interval, metric)
    return _defined(interval.estimate), _defined(lo), _defined(hi)


def _aligned(frames: Sequence[pd.DataFrame], one_split: bool) -> list[pd.DataFrame]:
    """Return the frames, of one split with the same cases in the same rows."""
    if not one_split or not frames:
        return list(frames)
    keys = ["sample_id", *(name for name in frames[0] if str(name).startswith("target"))]
    indexed = [frame.set_index(keys, drop=False) for frame in frames]
    common = indexed[0].index
    for frame in indexed[1:]:
        common = common.intersection(frame.index)
    common = common.sort_values()
    return [frame.loc[common].reset_index(drop=True) for frame in indexed]


def _columns(frames: Sequence[pd.DataFrame]) -> Iterator[tuple[str, list[str], pd.Series[str]]]:
    """Yield each column that tells cases apart, its subgroups, and that of each case by its id."""
    columns = {str(n): None for frame in frames for n in frame if str(n).startswith(ATTRIBUTE)}
    for column in sorted(columns):
        tables = [frame[["sample_id", column]] for frame in frames if column in frame]
        known = pd.concat(tables).drop_duplicates().dropna()
        known = known[known[column].astype(str).str.strip() != ""].drop_duplicates("sample_id")
        names, group = _cut(known.set_index("sample_id")[column].sort_index())
        if len(names) > 1:
            yield column.removeprefix(ATTRIBUTE), names, group


def _cut(values: pd.Series[str]) -> tuple[list[str], pd.Series[str]]:
    """Return the subgroups in order, at most `MOST`, and that of each case."""
    text = values.astype(str)
    if text.nunique() > MOST:
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64)
        if np.isfinite(numbers).all():
            return _thirds(pd.Series(numbers, index=values.index))
        counts = text.value_counts()
        common = sorted(counts.index, key=lambda name: (-counts[name], name))[: MOST - 1]
        text = text.where(text.isin(common), OTHER)
    return sorted(text.unique(), key=lambda name: (name == OTHER, _number(name), name)), text


def _thirds(numbers: pd.Series[float]) -> tuple[list[str], pd.Series[str]]:
    """Return the low, the middle and the high values, named after their ends."""
    edges = np.quantile(numbers, [1 / 3, 2 / 3], method="lower")
    place = np.searchsorted(edges, numbers, side="left")
    parts = [numbers[place == each] for each in np.unique(place)]
    names = [f"{part.min():.10g} to {part.max():.10g}" for part in parts]
    found = [pd.Series(name, part.index) for name, part in zip(names, parts, strict=True)]
    return names, pd.concat(found)


def _has(frame: pd.DataFrame, metric: str) -> bool:
    return metric in frame or metric in CASE_METRICS


def _one_split(trials: Sequence[Trial]) -> bool:
    return len({trial.split_hash for trial in trials}) <= 1


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return inf


def _mean(values: Floats) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else np.nan


def _defined(value: float) -> float | None:
    return float(value) if isfinite(value) else None

"""Predictions of several trials brought to the same cases."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medtransfer.analysis.stats import CASE_METRICS, Interval, case_values, two_way_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from medtransfer.analysis.load import Study, Trial
    from medtransfer.analysis.stats import Floats

    Values = Callable[[pd.DataFrame], Floats]

_SCORE = "score_"
# The cases of a class from which on a normal approximation within the class is fair.
_ENOUGH = 10


@dataclass(frozen=True)
class Matrix:
    """Values of a metric, shape (cases, trials), and the patient of each case.

    Without values per case it has one row, the trials' metrics, and no groups.
    """

    values: Floats
    groups: NDArray[np.generic] | None
    dropped: int = 0

    @property
    def n_cases(self) -> int:
        """Cases that every trial predicted; 0 where only the trials' metrics are known."""
        return 0 if self.groups is None else len(self.values)

    @property
    def n_groups(self) -> int:
        """Patients among the cases."""
        return 0 if self.groups is None else len(np.unique(self.groups))

    def interval(self) -> Interval:
        """Return the interval of the mean over cases and trials."""
        return two_way_interval(self.values, self.groups)

    def minus_second_half(self) -> Matrix:
        """Pair the first half of the trials with the second."""
        half = self.values.shape[1] // 2
        return Matrix(self.values[:, :half] - self.values[:, half:], self.groups, self.dropped)


def case_frame(study: Study, trial: Trial) -> pd.DataFrame | None:
    """Return a trial's predictions, one row a case; None where the metric has no case values.

    Two trials share a case when both its id and its target agree. A case listed twice, as the
    padding of a distributed sampler does, counts once.
    """
    frame = study.predictions(trial.run_id)
    if frame is None or not (study.metric in frame or study.metric in CASE_METRICS):
        return None
    case = frame["sample_id"]
    if "exam_id" in frame:
        case = case.fillna(frame["exam_id"])
    group = frame["group_id"].fillna(case) if "group_id" in frame else case
    frame = frame.assign(sample_id=case.astype(str), group_id=group.astype(str))
    keys = [name for name in ("sample_id", "target") if name in frame]
    return frame.drop_duplicates("sample_id").set_index(keys, drop=False)


def matrix(
    trials: Sequence[Trial], frames: Mapping[str, pd.DataFrame | None], metric: str
) -> Matrix:
    """Return the values of the trials on the cases that all of them have.

    Falls back to one row of the trials' metrics where predictions are lacking, or where the trials
    were tested on different splits: then cases and seeds are not crossed.
    """
    found = [frame for trial in trials if (frame := frames[trial.run_id]) is not None]
    if not found or len(found) < len(trials) or len({trial.split_hash for trial in trials}) > 1:
        return Matrix(np.array([[trial.metrics[metric] for trial in trials]]), None)
    indices = [frame.index for frame in found]
    # Sorted, so that the order of rows does not change the last digit.
    common = functools.reduce(lambda a, b: a.intersection(b), indices).sort_values()
    aligned = [frame.loc[common] for frame in found]
    values = np.column_stack([values_of(frame, metric) for frame in aligned])
    # A per-image metric may be undefined, as Dice on an empty mask.
    defined = np.isfinite(values).all(axis=1)
    groups = aligned[0]["group_id"].to_numpy(dtype=str)[defined]
    everything = functools.reduce(lambda a, b: a.union(b), indices)
    return Matrix(values[defined], groups, len(everything) - int(defined.sum()))


def values_of(frame: pd.DataFrame, metric: str) -> Floats:
    """Return the values of a frame's cases; a column named like the metric holds them already."""
    by_class = [name for name in frame if str(name).startswith(f"{metric}_")]
    if metric in frame and len(by_class) > 1:
        return _class_means(frame[by_class].to_numpy(dtype=np.float64))
    if metric in frame:
        return frame[metric].to_numpy(dtype=np.float64)
    return case_values(metric, frame["target"].to_numpy(), _scores(frame).to_numpy())


def _class_means(values: Floats) -> Floats:
    """Return one value per case whose mean is the mean over classes of their means over cases.

    A case counts for each class that it has a value of, the more the fewer cases have one.

    Args:
        values: Of each case and class, (n, K); NaN where a case has no say.
    """
    has = np.isfinite(values)
    cases, classes = int(has.any(axis=1).sum()), int(has.any(axis=0).sum())
    share = np.divide(
        cases, has.sum(axis=0) * classes, where=has.any(axis=0), out=np.zeros(len(has.T))
    )
    weighed = np.where(has, values, 0.0) @ share
    return np.where(has.any(axis=1), weighed, np.nan)


def rare_classes(frame: pd.DataFrame, metric: str) -> dict[str, int]:
    """Return the classes with so few cases that an interval by class may be too narrow."""
    if metric in frame or metric not in {"auroc", "balanced_accuracy"}:
        return {}
    names = [str(name).removeprefix(_SCORE) for name in _scores(frame).columns]
    counts = np.bincount(frame["target"].to_numpy(dtype=np.int64), minlength=len(names))
    return {name: int(count) for name, count in zip(names, counts, strict=False) if count < _ENOUGH}


def _scores(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.loc[:, [name for name in frame.columns if str(name).startswith(_SCORE)]]

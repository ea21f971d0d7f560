"""Predictions of several trials brought to the same cases."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medtransfer.analysis.layouts import Common, Layouts, identified
from medtransfer.analysis.statistics.case_values import CASE_METRICS, case_values
from medtransfer.analysis.statistics.intervals import Interval, two_way_interval
from medtransfer.analysis.statistics.paired_tests import corrected_resampled_t

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from medtransfer.analysis.layouts import Layout
    from medtransfer.analysis.load import Study, Trial
    from medtransfer.analysis.statistics.case_values import Floats

    Values = Callable[[pd.DataFrame], Floats]

TRAINED = "medtransfer.n_train"
_SCORE, _TARGET = "score_", "target_"
# The cases of a class from which on a normal approximation within the class is fair.
_ENOUGH = 10


@dataclass(frozen=True)
class Matrix:
    """Values of a metric, shape (cases, trials), and the patient of each case.

    Without values per case it has one row, the trials' metrics, and no groups.

    Attributes:
        dropped: Cases that some trial lacks.
        sizes: Cases for training and for testing, where each seed has a split of its own.
    """

    values: Floats
    groups: NDArray[np.generic] | None
    dropped: int = 0
    sizes: tuple[int, int] | None = None

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
        if self.sizes is not None:
            return corrected_resampled_t(self.values[0], *self.sizes)
        return two_way_interval(self.values, self.groups)

    def minus_second_half(self) -> Matrix:
        """Pair the first half of the trials with the second."""
        half = self.values.shape[1] // 2
        return replace(self, values=self.values[:, :half] - self.values[:, half:])


class Cases:
    """What trials predicted, each read once, as values of a metric on the cases that they share.

    Args:
        read: From a trial to its predictions; None where it has none.
        metric: What the values are of.
    """

    def __init__(self, read: Callable[[Trial], pd.DataFrame | None], metric: str) -> None:
        self._read = read
        self._metric = metric
        self._layouts = Layouts(functools.partial(rare_classes, metric=metric))
        self._of: dict[str, tuple[Layout, NDArray[np.intp]] | None] = {}
        self._values: dict[tuple[str, Common | None], Floats] = {}

    @classmethod
    def of(cls, study: Study, split: str = "test") -> Cases:
        """Return those of a study's own metric."""
        return cls(lambda trial: study.predictions(trial.run_id, split), study.metric)

    def layout(self, trial: Trial) -> Layout | None:
        """Return a trial's cases; None where its predictions tell nothing of the metric."""
        if trial.run_id not in self._of:
            frame = self._read(trial)
            if frame is None or not _tells(frame, self._metric):
                self._of[trial.run_id] = None
            else:  # the values too, now that the predictions are at hand
                self._of[trial.run_id] = _, rows = self._layouts.of(frame)
                self._values[trial.run_id, None] = values_of(_taken(frame, rows), self._metric)
        found = self._of[trial.run_id]
        return None if found is None else found[0]

    def values(self, trial: Trial) -> Floats:
        """Return the values of all of a trial's cases, in the order of its layout."""
        self.layout(trial)
        return self._values[trial.run_id, None]

    def matrix(self, trials: Sequence[Trial]) -> Matrix:
        """Return the values of the trials on the cases that all of them have.

        Falls back to one row of the trials' metrics where predictions are lacking, or where the
        trials were tested on different splits: then cases and seeds are not crossed. The splits
        share training cases, which the interval takes into account.
        """
        layouts = list(dict.fromkeys(found for t in trials if (found := self.layout(t))))
        crossed = len({trial.split_hash for trial in trials}) == 1
        if not crossed or any(self._of[trial.run_id] is None for trial in trials):
            row = np.array([[trial.metrics[self._metric] for trial in trials]])
            return Matrix(row, None, sizes=None if crossed else self._sizes(trials))
        if len(layouts) == 1:
            groups, total = layouts[0].groups, len(layouts[0].index)
            columns = [self._values[trial.run_id, None] for trial in trials]
        else:
            common = self._layouts.common(layouts)
            groups, total = common.groups, common.total
            columns = [self._on(trial, common) for trial in trials]
        values = np.column_stack(columns)
        # A per-image metric may be undefined, as Dice is where there is nothing and nothing is
        # found.
        has = np.isfinite(values)
        if has.all():
            return Matrix(values, groups, total - len(values))
        defined = has.any(axis=1)
        kept = int(defined.sum())
        return Matrix(_filled(values[defined]), groups[defined], total - kept)

    def _sizes(self, trials: Sequence[Trial]) -> tuple[int, int] | None:
        """Return the mean number of training and of test cases, if all of them are known."""
        trained = [int(trial.tags.get(TRAINED, 0)) for trial in trials]
        tested = [len(layout.index) for t in trials if (layout := self.layout(t)) is not None]
        if not trained or not all(trained) or len(tested) < len(trials):
            return None
        return round(float(np.mean(trained))), round(float(np.mean(tested)))

    def _on(self, trial: Trial, common: Common) -> Floats:
        key = (trial.run_id, common)
        if key not in self._values:
            frame, found = self._read(trial), self._of[trial.run_id]
            assert frame is not None
            assert found is not None
            layout, rows = found
            frame = _taken(frame, rows[common.places[layout]])
            self._values[key] = values_of(frame, self._metric)
        return self._values[key]


def case_frame(study: Study, trial: Trial, split: str = "test") -> pd.DataFrame | None:
    """Return a trial's predictions, one row a case; None where the metric has no case values.

    Two trials share a case when both its id and its target agree. A case listed twice, as the
    padding of a distributed sampler does, counts once.
    """
    frame = study.predictions(trial.run_id, split)
    if frame is None or not _tells(frame, study.metric):
        return None
    return identified(frame)


def matrix(
    trials: Sequence[Trial], frames: Mapping[str, pd.DataFrame | None], metric: str
) -> Matrix:
    """Return the values of trials whose frames, by run id, are at hand; see `Cases.matrix`."""
    return Cases(lambda trial: frames[trial.run_id], metric).matrix(trials)


def _taken(frame: pd.DataFrame, rows: NDArray[np.intp]) -> pd.DataFrame:
    """Return these rows, at no cost where they are all of them in their order."""
    return frame if np.array_equal(rows, np.arange(len(frame))) else frame.iloc[rows]


def _tells(frame: pd.DataFrame, metric: str) -> bool:
    return metric in frame or metric in CASE_METRICS


def _filled(values: Floats) -> Floats:
    """Return values (cases, trials) without gaps whose means are those of each trial's own cases.

    A case without a value pulls its trial's mean nowhere, the others pull as before. Were it left
    out, a false alarm in an image that shows nothing would count only where all trials raise one.
    """
    has = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(has, values, 0.0).sum(axis=0) / has.sum(axis=0)
        pulls = np.where(has, values - means, 0.0) * (len(values) / has.sum(axis=0))
    return np.asarray(means + pulls)


def values_of(frame: pd.DataFrame, metric: str) -> Floats:
    """Return the values of a frame's cases; a column named like the metric holds them already."""
    by_class = [name for name in frame if str(name).startswith(f"{metric}_")]
    if metric in frame and len(by_class) > 1:
        return _class_means(frame[by_class].to_numpy(dtype=np.float64))
    if metric in frame:
        return frame[metric].to_numpy(dtype=np.float64)
    if "target" not in frame:
        return _class_means(_by_label(frame, metric))
    scores = np.column_stack([frame[name].to_numpy() for name in _scores(frame)])
    return case_values(metric, frame["target"].to_numpy(), scores)


def _by_label(frame: pd.DataFrame, metric: str) -> Floats:
    """Return values of each case and label, (n, L); NaN where nobody knows whether it holds."""
    names = [str(n).removeprefix(_TARGET) for n in frame if str(n).startswith(_TARGET)]
    values = np.full((len(frame), len(names)), np.nan)
    for k, name in enumerate(names):
        target, score = frame[f"{_TARGET}{name}"].to_numpy(), frame[f"{_SCORE}{name}"].to_numpy()
        known = target >= 0
        pair = np.column_stack([1 - score[known], score[known]])
        values[known, k] = case_values(metric, target[known], pair)
    return values


def _class_means(values: Floats) -> Floats:
    """Return one value per case whose mean is the mean over classes of their means over cases.

    How far a case lies from the mean of its class counts the more, the fewer cases the class has:
    class sizes are a fact about the test set, not a source of error.

    Args:
        values: Of each case and class, (n, K); NaN where a case has no say.
    """
    has = np.isfinite(values)
    cases, counts = int(has.any(axis=1).sum()), has.sum(axis=0)
    present = counts > 0
    if not present.any():
        return np.full(len(values), np.nan)
    found, has = values[:, present], has[:, present]
    means = np.where(has, found, 0.0).sum(axis=0) / counts[present]
    pulls = np.where(has, found - means, 0.0) @ (cases / (counts[present] * present.sum()))
    return np.where(has.any(axis=1), means.mean() + pulls, np.nan)


def rare_classes(frame: pd.DataFrame, metric: str) -> dict[str, int]:
    """Return the classes with so few cases that an interval by class may be too narrow."""
    if metric in frame or metric not in {"auroc", "balanced_accuracy"}:
        return {}
    names = [name.removeprefix(_SCORE) for name in _scores(frame)]
    if "target" in frame:
        counts = np.bincount(frame["target"].to_numpy(dtype=np.int64), minlength=len(names))
    else:  # of a label, the rarer of its two values
        targets = frame[[f"{_TARGET}{name}" for name in names]].to_numpy()
        counts = np.minimum((targets == 0).sum(axis=0), (targets == 1).sum(axis=0))
    return {name: int(count) for name, count in zip(names, counts, strict=False) if count < _ENOUGH}


def _scores(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame if str(name).startswith(_SCORE)]

"""The grid of arms, settings of the data axes and seeds, and what is missing from it."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medtransfer.analysis.load import Study, Trial

    Setting = tuple[tuple[str, str], ...]

_ENDINGS = {"FAILED": "failed", "KILLED": "was killed", "RUNNING": "is still running"}


@dataclass(frozen=True)
class Cell:
    """An arm under one setting of the data axes.

    Args:
        trials: The trials that ended with the study's metric, by seed.
        failed: Trials that failed or were killed.
        missing: What became of the seeds that other cells of the study have and this one lacks.
    """

    arm: str
    axes: Mapping[str, str]
    trials: Mapping[int | None, Trial]
    failed: int
    missing: tuple[str, ...]

    @property
    def label(self) -> str:
        """The arm, and the setting where there is one."""
        return f"{self.arm} @ {where(self.axes)}" if self.axes else self.arm


def cells(study: Study, split: str = "test") -> list[list[Cell]]:
    """Return the cells of each setting; settings and arms in order, the grid filled up.

    Args:
        study: Its trials have the metrics of `split`.
        split: How the metrics are called where one is missing.
    """
    settings = sorted({tuple(trial.axes.items()) for trial in study.trials}, key=natural)
    arms = sorted({trial.arm for trial in study.trials})
    seeds = sorted({trial.seed for trial in study.trials}, key=lambda s: -inf if s is None else s)
    at = {(t.arm, tuple(t.axes.items()), t.seed): t for t in study.trials}
    metric = f"{split}/{study.metric}"

    def cell(arm: str, setting: Setting) -> Cell:
        trials = {seed: at.get((arm, setting, seed)) for seed in seeds}
        endings = {seed: _ending(trial, metric) for seed, trial in trials.items()}
        return Cell(
            arm=arm,
            axes=dict(setting),
            trials={seed: t for seed, t in trials.items() if t and not endings[seed]},
            failed=sum(t is not None and t.status in {"FAILED", "KILLED"} for t in trials.values()),
            missing=tuple(f"seed {seed} {end}" for seed, end in endings.items() if end),
        )

    return [[cell(arm, setting) for arm in arms] for setting in settings]


def where(axes: Mapping[str, str]) -> str:
    """Return a setting in words, `dataset.fraction=0.1, dataset=busi`."""
    return ", ".join(f"{key}={value}" for key, value in axes.items())


def _ending(trial: Trial | None, metric: str) -> str:
    """Return why there is no value of the metric `<split>/<name>`; empty where there is one."""
    if trial is None:
        return "is missing"
    if trial.status != "FINISHED":
        return _ENDINGS.get(trial.status, trial.status.lower())
    return "" if metric.partition("/")[2] in trial.metrics else f"finished without {metric}"


def same(declared: object, value: str) -> bool:
    """Return whether a declared value of an axis, such as 1.0, is that of a trial, such as "1"."""
    text = str(declared)
    return text == value or (_number(text) == _number(value) < inf)


def natural(setting: Setting) -> list[tuple[str, float, str]]:
    """Order 0.1 before 0.25 before 1, and numbers before words."""
    return [(key, _number(value), value) for key, value in setting]


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return inf

"""Everything beyond intervals that a report shows of the arms under one setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtransfer.analysis.details import charts
from medtransfer.analysis.details.calibration import (
    Probabilities,
    calibration_row,
    temperature_of,
)
from medtransfer.analysis.details.parts import Details
from medtransfer.analysis.details.spread import case_table, has_boxes, spreads
from medtransfer.analysis.details.subgroups import subgroups
from medtransfer.analysis.details.worst import worst

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from medtransfer.analysis.load import Study, Trial


def details(study: Study, setting: Mapping[str, str], arms: Sequence[str]) -> Details:
    """Read the finished trials of these arms under the setting, and return what they show.

    An arm whose trials have no predictions is in the spread over seeds alone.

    Args:
        study: The study.
        setting: Values of all of its data axes.
        arms: Names, in the order in which they are shown.
    """
    trials = {arm: _finished(study, setting, arm) for arm in arms}
    frames: dict[str, pd.DataFrame] = {}
    for trial in (trial for each in trials.values() for trial in each):
        if (frame := _cases(study.predictions(trial.run_id))) is not None:
            frames[trial.run_id] = frame
    having = {arm: [t for t in each if t.run_id in frames] for arm, each in trials.items()}
    tables = {arm: [frames[t.run_id] for t in each] for arm, each in having.items()}

    said = {run: p for run, frame in frames.items() if (p := Probabilities.of(frame)) is not None}
    runs = {arm: [t.run_id for t in each if t.run_id in said] for arm, each in having.items()}
    stated = {arm: [said[run] for run in each] for arm, each in runs.items() if each}
    warmth = {arm: _temperatures(study, runs[arm]) for arm in stated}
    scaled = {
        arm: [p.scaled(t) for p, t in zip(stated[arm], found, strict=True)]
        for arm, found in warmth.items()
        if found is not None
    }
    boxes = {
        arm: [(found, frames[t.run_id]) for t in each if (found := _boxes(study, t)) is not None]
        for arm, each in having.items()
        if all(map(has_boxes, tables[arm]))
    }
    drawn = (
        charts.roc(stated),
        charts.pr(stated),
        charts.decision(stated),
        charts.reliability(stated),
        charts.reliability(scaled, scaled=True),
        charts.froc(boxes),
    )
    of, cases = case_table(tables, study.metric)
    scores = {
        arm: [t.metrics[study.metric] for t in each if study.metric in t.metrics]
        for arm, each in trials.items()
    }
    return Details(
        setting=dict(setting),
        charts=tuple(chart for chart in drawn if chart is not None),
        calibration=tuple(calibration_row(arm, p, warmth[arm]) for arm, p in stated.items()),
        subgroups=subgroups(having, frames, study.metric),
        spread=spreads(scores, study.metric, of, cases),
        worst=worst(of, cases, tables),
    )


def _finished(study: Study, setting: Mapping[str, str], arm: str) -> list[Trial]:
    """Return the finished trials of an arm by their seeds."""
    found = [
        trial
        for trial in study.trials
        if (trial.arm, trial.status) == (arm, "FINISHED") and dict(trial.axes) == dict(setting)
    ]
    return sorted(found, key=lambda trial: -1 if trial.seed is None else trial.seed)


def _cases(frame: pd.DataFrame | None) -> pd.DataFrame | None:
    """Return predictions with each case once, in the order of their ids; an exam may be a case."""
    if frame is None:
        return None
    case = frame["sample_id"]
    if "exam_id" in frame:
        case = case.fillna(frame["exam_id"])
    group = frame["group_id"].fillna(case) if "group_id" in frame else case
    frame = frame.assign(sample_id=case.astype(str), group_id=group.astype(str))
    return frame.drop_duplicates("sample_id").sort_values("sample_id", ignore_index=True)


def _boxes(study: Study, trial: Trial) -> pd.DataFrame | None:
    """Return the detections in a trial's test images, which stand beside its predictions."""
    return study.predictions(trial.run_id, "detections")


def _temperatures(study: Study, runs: Sequence[str]) -> list[float] | None:
    """Return the temperature of each trial; None unless all have validation predictions."""
    frames = [_cases(study.predictions(run, "val")) for run in runs]
    stated = [p for each in frames if each is not None and (p := Probabilities.of(each))]
    return [temperature_of(p) for p in stated] if len(stated) == len(runs) else None

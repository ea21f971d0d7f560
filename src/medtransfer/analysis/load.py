"""Read a study from its ledger or from MLflow: its trials from the tags, predictions on demand."""

from __future__ import annotations

import difflib
import functools
import json
import re
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any, Protocol

from medtransfer.analysis.sources import from_ledger, from_store, in_store
from medtransfer.analysis.statistics.average_precision import Matched, case_values
from medtransfer.errors import StoreError
from medtransfer.tracking import records
from medtransfer.tracking.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from medtransfer.analysis.sources import Read, Row

DEFAULT_ROPE = 0.01
_TAG = "medtransfer."
# The headline metric of a run that names none, in the order of preference of the tasks.
_HEADLINES = ("auroc", "balanced_accuracy", "accuracy", "dice", "map")
_KEPT = 512  # tables in memory


class Predictions(Protocol):
    """Where the predictions of a study's trials are read from."""

    def __call__(self, run_id: str, split: str = "test", /) -> pd.DataFrame | None:
        """Return a trial's predictions of a split, one row a case; None where it has none."""


@dataclass(frozen=True)
class Trial:
    """One training run.

    Args:
        axes: The values of the data axes that were swept, e.g. `{"dataset.fraction": "0.1"}`.
        status: `FINISHED`, `FAILED`, `KILLED` or `RUNNING`.
        metrics: The test metrics, without the leading `test/`.
        cost: The costs, without the leading `cost/`.
        failure: One line on why it failed; empty where it did not.
        tags: All tags of the run.
        external: The metrics on another site's data, without the leading `external/`.
        best: Those on validation data in the selected epoch, without the leading `best/`.
        settings: What was tuned: for a tuning trial what was drawn, for a final one what was
            chosen.
        draw: The number of a tuning trial within its cell.
    """

    run_id: str
    arm: str
    axes: Mapping[str, str]
    seed: int | None
    status: str
    split_hash: str | None
    metrics: Mapping[str, float]
    cost: Mapping[str, float]
    failure: str
    tags: Mapping[str, str] = field(repr=False)
    external: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    draw: int | None = None


@dataclass(frozen=True)
class Study:
    """The trials to compare; of a trial that was retried only the attempt that counts.

    Args:
        run_id: The parent run, or the trial itself for a standalone trial.
        metric: The headline metric, such as `auroc`.
        rope: Differences up to this size do not matter.
        predictions: From a run id, and a split other than `test`, to its predictions.
        notes: What a reader must know about the data, and about how the trials were found.
        waivers: Leaks in the data that the study was allowed to run with.
        protocol: What the study declared before it ran; empty where it declared nothing.
        tuning: The trials that chose the settings of those to compare, on validation data.
        replaced: Attempts that do not count, which have cost all the same.
        environment: Versions and machine of the first finished trial.
    """

    study_id: str
    name: str
    run_id: str
    metric: str
    rope: float
    trials: tuple[Trial, ...]
    predictions: Predictions = field(repr=False, compare=False)
    notes: tuple[str, ...] = ()
    waivers: tuple[str, ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    tuning: tuple[Trial, ...] = ()
    replaced: tuple[Trial, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)


def load_study(
    client: MlflowClient, study: str, ledger: Callable[[str], Path] | None = None
) -> Study:
    """Return the study, or the single trial, that `study` names.

    Args:
        client: A client of the store to read.
        study: A study id, the run name or run id of a study's parent run, or the run id of a
            trial. Of several studies with one name the newest is taken, and a note says so.
        ledger: From a study id to the folder of its ledger, which is read instead of the store
            where it holds all trials of the study.

    Raises:
        StoreError: Nothing in the store goes by that name.
    """
    parents = records.search(client, f"tags.`{_TAG}phase` = 'study'")
    ids = [_study_id(run) for run in parents if study in (run.info.run_id, _study_id(run))]
    ids = ids or [_study_id(run) for run in parents if run.info.run_name == study]
    if not ids:
        return _standalone(client, study, parents)
    notes = []
    if others := sorted(set(ids) - {ids[0]}):
        notes.append(
            f"'{study}' names {len(others) + 1} studies; this is the newest, {ids[0]}, "
            f"not {' or '.join(others)}"
        )
    # A study resumed under a second parent run is still one study.
    chosen = [run for run in parents if _study_id(run) == ids[0]]
    found = None if ledger is None else from_ledger(client, chosen, Ledger(ledger(ids[0])))
    rows, read = found or from_store(client, chosen)
    return _study(client, chosen[0], rows, read, notes)


def parents_of(client: MlflowClient, study_id: str) -> list[str]:
    """Return the ids of a study's parent runs, newest first."""
    query = f"tags.`{_TAG}study_id` = '{study_id}' and tags.`{_TAG}phase` = 'study'"
    return [run.info.run_id for run in records.search(client, query)]


def _standalone(client: MlflowClient, run_id: str, parents: Sequence[Run]) -> Study:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        run = None
    if run is None or f"{_TAG}phase" not in run.data.tags or run.info.lifecycle_stage != "active":
        names = list(dict.fromkeys(str(run.info.run_name) for run in parents))
        known = [*names, *map(_study_id, parents)]
        raise StoreError(
            f"'{run_id}' is unknown: no study's id or name, and no run id",
            value=run_id,
            choices=difflib.get_close_matches(run_id, known, n=5, cutoff=0.4) or names[:5],
            remedy="medtransfer ui shows what the store holds",
        )
    return _study(
        client,
        run,
        [{**records.row(run), f"{records.TAG}{_TAG}phase": "final"}],
        in_store(client),
        [],
    )


def _study(
    client: MlflowClient, run: Run, rows: Iterable[Row], read: Read, notes: list[str]
) -> Study:
    tags = run.data.tags
    attempts: dict[str, list[Row]] = {"final": [], "tuning": []}
    for row in rows:
        # other runs of a study, such as its summaries, are no trials
        attempts.get(str(row.get(f"{records.TAG}{_TAG}phase")), []).append(row)
    trials, replaced = _counting(attempts["final"])
    tuning, earlier = _counting(attempts["tuning"])
    if replaced or earlier:
        notes.append(f"earlier attempts replaced by a retry: {len(replaced) + len(earlier)}")
    found = {name for trial in trials for name in trial.metrics}
    metric = tags.get(f"{_TAG}metric") or next(
        (name for name in (*_HEADLINES, *sorted(found)) if name in found), _HEADLINES[0]
    )
    return Study(
        study_id=_study_id(run),
        name=run.info.run_name,
        run_id=run.info.run_id,
        metric=metric,
        rope=float(tags.get(f"{_TAG}rope") or DEFAULT_ROPE),
        trials=tuple(trials),
        predictions=functools.lru_cache(_KEPT)(functools.partial(_predictions, read)),
        notes=(*_listed(tags, "notes"), *notes),
        waivers=_listed(tags, "waivers"),
        protocol=json.loads(tags.get(f"{_TAG}protocol", "{}")),
        tuning=tuple(tuning),
        replaced=(*replaced, *earlier),
        environment=_environment(client, trials),
    )


def _environment(client: MlflowClient, trials: Sequence[Trial]) -> dict[str, Any]:
    first = next((trial.run_id for trial in trials if trial.status == "FINISHED"), None)
    return (records.document(client, first, "environment.json") if first else None) or {}


def _listed(tags: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(json.loads(tags.get(f"{_TAG}{name}", "[]")))


def _counting(rows: Sequence[Row]) -> tuple[list[Trial], list[Trial]]:
    """Keep of each arm, cell, seed and draw the latest finished attempt, else the latest.

    Returns:
        Those, in order, and the others.
    """
    attempts = sorted(rows, key=lambda row: (row["status"] == "FINISHED", row["start_time"]))
    trials = [_trial(row) for row in attempts]
    latest = {(t.arm, tuple(t.axes.items()), t.seed, t.draw): t for t in trials}
    kept = {trial.run_id for trial in latest.values()}
    order = sorted(latest.values(), key=_place)
    return order, [trial for trial in trials if trial.run_id not in kept]


def _place(trial: Trial) -> tuple[Any, ...]:
    numbers = (-1 if each is None else each for each in (trial.seed, trial.draw))
    return trial.arm, *trial.axes.items(), ("", ""), *numbers


def _trial(row: Row) -> Trial:
    tags = records.under(records.TAG, row)
    metrics = records.under(records.METRIC, row)
    arm = tags.get(f"{_TAG}arm") or tags.get("mlflow.runName", "")
    return Trial(
        run_id=row["run_id"],
        arm=arm,
        axes=_axes(tags.get(f"{_TAG}cell", "").removeprefix(arm)),
        seed=_whole(tags.get(f"{_TAG}seed")),
        status=row["status"],
        split_hash=tags.get(f"{_TAG}split_hash"),
        metrics=_under("test/", metrics),
        cost=_under("cost/", metrics),
        failure=_failure(row["status"], tags),
        tags=tags,
        external=_under("external/", metrics),
        best=_under("best/", metrics),
        settings=json.loads(tags.get(f"{_TAG}settings") or "{}"),
        draw=_whole(tags.get(f"{_TAG}draw")),
    )


def _failure(status: str, tags: Mapping[str, str]) -> str:
    if status not in {"FAILED", "KILLED"}:
        return ""
    return tags.get(f"{_TAG}failure") or f"{status.lower()}, no reason recorded"


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.lstrip("-").isdigit() else None


def _axes(cell: str) -> dict[str, str]:
    """Read ` @ dataset.fraction=0.1, dataset=busi`; a value may itself hold commas."""
    pairs = re.split(r", (?=[\w.@/+-]+=)", cell.removeprefix(" @ "))
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs) if key}


def _under(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix) and isfinite(value)
    }


def _study_id(run: Run) -> str:
    return str(run.data.tags.get(f"{_TAG}study_id") or run.info.run_id)


def _predictions(read: Read, run_id: str, split: str = "test", /) -> pd.DataFrame | None:
    frame = read(run_id, split)
    found = read(run_id, "detections" if split == "test" else f"{split}_detections")
    if frame is not None and found is not None:
        classes = [str(n).removeprefix("truths_") for n in frame if str(n).startswith("truths_")]
        frame = frame.assign(**case_values(Matched.from_frames(found, frame, classes)))
    return frame

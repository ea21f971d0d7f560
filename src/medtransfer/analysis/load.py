"""Read a study from MLflow: its trials from the tags, their predictions on demand."""

from __future__ import annotations

import difflib
import functools
import json
import re
import tempfile
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

import pandas as pd

from medtransfer.analysis.statistics.average_precision import Matched, case_values
from medtransfer.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_ROPE = 0.01
PREDICTIONS = "predictions/test.parquet"
DETECTIONS = "predictions/detections.parquet"
_TAG = "medtransfer."
# The headline metric of a run that names none, in the order of preference of the tasks.
_HEADLINES = ("auroc", "balanced_accuracy", "accuracy", "dice", "map")


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


@dataclass(frozen=True)
class Study:
    """The trials to compare; of a trial that was retried only the attempt that counts.

    Args:
        run_id: The parent run, or the trial itself for a standalone trial.
        metric: The headline metric, such as `auroc`.
        rope: Differences up to this size do not matter.
        predictions: From a run id to its test predictions, one row a case, or None without any.
        notes: What a reader must know about the data, and about how the trials were found.
        waivers: Leaks in the data that the study was allowed to run with.
    """

    study_id: str
    name: str
    run_id: str
    metric: str
    rope: float
    trials: tuple[Trial, ...]
    predictions: Callable[[str], pd.DataFrame | None] = field(repr=False, compare=False)
    notes: tuple[str, ...] = ()
    waivers: tuple[str, ...] = ()


def load_study(client: MlflowClient, study: str) -> Study:
    """Return the study, or the single trial, that `study` names.

    Args:
        client: A client of the store to read.
        study: A study id, the run name or run id of a study's parent run, or the run id of a
            trial. Of several studies with one name the newest is taken, and a note says so.

    Raises:
        StoreError: Nothing in the store goes by that name.
    """
    parents = _search(client, f"tags.`{_TAG}phase` = 'study'")
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
    runs = [
        run
        for parent in chosen
        for run in _search(client, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        if run.data.tags.get(f"{_TAG}phase") == "final"
    ]
    trials = _counting(runs)
    if replaced := len(runs) - len(trials):
        notes.append(f"earlier attempts replaced by a retry: {replaced}")
    return _study(client, chosen[0], trials, notes)


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
    return _study(client, run, [_trial(run)], [])


def _study(client: MlflowClient, run: Run, trials: list[Trial], notes: list[str]) -> Study:
    tags = run.data.tags
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
        predictions=functools.cache(functools.partial(_predictions, client)),
        notes=(*_listed(tags, "notes"), *notes),
        waivers=_listed(tags, "waivers"),
    )


def _listed(tags: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(json.loads(tags.get(f"{_TAG}{name}", "[]")))


def _counting(runs: Sequence[Run]) -> list[Trial]:
    """Keep of each arm, cell and seed the latest finished attempt, else the latest."""
    attempts = sorted(runs, key=lambda run: (run.info.status == "FINISHED", run.info.start_time))
    latest = {
        (trial.arm, tuple(trial.axes.items()), trial.seed): trial for trial in map(_trial, attempts)
    }
    return sorted(
        latest.values(), key=lambda t: (t.arm, *t.axes.items(), -1 if t.seed is None else t.seed)
    )


def _trial(run: Run) -> Trial:
    tags = run.data.tags
    arm = tags.get(f"{_TAG}arm") or run.info.run_name
    seed = tags.get(f"{_TAG}seed", "")
    return Trial(
        run_id=run.info.run_id,
        arm=arm,
        axes=_axes(tags.get(f"{_TAG}cell", "").removeprefix(arm)),
        seed=int(seed) if seed.lstrip("-").isdigit() else None,
        status=run.info.status,
        split_hash=tags.get(f"{_TAG}split_hash"),
        metrics=_under("test/", run.data.metrics),
        cost=_under("cost/", run.data.metrics),
        failure=_failure(run),
        tags=dict(tags),
    )


def _failure(run: Run) -> str:
    if run.info.status not in {"FAILED", "KILLED"}:
        return ""
    return run.data.tags.get(f"{_TAG}failure") or f"{run.info.status.lower()}, no reason recorded"


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


def _search(client: MlflowClient, query: str) -> list[Run]:
    """Return the active runs of all experiments that match, newest first."""
    experiments = [each.experiment_id for each in _pages(client.search_experiments)]
    return list(
        _pages(
            functools.partial(
                client.search_runs, experiments, query, order_by=["attributes.start_time DESC"]
            )
        )
    )


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _predictions(client: MlflowClient, run_id: str) -> pd.DataFrame | None:
    folder = PREDICTIONS.rpartition("/")[0]
    there = {each.path for each in client.list_artifacts(run_id, folder)}
    if PREDICTIONS not in there:
        return None
    frame = _table(client, run_id, PREDICTIONS)
    if DETECTIONS in there:
        classes = [str(n).removeprefix("truths_") for n in frame if str(n).startswith("truths_")]
        matched = Matched.from_frames(_table(client, run_id, DETECTIONS), frame, classes)
        frame = frame.assign(**case_values(matched))
    return frame


def _table(client: MlflowClient, run_id: str, name: str) -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as scratch:
        path = client.download_artifacts(run_id, name, scratch)
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
            raise StoreError(
                f"{name} of run {run_id} cannot be read: {error}",
                remedy="run the trial again: study.resume=true study.retry_failed=true",
            ) from error

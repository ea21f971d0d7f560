"""What a study held before it goes on: trials that ended, and trials that were interrupted."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medtransfer.tracking.parquet import replacing
from medtransfer.tracking.runs import TAG
from medtransfer.tracking.spool import KEY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RANK = ("FINISHED", "KILLED", "FAILED")  # of several runs of one trial the first of these counts


@dataclass(frozen=True)
class Former:
    """A run of a trial.

    Attributes:
        run_id: MLflow's id.
        key: Names what lies of it in local folders.
        status: `FINISHED`, `FAILED` or, of a trial that goes on, `KILLED`.
        failure: Why it failed.
        best: Its metrics `best/...`.
        last_step: The last step whose metrics were logged, where it goes on.
    """

    run_id: str
    key: str
    status: str
    failure: str
    best: dict[str, float]
    last_step: int


def identity(trial_id: str, cell: str, phase: str, draw: object) -> str:
    """Return what tells the trials of a study apart."""
    return json.dumps([trial_id, cell, phase, None if draw is None else str(draw)])


def note_formers(client: MlflowClient, runs: Iterable[Run], path: Path) -> None:
    """Write a file for `formers`: workers need not ask the store then."""
    found: dict[str, Former] = {}
    for run in sorted(runs, key=lambda run: run.info.start_time):
        tags = run.data.tags
        if TAG + "trial_id" not in tags or run.info.status not in RANK:
            continue
        trial_id, cell, phase = (tags[TAG + name] for name in ("trial_id", "cell", "phase"))
        key = identity(trial_id, cell, phase, tags.get(TAG + "draw"))
        other = found.get(key)
        if other is None or RANK.index(run.info.status) <= RANK.index(other.status):
            found[key] = _former(client, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {key: asdict(former) for key, former in found.items()}
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(told), encoding="utf-8")


def formers(path: Path) -> dict[str, Former]:
    """Return the trials that a study held, by their `identity`."""
    return _read(path, path.stat().st_ino)  # a study that goes on again writes another file


@functools.lru_cache(maxsize=1)
def _read(path: Path, inode: int) -> dict[str, Former]:  # noqa: ARG001
    told = json.loads(path.read_text(encoding="utf-8"))
    return {key: Former(**former) for key, former in told.items()}


def _former(client: MlflowClient, run: Run) -> Former:
    tags, last = run.data.tags, -1
    if run.info.status == "KILLED":  # each of its epochs has told the learning rate
        history = client.get_metric_history(run.info.run_id, "train/lr")
        last = max((each.step for each in history), default=-1)
    return Former(
        run_id=run.info.run_id,
        key=tags.get(KEY, run.info.run_id),
        status=run.info.status,
        failure=tags.get(TAG + "failure", ""),
        best={k: v for k, v in run.data.metrics.items() if k.startswith("best/")},
        last_step=last,
    )

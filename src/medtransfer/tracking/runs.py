"""One MLflow run: spoken to by its id, closed whatever happens."""

from __future__ import annotations

import json
import re
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.errors import MedtransferError
from medtransfer.secrets import redact
from medtransfer.tracking.processes import Process
from medtransfer.tracking.store import Store

if TYPE_CHECKING:
    import pandas as pd

PARAM_LENGTH = 6000  # MLflow's own limit
BATCH = 100  # MLflow's own limit on params in one call
TAG = "medtransfer."
REFUSED = re.compile(r"[^\w\-. :/]")  # by MLflow, in the names of metrics and parameters


class Interrupted(BaseException):
    """A signal asked the program to stop.

    Not an Exception, and not a KeyboardInterrupt, which Lightning turns into an exit of its own.

    Args:
        signum: The signal; the exit code is 128 more.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum


class Run:
    """A run in a store.

    All calls name the run's id, never an active run of the process or an environment variable:
    those leak between trials that share a process.

    Args:
        store: Where the run lies.
        run_id: MLflow's id.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self.store = store
        self.run_id = run_id
        self.key = run_id
        """Names what lies of this run in local folders."""
        self.last_step = -1
        """The last step whose metrics are logged already, where a run goes on."""
        self.tables: dict[str, pd.DataFrame] = {}
        """What `frames` has logged."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at one step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(named(k), float(v), now, step) for k, v in values.items()]
        self.store.client.log_batch(self.run_id, metrics=entries)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, nested ones under dotted names."""
        from mlflow.entities import Param

        flat = flatten(values).items()
        entries = [Param(named(k), redact(str(v))[:PARAM_LENGTH]) for k, v in flat]
        for part in _batched(entries):
            self.store.client.log_batch(self.run_id, params=part)

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags `medtransfer.<name>`; None is left out."""
        from mlflow.entities import RunTag

        entries = [RunTag(TAG + k, str(v)) for k, v in values.items() if v is not None]
        for part in _batched(entries):
            self.store.client.log_batch(self.run_id, tags=part)

    def text(self, content: str, name: str) -> None:
        """Write a text artifact."""
        self.store.client.log_text(self.run_id, content, name)

    def json(self, content: Any, name: str) -> None:
        """Write an artifact as indented JSON."""
        self.text(json.dumps(content, indent=2, default=str) + "\n", name)

    def frames(self, tables: Mapping[str, pd.DataFrame], folder: str) -> None:
        """Write tables as Parquet artifacts, and remember them for the ledger."""
        with self.folder(folder) as place:
            for name, table in tables.items():
                table.to_parquet(place / f"{name}.parquet", index=False)
        self.tables |= tables

    @contextmanager
    def folder(self, name: str = "") -> Iterator[Path]:
        """Give a temporary folder whose files become artifacts under `name`."""
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
            self.store.client.log_artifacts(self.run_id, temporary, name or None)

    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self.store.client.set_terminated(self.run_id, status)


@contextmanager
def open_run(
    store: Store,
    name: str,
    tags: Mapping[str, Any],
    parent: str | None = None,
    again: str | None = None,
) -> Iterator[Run]:
    """Create a run, or open one again, and close it: FINISHED, FAILED with its reason, or KILLED.

    Args:
        store: Where.
        name: Shown by MLflow.
        tags: `medtransfer.*` tags, without the prefix.
        parent: Id of the run that this one is nested in.
        again: Id of a run that goes on; None: a new one.
    """
    if again is None:
        # The parent is given outright: MLFLOW_RUN_ID in the environment would override a fluent
        # call.
        nested = {"mlflow.parentRunId": parent} if parent else {}
        created = store.client.create_run(store.experiment_id, run_name=name, tags=nested)
        run = Run(store, created.info.run_id)
    else:
        store.client.update_run(again, status="RUNNING")
        run = Run(store, again)
    status = "FAILED"
    try:
        run.tags({**tags, "process": Process.this()})
        yield run
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    except BaseException as error:
        run.tags({"failure": reason(error)})
        run.text(redact(traceback.format_exc()), "traceback.txt")
        raise
    finally:
        run.end(status)


def named(name: str) -> str:
    """Return a name as MLflow takes it: what it refuses, such as brackets, becomes `_`."""
    return REFUSED.sub("_", name)


def reason(error: BaseException) -> str:
    """Return one line that says what went wrong."""
    if isinstance(error, MedtransferError):
        return redact(error.problem)
    lines = str(error).strip().splitlines()
    return redact(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one level with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _batched(entries: list[Any]) -> Iterator[list[Any]]:
    return (entries[i : i + BATCH] for i in range(0, len(entries), BATCH))

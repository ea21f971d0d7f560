"""One MLflow run: spoken to by its id, closed whatever happens."""

from __future__ import annotations

import json
import re
import secrets
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medtransfer.errors import MedtransferError, UndeliveredError
from medtransfer.secrets import redact, redacted
from medtransfer.tracking.courier import PATIENCE, Courier
from medtransfer.tracking.processes import Process
from medtransfer.tracking.spool import KEY, Spool, now
from medtransfer.tracking.store import Store

if TYPE_CHECKING:
    import pandas as pd

PARAM_LENGTH = 6000  # MLflow's own limit
TAG = "medtransfer."
REFUSED = re.compile(r"[^\w\-. :/]")  # by MLflow, in the names of metrics and parameters
PARENT = "mlflow.parentRunId"
FAREWELL = 5.0  # seconds that the store may not answer when the program is interrupted


class Interrupted(BaseException):
    """A signal asked the program to stop.

    Not an Exception, and not a KeyboardInterrupt, which Lightning turns into an exit of its own.

    Args:
        signum: The signal; the exit code is 128 more.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)  # as it is: exceptions are made anew from it between processes
        self.signum = signum

    def __str__(self) -> str:
        return f"interrupted by signal {self.signum}"


@dataclass(frozen=True)
class Earlier:
    """A run that goes on.

    Attributes:
        run_id: MLflow's id.
        key: Names what lies of it in local folders.
        last_step: The last step whose metrics are logged already.
    """

    run_id: str
    key: str
    last_step: int = -1


class Run:
    """A run in a store.

    What it is told goes to a log on disk, from which a thread brings it to the store: no method
    waits for the store, but for `run_id`. All calls name the run, never an active run of the
    process or an environment variable: those leak between trials that share a process.

    Args:
        store: Where the run lies.
        spool: Its log.
        last_step: The last step whose metrics are logged already, where a run goes on.
    """

    def __init__(self, store: Store, spool: Spool, last_step: int = -1) -> None:
        self.store = store
        self.key = spool.key
        """Names what lies of this run in local folders."""
        self.last_step = last_step
        self.blocked = 0.0
        """Seconds that the program has spent on telling."""
        self.tables: dict[str, pd.DataFrame] = {}
        """What `frames` has logged."""
        self.spool = spool

    @property
    def run_id(self) -> str:
        """MLflow's id; waits until there is one.

        Raises:
            UndeliveredError: If the store does not answer.
        """
        if self.spool.run_id is None:
            with self._timed():
                self.settle(until=lambda: self.spool.run_id is not None)
        assert self.spool.run_id is not None
        return self.spool.run_id

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at one step."""
        at = now()
        self._put("metrics", [[named(k), float(v), at, step] for k, v in values.items()])

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters, nested ones under dotted names; what a run has already stays."""
        flat = flatten(values).items()
        # redacted before it is cut: of half a secret nobody would know that it is one
        self._put("params", {named(k): redact(str(v))[:PARAM_LENGTH] for k, v in flat})

    def tags(self, values: Mapping[str, Any]) -> None:
        """Set tags `medtransfer.<name>`; None is left out."""
        self.label(prefixed(values))

    def label(self, values: Mapping[str, str]) -> None:
        """Set tags under their full names."""
        self._put("tags", redacted(dict(values)))

    def text(self, content: str, name: str) -> None:
        """Write a text artifact."""
        folder, _, file = name.rpartition("/")
        with self.folder(folder) as place, self._timed():
            (place / file).write_text(redact(content), encoding="utf-8")

    def json(self, content: Any, name: str) -> None:
        """Write an artifact as indented JSON."""
        self.text(json.dumps(redacted(content), indent=2, default=str) + "\n", name)

    def frames(self, tables: Mapping[str, pd.DataFrame], folder: str) -> None:
        """Write tables as Parquet artifacts, and remember them for the ledger."""
        with self.folder(folder) as place, self._timed():
            for name, table in tables.items():
                table.to_parquet(place / f"{name}.parquet", index=False)
        self.tables |= tables

    @contextmanager
    def folder(self, name: str = "") -> Iterator[Path]:
        """Give a folder whose files become artifacts under `name`."""
        with self.spool.artifacts(name) as place:
            yield place

    def end(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        self._put("end", [status, now()])

    def settle(self, until: Callable[[], bool] | None = None, patience: float = PATIENCE) -> None:
        """Wait until the store knows all of a run that has ended.

        Args:
            until: What is waited for instead.
            patience: Seconds that the store may not answer.

        Raises:
            UndeliveredError: If the store does not answer, or refuses the run.
        """
        courier = Courier.of(self.store)
        courier.wait(self.spool, until or (lambda: courier.delivered(self.spool)), patience)

    def _put(self, operation: str, value: Any) -> None:
        with self._timed():
            self.spool.put(operation, value)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.blocked += time.perf_counter() - started


@contextmanager
def open_run(
    store: Store,
    name: str,
    tags: Mapping[str, Any],
    parent: str | None = None,
    again: Earlier | None = None,
    *,
    wait: bool = True,
    ended: Callable[[Run], None] | None = None,
) -> Iterator[Run]:
    """Create a run, or open one again, and close it: FINISHED, FAILED with its reason, or KILLED.

    Args:
        store: Where.
        name: Shown by MLflow.
        tags: `medtransfer.*` tags, without the prefix.
        parent: Id of the run that this one is nested in.
        again: A run that goes on; None: a new one.
        wait: Whether to wait at the end until the store knows all.
        ended: Called once it does, in another thread.

    Raises:
        UndeliveredError: If that is waited for, and the store does not answer.
    """
    told = prefixed({**tags, "process": Process.this()})
    run = _begin(store, name, told, parent=parent, again=again)
    Courier.of(store).take(run.spool, None if ended is None else lambda _: ended(run))
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt):
        status, wait = "KILLED", True  # this process will not be there to tell it later
        raise
    except BaseException as error:
        with suppress(OSError):  # a full disk is what may have failed
            run.tags({"failure": reason(error)})
            run.text(redact(traceback.format_exc()), "traceback.txt")
        raise
    finally:
        _close(run, status)
        if wait and status == "FINISHED":
            run.settle()
        elif wait:
            with suppress(UndeliveredError):  # what ended it matters more
                run.settle(patience=FAREWELL)


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


def prefixed(values: Mapping[str, Any]) -> dict[str, str]:
    """Return tags under their full names, without those that are None."""
    return {TAG + name: str(value) for name, value in values.items() if value is not None}


def _begin(
    store: Store, name: str, tags: dict[str, str], *, parent: str | None, again: Earlier | None
) -> Run:
    if again is not None:
        run = Run(store, Spool.begin(store, again.key, parent), again.last_step)
        run.spool.put("again", again.run_id)
        run.label(tags)
        return run
    run = Run(store, Spool.begin(store, secrets.token_hex(16), parent))
    # all at once: whoever dies now leaves no run that nobody knows
    tags = tags | {KEY: run.key} | ({PARENT: parent} if parent else {})
    where = {"experiment_id": store.experiment_id, "name": name, "start": now()}
    run.spool.put("create", redacted({**where, "tags": tags}))
    return run


def _close(run: Run, status: str) -> None:
    """End a run; where no more can be written here, tell the store at once."""
    try:
        run.end(status)
    except OSError:
        with suppress(Exception):  # it may be full too
            run.store.client.set_terminated(run.run_id, "FAILED")
        raise

"""A write-ahead log for each run: what it has to say lies on disk until the store has taken it.

    <key>/about.json   the store, the process and the parent run
    <key>/log.jsonl    an entry a line, {operation: value}
    <key>/taken.json   how much of the log the store has, and the run's id there
    <key>/files/N/     artifacts of an entry

An entry may be sent twice, as when a server dies before it answers, and counts once: metrics keep
the time at which they were written, a run is looked for by its key before it is created again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from medtransfer.errors import Note
from medtransfer.secrets import redact
from medtransfer.tracking.processes import DIED, FAILURE, SILENCE, Process

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from medtransfer.tracking.store import Store

KEY = "medtransfer.key"
"""The tag that tells a run apart before the store has given it an id."""

METRICS = 1000  # MLflow's own limit on metrics in one call
PARAMS = 100  # on params, and on tags
TAIL = 200  # bytes, more than the end of a run takes
_LOG, _TAKEN, _ABOUT, _CREATING = "log.jsonl", "taken.json", "about.json", "creating"

Entry = tuple[str, Any]
"""An operation and its value."""


class Refused(Exception):  # noqa: N818
    """The store answers, and will never take an entry: its run was deleted, say."""


class Spool:
    """The log of one run. One process writes it; any may deliver it, one at a time.

    Args:
        folder: Where it lies; its name is the run's key.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = 0
        self._run_id: str | None = None

    @classmethod
    def begin(cls, store: Store, key: str, parent: str | None) -> Spool:
        """Make the log of a run that is created, or goes on."""
        folder = store.spool / key
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        about = {"store": redact(store.uri), "process": str(Process.this()), "parent": parent}
        (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
        return cls(folder)

    @property
    def key(self) -> str:
        """What tells the run apart from all others."""
        return self.folder.name

    @property
    def about(self) -> dict[str, Any]:
        """Which store the run is for, which process writes, and the run that it is nested in."""
        return _read(self.folder / _ABOUT)

    @property
    def run_id(self) -> str | None:
        """The run's id in the store; None before it was created there."""
        self._run_id = self._run_id or _read(self.folder / _TAKEN).get("run_id")
        return self._run_id

    @property
    def process(self) -> Process | None:
        """The process that writes."""
        return Process.parse(self.about.get("process", ""))

    @property
    def abandoned(self) -> bool:
        """Whether the process that wrote is no more; one of another machine gives signs of life."""
        process = self.process
        if process is None or process.here:
            return process is None or process.gone
        return time.time() - (self.folder / _ABOUT).stat().st_mtime > SILENCE

    @property
    def mine(self) -> bool:
        """Whether this process writes it."""
        return self.about.get("process") == str(Process.this())

    def beat(self) -> None:
        """Give a sign of life."""
        os.utime(self.folder / _ABOUT)

    def close(self) -> None:
        """End a run whose process cannot do it any more."""
        path = self.folder / _LOG
        if path.is_file():  # an entry was perhaps never written whole
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self.put("tags", {FAILURE: DIED})
        self.put("end", ["KILLED", now()])

    def put(self, operation: str, value: Any) -> None:
        """Append an entry, whole or not at all.

        Raises:
            OSError: If there is no room.
        """
        line = (json.dumps({operation: value}) + "\n").encode()
        # one call, which no signal divides; other processes that read see whole lines alone
        descriptor = os.open(self.folder / _LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        finally:
            os.close(descriptor)

    @contextmanager
    def artifacts(self, name: str) -> Iterator[Path]:
        """Give a folder whose files become artifacts under `name`."""
        self.files += 1
        place = self.folder / "files" / str(self.files)
        place.mkdir(parents=True)
        yield place
        self.put("artifacts", [str(self.files), name])

    def deliver(self, client: MlflowClient, *, ended: Callable[[str], None] | None = None) -> bool:
        """Send what the store has not taken yet.

        Args:
            client: Of the store.
            ended: Called with the run's id once its end was taken, before the log goes.

        Returns:
            Whether the run has ended and nothing of it is left here.

        Raises:
            Refused: If the store will never take it.
            Exception: If the store does not answer.
        """
        lock = FileLock(self.folder.with_suffix(".lock"), timeout=0)
        try:
            with lock:
                done = self._deliver(client)
                if done:
                    run_id = self.run_id  # known by this object from now on
                    if ended is not None and run_id is not None:
                        ended(run_id)
                    shutil.rmtree(self.folder, ignore_errors=True)
        except Timeout:
            return False  # another process is at it
        except Refused:
            aside = self.folder.parent / "refused" / self.key
            aside.parent.mkdir(exist_ok=True)
            self.folder.rename(aside)
            raise
        if done:
            Path(lock.lock_file).unlink(missing_ok=True)
        return done

    def _deliver(self, client: MlflowClient) -> bool:
        """Send entries one after another; metrics that follow each other go together."""
        if not self.folder.is_dir():
            return True
        for operation, part in groupby(self._waiting(), key=lambda told: told[0][0]):
            told = list(part)
            if operation == "metrics":
                together = [each for entry, _ in told for each in entry[1]]
                _refusing(_metrics, client, self, together)
                self._take(told[-1][1])
                continue
            for (_, value), end in told:
                _refusing(_SEND[operation], client, self, value)
                self._take(end)
        return self.ended and self._behind == 0

    def _waiting(self) -> Iterator[tuple[Entry, int]]:
        """Give the entries that were not taken, each with the length of the log to its end."""
        at = _read(self.folder / _TAKEN).get("bytes", 0)
        path = self.folder / _LOG
        if not path.is_file():
            return
        with path.open("rb") as log:
            log.seek(at)
            for line in log:
                if not line.endswith(b"\n"):
                    return  # the process died while it wrote it
                at += len(line)
                ((operation, value),) = json.loads(line).items()
                yield (operation, value), at

    @property
    def ended(self) -> bool:
        """Whether the last entry is the run's end."""
        try:
            with (self.folder / _LOG).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
                last = log.read().splitlines(keepends=True)[-1:]
        except FileNotFoundError:
            return False
        return bool(last) and last[0].startswith(b'{"end"') and last[0].endswith(b"\n")

    @property
    def _behind(self) -> int:
        """How many bytes of the log the store has not taken."""
        taken: int = _read(self.folder / _TAKEN).get("bytes", 0)
        return (self.folder / _LOG).stat().st_size - taken

    def _take(self, end: int, run_id: str | None = None) -> None:
        _write(self.folder / _TAKEN, {"bytes": end, "run_id": run_id or self.run_id})

    def created(self, run_id: str) -> None:
        """Note the run's id in the store."""
        self._take(_read(self.folder / _TAKEN).get("bytes", 0), run_id)


def spools(root: Path, uri: str | None = None, parent: str | None = None) -> list[Spool]:
    """Return the logs that lie in a folder.

    Args:
        root: The folder.
        uri: Only those for this store.
        parent: Only those of runs that are nested in this one.
    """
    wanted = {} if uri is None else {"store": redact(uri)}
    wanted |= {} if parent is None else {"parent": parent}
    found = [Spool(about.parent) for about in sorted(root.glob(f"*/{_ABOUT}"))]
    return [each for each in found if wanted.items() <= each.about.items()]


def deliver_abandoned(store: Store, parent: str | None = None) -> int:
    """Deliver what processes left behind that are no more, and close their runs as KILLED.

    Args:
        store: Where to.
        parent: Only runs that are nested in this one; None: all.

    Returns:
        How many runs were completed; those that the store refuses are set aside.

    Raises:
        Exception: If the store does not answer.
    """
    completed = 0
    for spool in spools(store.spool, store.uri, parent):
        try:
            if spool.abandoned and not spool.ended:
                spool.close()
            completed += spool.deliver(store.client)
        except Refused as error:
            warnings.warn(Note(f"the store refuses run {spool.key}: {error}"), stacklevel=2)
    return completed


def now() -> int:
    """Return the time in milliseconds."""
    return int(time.time() * 1000)


def _create(client: MlflowClient, spool: Spool, told: Mapping[str, Any]) -> None:
    begun = spool.folder / _CREATING
    run_id = None
    if begun.exists():  # and perhaps the run too
        query = f"tags.`{KEY}` = '{spool.key}'"
        found = client.search_runs([told["experiment_id"]], query, max_results=1)
        run_id = found[0].info.run_id if found else None
    begun.touch()
    if run_id is None:
        # The parent stands among the tags: MLFLOW_RUN_ID would override a fluent call.
        created = client.create_run(
            told["experiment_id"], told["start"], told["tags"], run_name=told["name"]
        )
        run_id = created.info.run_id
    spool.created(run_id)


def _again(client: MlflowClient, spool: Spool, run_id: str) -> None:
    if FAILURE in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, FAILURE)
    client.update_run(run_id, status="RUNNING")
    spool.created(run_id)


def _metrics(client: MlflowClient, spool: Spool, told: list[Any]) -> None:
    from mlflow.entities import Metric

    for part in _batches([Metric(*entry) for entry in told], METRICS):
        client.log_batch(_id(spool), metrics=part)


def _params(client: MlflowClient, spool: Spool, values: Mapping[str, str]) -> None:
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    def send(chosen: Mapping[str, str]) -> None:
        for part in _batches([Param(*entry) for entry in chosen.items()], PARAMS):
            client.log_batch(_id(spool), params=part)

    try:
        send(values)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        known = client.get_run(_id(spool)).data.params  # of a run that goes on: they stay
        send({name: value for name, value in values.items() if name not in known})


def _tags(client: MlflowClient, spool: Spool, values: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    for part in _batches([RunTag(*entry) for entry in values.items()], PARAMS):
        client.log_batch(_id(spool), tags=part)


def _artifacts(client: MlflowClient, spool: Spool, told: tuple[str, str]) -> None:
    number, name = told
    place = spool.folder / "files" / number
    if place.is_dir():  # else it was sent already
        client.log_artifacts(_id(spool), str(place), name or None)
        shutil.rmtree(place)


def _end(client: MlflowClient, spool: Spool, told: tuple[str, int]) -> None:
    client.set_terminated(_id(spool), *told)


_SEND: Mapping[str, Callable[[MlflowClient, Spool, Any], None]] = {
    "create": _create,
    "again": _again,
    "params": _params,
    "tags": _tags,
    "artifacts": _artifacts,
    "end": _end,
}


def _refusing(send: Callable[..., None], client: MlflowClient, spool: Spool, value: Any) -> None:
    """Send an entry, and tell apart what will never be taken from what may be taken later."""
    from mlflow.exceptions import MlflowException

    try:
        send(client, spool, value)
    except MlflowException as error:
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        if 400 <= status < 500 and status not in {401, 403, 408, 409, 429}:
            raise Refused(redact(str(error).strip().splitlines()[0])) from error
        raise


def _batches(entries: list[Any], size: int) -> Iterator[list[Any]]:
    return (entries[start : start + size] for start in range(0, len(entries), size))


def _id(spool: Spool) -> str:
    run_id = spool.run_id
    if run_id is None:
        raise Refused(f"'{spool.folder}' is damaged: it speaks of a run that it did not create")
    return run_id


def _read(path: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return told


def _write(path: Path, told: Mapping[str, Any]) -> None:
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(told), encoding="utf-8")
    scratch.replace(path)

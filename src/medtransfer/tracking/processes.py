"""Which process a run belongs to, and whether that process is still there."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow import MlflowClient

TAG = "medtransfer.process"
_CLOCK = 2.0  # seconds by which two readings of one start may differ


@dataclass(frozen=True)
class Process:
    """A process of some machine; the time of its start tells it from a later one of its number."""

    host: str
    pid: int
    started: float

    @classmethod
    def this(cls) -> Process:
        """Return the one that asks."""
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

    @classmethod
    def parse(cls, text: str) -> Process | None:
        """Read what `str` makes of one; None for anything else."""
        host, _, rest = text.rpartition(":")[0].rpartition(":")
        pid, started = rest, text.rpartition(":")[2]
        try:
            return cls(host, int(pid), float(started)) if host else None
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.started:.2f}"

    @property
    def gone(self) -> bool:
        """Whether it surely runs no more; of another machine nobody here can say."""
        if self.host != socket.gethostname():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > _CLOCK
        except psutil.NoSuchProcess:
            return True


def reap(client: MlflowClient, parents: Sequence[str]) -> int:
    """Close the runs of a study that stand as RUNNING although their process is gone.

    Args:
        client: Of the store.
        parents: The study's parent runs.

    Returns:
        How many trials were closed.
    """
    from medtransfer.tracking import records  # pandas, which --help can do without

    closed = 0
    for run in records.children(client, list(parents)):
        process = Process.parse(run.data.tags.get(TAG, ""))
        if run.info.status == "RUNNING" and process is not None and process.gone:
            client.set_tag(run.info.run_id, "medtransfer.failure", f"process {process.pid} died")
            client.set_terminated(run.info.run_id, "KILLED")
            closed += 1
    return closed

"""Which process a run belongs to, and whether that process is still there."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow import MlflowClient
    from mlflow.entities import Run

TAG = "medtransfer.process"
ALIVE = "medtransfer.alive"
"""The tag of the last sign of life, in seconds since 1970."""

FAILURE = "medtransfer.failure"
"""The tag that tells why a run did not finish."""

DIED = "its process died"
SILENCE = 300.0  # seconds without a sign of life after which a run of another machine is dead
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
    def here(self) -> bool:
        """Whether it is one of this machine."""
        return self.host == socket.gethostname()

    @property
    def gone(self) -> bool:
        """Whether it surely runs no more; of another machine nobody here can say."""
        if not self.here:
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > _CLOCK
        except psutil.NoSuchProcess:
            return True


def alive(run: Run) -> Process | None:
    """Return the process that a run belongs to, if it may still be there.

    Of one of this machine that is known; one of another machine gives signs of life.
    """
    process = Process.parse(run.data.tags.get(TAG, ""))
    if run.info.status != "RUNNING" or process is None or process.gone:
        return None
    if process.here:
        return process
    heard = float(run.data.tags.get(ALIVE, run.info.start_time / 1000))
    return process if time.time() - heard < SILENCE else None


def reap(client: MlflowClient, runs: Iterable[Run]) -> int:
    """Close runs as KILLED that stand as RUNNING although their process is gone.

    Returns:
        How many there were.
    """
    closed = 0
    for run in runs:
        if run.info.status == "RUNNING" and alive(run) is None:
            client.set_tag(run.info.run_id, FAILURE, DIED)
            client.set_terminated(run.info.run_id, "KILLED")
            closed += 1
    return closed

"""What the program does when it is told to stop."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from types import FrameType

from medtransfer.tracking.runs import Interrupted


def obey_signals() -> None:
    """Raise `Interrupted` in the main thread on SIGINT and SIGTERM.

    Called by whatever runs a trial: launchers start processes that know nothing of it, and
    submitit's jobs would ignore SIGTERM, and start over on SIGUSR2, by which Slurm tells that
    their time is over.
    """
    if threading.current_thread() is threading.main_thread():
        told = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ:
            told.append(signal.SIGUSR2)
        for signum in told:
            signal.signal(signum, partial(_interrupt, os.getpid()))


def _interrupt(owner: int, signum: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if os.getpid() != owner:  # a process that was forked off, to load images
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
        return
    signal.signal(signum, signal.SIG_IGN)  # once is enough: what is open is being closed
    raise Interrupted(signum)

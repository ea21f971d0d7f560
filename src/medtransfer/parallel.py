"""One training on several devices of this machine, a process for each.

The trial's own process is rank 0. The others prepare the same trial for themselves, take part in
its training and end with it; they show nothing and record nothing.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import distributed

from medtransfer.config import TrainConfig
from medtransfer.data.sampling import Parts
from medtransfer.errors import MedtransferError, ParallelError
from medtransfer.joined import Joined
from medtransfer.tracking.runs import Run, reason

LONGEST = timedelta(minutes=10)  # that one rank waits for another in mid-training
DYING = 5.0  # seconds in which a process ends whose connections are closed
STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Group:
    """The processes of one training, as one of them sees it.

    Attributes:
        rank: Which one this is; 0 is the trial's own.
        size: How many there are.
        meeting: A file through which they find each other; no port is open until they have.
        others: The pipes to the other processes; in those, the only one to rank 0.
        processes: The other processes, for rank 0.
        over: Whether they may end.
    """

    rank: int
    size: int
    meeting: Path
    others: list[Connection] = field(default_factory=list)
    processes: list[BaseProcess] = field(default_factory=list)
    over: bool = False

    def parts(self, accumulate: int) -> Parts:
        """Return which parts of a batch are this process's."""
        return Parts(accumulate, self.size, self.rank)

    def strategy(self) -> DDPStrategy:
        """Return what joins the processes, for one `Trainer.fit` of as many devices."""
        return Joined(self)

    def join(self, backend: str, device: torch.device) -> None:
        """Meet the other processes, once all are ready.

        Raises:
            MedtransferError: If one of them failed before.
        """
        if self.rank:
            _divide_threads(self.size)
            self.others[0].send(None)
        else:
            self._await()
        distributed.init_process_group(
            backend,
            init_method=self.meeting.as_uri(),
            rank=self.rank,
            world_size=self.size,
            timeout=LONGEST,
            device_id=None if device.type == "cpu" else device,
        )
        if backend == "nccl" and not self.rank:
            # NCCL would wait for the dead; gloo sees that their sockets are closed
            threading.Thread(target=self._watch, daemon=True).start()

    def failure(self, seconds: float) -> Exception | None:
        """Return why another process ended, the first one that did, or None if all go on.

        Args:
            seconds: How long one may take to end that is about to.
        """
        until = time.monotonic() + seconds
        # their sentinels may be held open, by processes of theirs that load images
        while not (codes := [p.exitcode for p in self.processes if p.exitcode is not None]):
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        if told := self._told():
            return min(told, key=lambda each: each[0])[1]
        for code in codes:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"left with {code}"
            return ParallelError(
                f"a process of the training {how}",
                remedy="see whether the machine has run out of memory",
            )
        return None

    def _told(self) -> list[tuple[float, Exception]]:
        """Return when and with what processes have said to fail."""
        told = []
        for pipe in self.others:
            with suppress(EOFError, OSError):
                while pipe.poll():
                    told.append(pipe.recv())
        return [message for message in told if message is not None]

    def _await(self) -> None:
        waiting = list(self.others)
        while waiting:
            for pipe in wait(waiting):
                assert isinstance(pipe, Connection)
                try:
                    message = pipe.recv()
                except EOFError:
                    raise self.failure(DYING) or ParallelError("a process ended") from None
                if message is not None:
                    raise message[1]
                waiting.remove(pipe)

    def _watch(self) -> None:
        wait(self.others)  # none says anything more, unless it fails
        if not self.over:
            distributed.distributed_c10d._abort_process_group()


@contextmanager
def ranks(
    config: TrainConfig,
    devices: int,
    work: Callable[..., None],
    *given: object,
) -> Iterator[Group | None]:
    """Start the other processes of a training, and end them whatever happens.

    Meanwhile this process computes with its part of the threads.

    Args:
        config: The trial's.
        devices: How many processes train, one on each device; there are so many.
        work: What the other processes do, a function of a module: it is called with `config`, their
            `Group` and `given`, and fits once with `Group.strategy`, as this process does.
        *given: What pickles.

    Yields:
        The group that this process is rank 0 of; None where one device is enough.

    Raises:
        MedtransferError: What another process failed with, `ParallelError` if it was no mistake
            that a user can mend.
        torch.OutOfMemoryError: If one of them failed with that.
    """
    if devices == 1:
        yield None
        return
    threads, failed = torch.get_num_threads(), True
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        group = Group(0, devices, Path(folder) / "meeting")
        try:
            for rank in range(1, devices):
                _start(group, rank, work, (config, *given))
            _divide_threads(devices)
            yield group
            failed = False
        except (MedtransferError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            # a connection that broke is not what went wrong
            cause = group.failure(DYING if isinstance(error, RuntimeError) else 0)
            if cause is None:
                raise
            raise cause from error
        finally:
            torch.set_num_threads(threads)
            _end(group, failed=failed)


class Mute(Run):
    """A run of which nothing is kept.

    Args:
        key: Of the run that it stands for.
        last_step: Likewise.
    """

    def __init__(self, key: str, last_step: int = -1) -> None:
        self.key = key
        self.last_step = last_step
        self.blocked = 0.0
        self.tables = {}

    @property
    def run_id(self) -> str:
        """See `Run.run_id`; there is none."""
        return ""

    def label(self, values: Mapping[str, str]) -> None:
        """See `Run.label`."""

    @contextmanager
    def folder(self, name: str = "") -> Iterator[Path]:  # noqa: ARG002
        """See `Run.folder`."""
        with tempfile.TemporaryDirectory() as place:
            yield Path(place)

    def _put(self, operation: str, value: Any) -> None:
        pass


def _start(group: Group, rank: int, work: Callable[..., None], given: tuple[object, ...]) -> None:
    spawning = get_context("spawn")
    ours, theirs = spawning.Pipe()
    group.others.append(ours)
    there = Group(rank, group.size, group.meeting, [theirs])
    process = spawning.Process(target=_live, args=(there, work, given))
    group.processes.append(process)
    # Ctrl+C reaches all processes of a terminal, and these shall end by rank 0 alone. What is
    # blocked here is blocked there from their first moment on, and is not lost here.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()  # else its end would not be seen


def _live(group: Group, work: Callable[..., None], given: tuple[object, ...]) -> None:
    """Be one of the other processes."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # those that load images must hear them
    threading.Thread(target=_follow, daemon=True).start()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        work(*given[:1], group, *given[1:])
        distributed.destroy_process_group()
        _follow()  # whoever ends before has failed
    except BaseException as error:  # told to rank 0, which raises it
        told = error
        if not isinstance(error, (MedtransferError, torch.OutOfMemoryError)):
            told = ParallelError(f"process {group.rank} of {group.size} failed: {reason(error)}")
        told.add_note(traceback.format_exc())
        group.others[0].send((time.monotonic(), told))
        os._exit(1)  # no more waiting for anyone


def _follow() -> None:
    """End with rank 0, however it ends."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _divide_threads(devices: int) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // devices))


def _end(group: Group, *, failed: bool) -> None:
    group.over = True
    if distributed.is_initialized():
        if failed and distributed.get_backend() == "nccl":  # it would wait for the others
            distributed.distributed_c10d._abort_process_group()
        else:
            distributed.destroy_process_group()
    for process in group.processes:
        if process.pid is not None:
            process.kill()
            process.join()
        process.close()
    for pipe in group.others:
        pipe.close()

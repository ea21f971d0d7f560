"""Brings what runs have to say to the store, in a thread, so that training never waits for it."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from medtransfer.errors import Note, UndeliveredError
from medtransfer.secrets import redact
from medtransfer.tracking.processes import ALIVE
from medtransfer.tracking.spool import Refused, Spool, now, spools

if TYPE_CHECKING:
    from medtransfer.tracking.store import Store

ROUND_SECONDS = 0.2  # between deliveries: metrics of several epochs go together
RETRY_SECONDS = 5.0  # at most, to a store that does not answer
BEAT_SECONDS = 60.0  # between signs of life
PATIENCE = 60.0  # seconds, for a store that does not answer at the end


class Courier:
    """Delivers the spools of this process to one store.

    Its thread lives as long as a run is open.

    Args:
        store: Where to.
    """

    _known: ClassVar[dict[tuple[str, str], Courier]] = {}

    def __init__(self, store: Store) -> None:
        self.store = store
        self.trouble: str | None = None
        """Why the store could not be reached at the last attempt."""
        self._open: dict[Spool, Callable[[str], None] | None] = {}
        self._refused: dict[str, str] = {}
        self._changed = threading.Condition()
        self._hurry = False
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, store: Store) -> Courier:
        """Return the one of this process for a store."""
        return cls._known.setdefault((store.uri, str(store.spool)), cls(store))

    def take(self, spool: Spool, ended: Callable[[str], None] | None = None) -> None:
        """Deliver a spool from now on, until its run ends.

        Args:
            spool: Of a run of this process.
            ended: Called in the courier's thread with the run's id, once its end was delivered.
        """
        with self._changed:
            self._open[spool] = ended
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
                self._thread.start()

    def wait(self, spool: Spool, until: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait until something is so; as long as it takes while the store answers.

        Args:
            spool: What is waited for.
            until: Whether it is so.
            patience: Seconds that the store may not answer.

        Raises:
            UndeliveredError: If the store does not answer, or refuses.
        """
        silent: float | None = None
        with self._changed:
            while not until():
                if spool.key in self._refused:
                    raise UndeliveredError(
                        f"the tracking store refuses a run: {self._refused.pop(spool.key)}",
                        remedy=f"what was not taken lies in '{self.store.spool / 'refused'}'",
                    )
                silent = None if self.trouble is None else silent or time.monotonic()
                if silent is not None and time.monotonic() - silent > patience:
                    raise UndeliveredError(
                        f"the tracking store does not answer: {self.trouble}",
                        remedy="what it has to be told is kept; medtransfer sync delivers it later",
                    )
                self._hurry = True
                self._changed.notify_all()
                self._changed.wait(ROUND_SECONDS)

    def delivered(self, spool: Spool) -> bool:
        """Whether the run of a spool has ended and the store knows all of it."""
        return spool not in self._open and spool.key not in self._refused

    def _run(self) -> None:
        beaten, pause = time.monotonic(), ROUND_SECONDS
        while True:
            with self._changed:
                if not self._open:
                    self._thread = None
                    return
                if not self._hurry or self.trouble is not None:
                    self._changed.wait(pause)
                self._hurry = False
                spools = dict(self._open)
            failure = self._round(spools)
            if failure is None and time.monotonic() - beaten > BEAT_SECONDS:
                failure, beaten = self._beat(spools), time.monotonic()
            pause = ROUND_SECONDS if failure is None else min(2 * pause, RETRY_SECONDS)
            self._tell(failure)

    def _round(self, spools: dict[Spool, Callable[[str], None] | None]) -> str | None:
        """Deliver what is there; return why the store does not answer, if it does not."""
        for spool, ended in spools.items():
            try:
                if self.trouble is not None:
                    self.store.knock()
                done = spool.deliver(self.store.client, ended=ended)
            except Refused as error:
                self._refused[spool.key] = str(error)
                warnings.warn(Note(f"the tracking store refuses a run: {error}"), stacklevel=2)
                done = True
            except Exception as error:  # clients raise whatever their transports raise
                return _why(error)
            if done:
                with self._changed:
                    self._open.pop(spool, None)
                    self._changed.notify_all()
        return None

    def _beat(self, spools: dict[Spool, Callable[[str], None] | None]) -> str | None:
        """Tell the store that the runs are alive, for those who look from other machines."""
        try:
            for spool in spools:
                spool.beat()
                if (run_id := spool.run_id) is not None and not spool.ended:
                    self.store.client.set_tag(run_id, ALIVE, str(now() // 1000))
        except Exception as error:  # as above
            return _why(error)
        return None

    def _tell(self, failure: str | None) -> None:
        if failure is not None and self.trouble is None:
            text = "the tracking store does not answer; training goes on, and tells it later"
            warnings.warn(Note(f"{text} ({failure[:200]})"), stacklevel=2)
        with self._changed:
            self.trouble = failure
            self._changed.notify_all()


def deliver_all(store: Store, parent: str) -> None:
    """Wait until the store knows all of the runs that are nested in one, whoever wrote them.

    Nobody works on them any more: one that was not ended has lost its process.

    Raises:
        UndeliveredError: If the store does not answer, or refuses one.
    """
    refused = store.spool / "refused"
    silent: float | None = None
    while waiting := spools(store.spool, store.uri, parent):
        try:
            store.knock()
            for spool in waiting:
                if not spool.mine:  # what this one wrote, its courier delivers
                    if not spool.ended:
                        spool.close()
                    spool.deliver(store.client)
            silent = None
        except Refused:
            continue
        except Exception as error:  # clients raise whatever their transports raise
            silent = silent or time.monotonic()
            if time.monotonic() - silent > PATIENCE:
                raise _undelivered(error, len(waiting)) from None
        time.sleep(ROUND_SECONDS)
    if lost := spools(refused, store.uri, parent):
        raise UndeliveredError(
            f"the tracking store refused {len(lost)} runs of the study",
            remedy=f"what it did not take lies in '{refused}'; see whether runs were deleted",
        )


def _undelivered(error: Exception, count: int) -> UndeliveredError:
    return UndeliveredError(
        f"the tracking store does not answer, and {count} runs wait for it: {_why(error)}",
        remedy="medtransfer sync delivers them; the same train command then ends with the answer",
    )


def _why(error: Exception) -> str:
    lines = redact(str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"

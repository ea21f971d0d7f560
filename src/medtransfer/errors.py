"""One family of errors: what is wrong, the value, the choices, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedtransferError(Exception):
    """A mistake that its user can mend; shown without a traceback.

    Args:
        problem: What is wrong, naming the value.
        choices: What would have been accepted; the nearest to `value` is offered first.
        value: The offending value, compared with `choices`.
        remedy: What to do next, as a command or a key where there is one.
    """

    exit_code = 2

    def __init__(
        self,
        problem: str,
        *,
        value: str | None = None,
        choices: Iterable[str] = (),
        remedy: str = "",
    ) -> None:
        self.problem = problem
        self.choices = tuple(choices)
        self.remedy = remedy
        self.nearest = nearest(value, self.choices) if value is not None else None
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.problem + (f"; did you mean '{self.nearest}'?" if self.nearest else "")]
        if self.choices:
            lines.append(f"  choices: {', '.join(self.choices)}")
        if self.remedy:
            lines.append(f"  remedy:  {self.remedy}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments do not survive the default pickling between workers
        return _rebuild, (type(self), self.__dict__.copy())


class ConfigError(MedtransferError):
    """A key, a value or a combination of choices that cannot work."""


class DataError(MedtransferError):
    """A file, folder or annotation that cannot be used as it is."""


class WeightsError(MedtransferError):
    """Weights that cannot be found, read, or fitted to the backbone."""


class StoreError(MedtransferError):
    """A tracking store that cannot be reached, read or written."""


class UndeliveredError(StoreError):
    """A tracking store that did not take what it was told; trainings have run."""

    exit_code = 1


class LaunchError(MedtransferError):
    """A worker that ended without a word: killed, out of memory, or gone with its machine."""

    exit_code = 1


class LeakageError(MedtransferError):
    """Training and test data share what they must not share."""

    exit_code = 3


class CertificateError(MedtransferError):
    """What was declared frozen is not what it was: a trial that does not do what it says."""

    exit_code = 1


class DivergedError(MedtransferError):
    """A training whose loss is no number any more."""

    exit_code = 1


class ParallelError(MedtransferError):
    """A training on several devices of which one process failed."""

    exit_code = 1


class TooLargeError(MedtransferError):
    """A training that does not fit into the memory of its device."""

    exit_code = 1


class ExportError(MedtransferError):
    """A model that cannot be written in the form that was asked for."""

    exit_code = 1


class Note(UserWarning):
    """Something that a user should know and that stops nothing; shown once, as a plain line."""


def nearest(value: str, choices: Iterable[str]) -> str | None:
    """Return the choice that looks most like `value`, or None when none does."""
    found = difflib.get_close_matches(value, list(choices), n=1, cutoff=0.6)
    return found[0] if found else None


def _rebuild(cls: type[MedtransferError], state: dict[str, object]) -> MedtransferError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    Exception.__init__(error, str(error))
    return error

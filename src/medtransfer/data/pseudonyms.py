"""Patients and exams under names that tell nothing, equal wherever the secret is equal."""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock

from medtransfer.errors import DataError

BYTES = 32  # of a new secret: as many as the hash has
DIGITS = 12  # of a name


@dataclass(frozen=True)
class Pseudonyms:
    """Names for identifiers: the first 12 hexadecimal digits of HMAC-SHA256 under a secret.

    Whoever has the secret can find out whether a known identifier is among the names; without it
    nobody can. One secret, and so one file, gives the same names in all data sets and runs.

    Attributes:
        salt: File with the secret; it is made where it is missing, once a name is asked for. None
            leaves identifiers as they are.
    """

    salt: Path | None

    def of(self, text: str) -> str:
        """Return the name of an identifier.

        Raises:
            DataError: If the secret can be neither read nor made.
        """
        if self.salt is None:
            return text
        # names of files need not be text in any encoding
        message = text.encode("utf-8", "surrogateescape")
        return hmac.digest(self._key, message, "sha256").hex()[:DIGITS]

    def hide(
        self, path: str, identifiers: Iterable[str], spans: Iterable[tuple[int, int]] = ()
    ) -> str:
        """Return a path with names in place of the identifiers that stand in it.

        An identifier stands in a path where neither a letter nor a digit touches it; whether its
        letters are capitals does not matter. Two paths never become one.

        Args:
            path: With `/` between its parts.
            identifiers: Of the patient and of the exam; empty ones are passed over.
            spans: Further places that hold one, start and end, as a pattern finds them.
        """
        if self.salt is None:
            return path
        found = [span for span in spans if span[0] < span[1]]
        for identifier in set(identifiers):
            found += _places(path, identifier)
        parts, end = [], 0
        for first, last in _joined(found):
            parts += [path[end:first], self.of(path[first:last])]
            end = last
        return "".join([*parts, path[end:]])

    @cached_property
    def _key(self) -> bytes:
        assert self.salt is not None
        try:
            if not self.salt.exists():
                self.salt.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{self.salt}.lock"):
                    if not self.salt.exists():
                        _make(self.salt)
            key = self.salt.read_bytes()
        except OSError as error:
            raise DataError(
                f"the secret '{self.salt}', with which patients are made unknown, cannot be used:"
                f" {error.strerror or error}",
                remedy="set dataset.salt to a file that you may read, or one that can be made",
            ) from None
        if len(key) < BYTES:
            raise DataError(
                f"the secret '{self.salt}' has {len(key)} bytes, and {BYTES} are the least that"
                " cannot be guessed",
                remedy="remove the file, so that another one is made: patients then have new names",
            )
        return key


def _make(salt: Path) -> None:
    """Write a secret that nobody else may read; it appears whole."""
    partial = salt.with_name(f"{salt.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(BYTES))
    partial.replace(salt)


def _places(path: str, identifier: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of an identifier wherever it stands alone."""
    text, wanted = path.lower(), identifier.lower()
    if len(text) != len(path):  # a few letters become two: places would not be those of the path
        text, wanted = path, identifier
    start = text.find(wanted) if wanted else -1
    while start >= 0:
        end = start + len(wanted)
        if not (text[start - 1 : start].isalnum() or text[end : end + 1].isalnum()):
            yield start, end
        start = text.find(wanted, start + 1)


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in order, those that overlap as one: no part of any is left."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def is_pseudonym(name: str) -> bool:
    """Return whether a name looks like one of `Pseudonyms`."""
    return re.fullmatch(f"[0-9a-f]{{{DIGITS}}}", name) is not None

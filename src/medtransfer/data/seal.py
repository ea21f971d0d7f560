"""The seal on the test set: nobody reads it before it is opened, and openings are counted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import ConfigError


class SealedError(RuntimeError):
    """Code reached for a test image before the test set was opened: a defect of the program."""


class Seal:
    """Keeps test images from being read until all choices are made.

    Args:
        indices: The test split.
        size: How many samples there are in all.
        allowed: Whether the test set may be opened at all; trials that tune may not.
    """

    def __init__(self, indices: NDArray[np.int64], size: int, *, allowed: bool) -> None:
        self.closed = np.zeros(size, dtype=bool)
        self.closed[indices] = True
        self.allowed = allowed
        self.openings = 0

    def open(self) -> int:
        """Open the test set, and return how often that was done by now.

        Raises:
            ConfigError: If this trial may not open it.
        """
        if not self.allowed:
            raise ConfigError("this trial may not open the test set: test=false")
        self.openings += 1
        return self.openings

    def require(self, indices: int | NDArray[np.int64]) -> None:
        """Refuse samples of the test set that was not opened.

        Raises:
            SealedError: If one of them lies there.
        """
        if not self.openings and self.closed[indices].any():
            raise SealedError("the test set is read before it was opened")

"""Arrays in a zip archive that need not fit into memory."""

from __future__ import annotations

import threading
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 2**22  # bytes of images that are unpacked at once


def header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read shape and type of an array, up to where its values begin.

    Raises:
        ValueError: If it is no array, or one by columns.
    """
    version = np.lib.format.read_magic(file)
    one = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if one else np.lib.format.read_array_header_2_0
    shape, by_columns, kind = read(file)
    if by_columns and len(shape) > 1:
        msg = "an array lies in it column by column"
        raise ValueError(msg)
    return shape, kind


class Stream:
    """The images of one array in an archive, as they are asked for, one after another.

    A few are unpacked at once and kept; what lies before them is unpacked from the start again.

    Args:
        path: The archive.
        name: Of the array, (n, ...) uint8.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.archive = zipfile.ZipFile(path)
        self.member = f"{name}.npy"
        self.lock = threading.Lock()
        self.kept: dict[int, NDArray[np.uint8]] = {}
        self.failed: tuple[int, Exception] | None = None
        self._rewind()

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        with self.lock:
            number, place = divmod(index, self.per_chunk)
            if number not in self.kept:
                self._load(number)
            image: NDArray[np.uint8] = self.kept[number][place].copy()
            return image

    def _rewind(self) -> None:
        self.file = self.archive.open(self.member)
        self.shape, _ = header(self.file)
        self.image_bytes = int(np.prod(self.shape[1:]))
        self.per_chunk = max(1, CHUNK // self.image_bytes)
        self.next = 0

    def _load(self, number: int) -> None:
        # nothing after a damaged place can be unpacked: trying would take as long each time
        if self.failed is not None and number >= self.failed[0]:
            raise self.failed[1]
        if number < self.next:
            self._rewind()
        while self.next <= number:
            count = min(self.per_chunk, self.shape[0] - self.next * self.per_chunk)
            try:
                content = self.file.read(count * self.image_bytes)
                if len(content) < count * self.image_bytes:
                    msg = "it ends too early"
                    raise EOFError(msg)
            except Exception as error:
                self.failed = self.next, error
                raise
            pixels = np.frombuffer(content, np.uint8).reshape(count, *self.shape[1:])
            self.kept = {**dict([*self.kept.items()][-1:]), self.next: pixels}
            self.next += 1


@lru_cache(maxsize=3)  # one for each split
def stream(path: Path, stamp: tuple[int, int], name: str) -> Stream:  # noqa: ARG001
    """Return the images of an array; a changed file is another."""
    return Stream(path, name)

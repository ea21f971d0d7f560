"""The one way of keeping on disk what is dear to compute: whole, checked, within bounds."""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import DTypeLike, NDArray

from medtransfer.errors import Note, StoreError

INDEX = "index.json"  # the checksum of each file; its time is that of the entry's last use
CHUNK = 2**22  # bytes that are read at once for a checksum

_sound: set[tuple[str, int, int]] = set()
"""Path, size and time of the files that this process has found to be as they were written."""


@contextmanager
def entry(
    folder: Path, key: str, write: Callable[[Path], None], *, max_gb: float | None = None
) -> Iterator[Path]:
    """Hold an entry of a cache; it is written first where it is missing or damaged.

    Whoever asks meanwhile waits for the one that writes. Entries appear by renaming, whole or not
    at all, and what a killed writer left is cleared away by the next. Nobody removes an entry that
    is held; files that were opened or mapped meanwhile stay readable afterwards.

    Args:
        folder: The cache.
        key: Names the entry; letters and digits.
        write: Fills the folder that it is given with files.
        max_gb: After a writing, other entries are removed, the least recently used first, until the
            folder holds no more than this, in 10^9 bytes. None sets no bound.

    Yields:
        The entry's folder.

    Raises:
        StoreError: If the cache cannot be written; nothing half-written is left behind.
    """
    path = folder / key
    with ExitStack() as held:
        with _writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_lock(path))
            for left in folder.glob(f"partial-{key}-*"):  # by a killed writer: the lock is ours now
                shutil.rmtree(left, ignore_errors=True)
            damaged = _damaged(path) if path.is_dir() else None
            if damaged is not None:
                found = f"'{damaged}' is not as it was written"
                told = f"the cache entry '{path}' is damaged ({found}) and is made again"
                warnings.warn(Note(told), stacklevel=3)
                _remove(path)
            if path.is_dir():
                (path / INDEX).touch()
            else:
                _publish(path, write)
                if max_gb is not None:
                    _evict(path, max_gb * 1e9)
        yield path


@contextmanager
def array_file(
    path: Path, shape: tuple[int, ...], dtype: DTypeLike
) -> Iterator[Callable[[NDArray[Any]], object]]:
    """Open an `.npy` file to be written from its first row to its last, in flat memory.

    A mapped file would be shorter to write, but a full disk ends a process that writes to one
    without a word; here it raises.

    Args:
        path: The file, new.
        shape: Of the whole array. Rows that are not written are zero.
        dtype: Of the whole array.

    Yields:
        A function that appends an array of this dtype, whatever its shape.

    Raises:
        OSError: If the disk is full.
    """
    kind = np.dtype(dtype)
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        size = file.tell() + math.prod(shape) * kind.itemsize
        yield lambda rows: file.write(np.ascontiguousarray(rows, kind).data)
        file.truncate(size)


def _publish(path: Path, write: Callable[[Path], None]) -> None:
    partial = path.with_name(f"partial-{path.name}-{os.getpid()}")
    partial.mkdir()
    try:
        write(partial)
        checksums = {file.name: _checksum(file) for file in sorted(partial.iterdir())}
        (partial / INDEX).write_text(json.dumps(checksums), encoding="utf-8")
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _damaged(path: Path) -> str | None:
    """Return the name of a file that is not as it was written, None where all are.

    Each file is read once in a process, and again only when its size or time has changed.
    """
    name: str = INDEX
    try:
        checksums = dict(json.loads((path / INDEX).read_text(encoding="utf-8")))
        for name, checksum in checksums.items():
            found = (path / name).stat()
            state = (str(path / name), found.st_size, found.st_mtime_ns)
            if state not in _sound:
                if _checksum(path / name) != checksum:
                    return name
                _sound.add(state)
    except (FileNotFoundError, TypeError, ValueError):
        return name
    return None


def _checksum(path: Path) -> int:
    """Return the CRC-32 of a file: accidents are to be found, and it is read at each start."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _evict(kept: Path, bound: float) -> None:
    """Remove what killed writers left, and then what was used least recently, down to a bound."""
    found = []
    for path in kept.parent.iterdir():
        # what another process removes just now need not be counted
        with suppress(FileNotFoundError, NotADirectoryError):
            size = sum(file.stat().st_size for file in path.iterdir())
            index = path / INDEX
            found.append((index.stat().st_mtime_ns if index.exists() else 0, size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= bound:
            return
        if path != kept:
            key = path.name.split("-")[1] if path.name.startswith("partial-") else path.name
            with suppress(Timeout), _lock(path.with_name(key), blocking=False):
                _remove(path)
                total -= size


def _remove(path: Path) -> None:
    if not path.name.startswith("partial-"):
        # a removal that is killed leaves no half of an entry behind a valid name
        gone = path.with_name(f"partial-{path.name}-gone")
        shutil.rmtree(gone, ignore_errors=True)
        path = path.rename(gone)
    shutil.rmtree(path, ignore_errors=True)


def _lock(path: Path, *, blocking: bool = True) -> FileLock:
    return FileLock(f"{path}.lock", blocking=blocking)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the cache '{folder}' cannot be written: {error.strerror or error}",
            remedy="make it writable, free some space, or point paths.cache elsewhere",
        ) from None

"""Places that are written whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medtransfer.errors import StoreError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside a place, and put it there once all is written.

    Args:
        out: The place; if there is a folder, it must be empty.

    Raises:
        StoreError: If something lies there, or it cannot be written.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StoreError(f"'{out}' is there already, and not empty", remedy="--out ANOTHER")
    with _written(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            folder = Path(scratch, "whole")
            folder.mkdir()
            yield folder
            if out.is_dir():
                out.rmdir()
            folder.replace(out)


@contextmanager
def new_file(out: Path, suffix: str) -> Iterator[Path]:
    """Give a path beside a place, and put what was written to it there.

    Args:
        out: The place; a file that is there is replaced.
        suffix: Of the path that is given.

    Raises:
        StoreError: If it is a folder, or cannot be written.
    """
    if out.is_dir():
        raise StoreError(f"'{out}' is a folder", remedy=f"--out {out}/FILE")
    with _written(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            partial = Path(scratch, f"whole{suffix}")
            yield partial
            partial.replace(out)


@contextmanager
def _written(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"'{out}' cannot be written: {error.strerror or error}",
            remedy="make it writable, free some space, or --out ANOTHER",
        ) from None

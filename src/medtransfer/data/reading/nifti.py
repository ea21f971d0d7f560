"""Slices of NIfTI volumes.

A volume is turned to the closest of the orientations in which its axes run to the patient's right,
front and head (RAS+), as its header says, and cut across one of these axes. A slice then stands as
a counter-clockwise quarter turn leaves it: front or head on top, the patient's left on the left,
in sagittal slices the back. Masks and images are cut alike, so they fit however they are stored.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError, apply_orientation, io_orientation
from nibabel.spatialimages import HeaderDataError, SpatialImage
from numpy.typing import NDArray

from medtransfer.data.base import Image
from medtransfer.data.reading.base import (
    REMEDY,
    Reading,
    bomb,
    bomb_limit,
    ends_of,
    require_finite,
    require_frame,
    stamp,
    stretch,
)
from medtransfer.errors import DataError

PERCENTILES = (0.5, 99.5)
SLABS = 4  # a volume may have as many pixels as this many images of the largest size
IN_MM = {"meter": 1000.0, "micron": 0.001}


@dataclass(frozen=True)
class _Header:
    """What is known of a volume before its values are read.

    Attributes:
        image: The file.
        turns: (3, 2), to which axis of RAS+ each stored one goes, and whether it is flipped.
        shape: Of the volume in RAS+.
        spacing: Of its voxels along these axes, in mm.
        flat: The axis across which the only slice of a file of two dimensions lies, if it is one.
    """

    image: SpatialImage
    turns: NDArray[np.float64]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    flat: int | None


def frames(path: Path, reading: Reading) -> tuple[int, ...] | None:
    """Return the numbers of the slices that are taken, from the left, the back or the feet."""
    header = _header(path)
    if header.flat is not None:
        return None
    return tuple(range(0, header.shape[reading.axis], reading.step))


def read(path: Path, frame: int | None, reading: Reading) -> Image:
    """Return one slice: 8 bits where the file has no more, else 16; colours are kept.

    Raises:
        DataError: If the file cannot be used, or has values that are no numbers.
    """
    found = values(path, frame, reading)
    if found.ndim == 3:
        return found
    window = reading.window
    ends = window if isinstance(window, tuple) else _ends(path, stamp(path), window)
    return stretch(found, *ends, deep=found.dtype.itemsize > 1)


def values(path: Path, frame: int | None, reading: Reading) -> NDArray[Any]:
    """Return one slice as it is stored, (H, W), or (H, W, 3) if it is in colour.

    Raises:
        DataError: If the file cannot be used, or has values that are no numbers.
    """
    header = _header(path)
    axis = reading.axis if header.flat is None else header.flat
    number = require_frame(path, frame, header.shape[axis])
    volume = _volume(path, stamp(path))
    return np.ascontiguousarray(np.rot90(np.moveaxis(volume, axis, 0)[number]))


def spacing(
    path: Path,
    frame: int | None,  # noqa: ARG001
    reading: Reading,
) -> tuple[float, float] | None:
    """Return the distance in mm between the rows and between the columns of a slice."""
    header = _header(path)
    axis = reading.axis if header.flat is None else header.flat
    across, down = (side for i, side in enumerate(header.spacing) if i != axis)
    return down, across


def _header(path: Path) -> _Header:
    with _readable(path):
        image: Any = nibabel.load(path)
        shape = image.shape
        if len(shape) < 2 or prod(shape[3:]) != 1 or 0 in shape:
            raise DataError(
                f"image '{path}' has {len(shape)} dimensions of {' x '.join(map(str, shape))}"
                " values, and a volume has three",
                remedy="save each volume in a file of its own, or leave such files out with"
                " dataset.on_error=skip",
            )
        limit = SLABS * bomb_limit()
        if prod(shape) > limit:
            raise bomb(path, prod(shape), limit)
        turns = io_orientation(image.affine)  # type: ignore[no-untyped-call]
        if not np.isfinite(turns).all():
            turns = np.asarray([[0, 1], [1, 1], [2, 1]])  # nothing is known: as it is stored
        flat = int(turns[2, 0]) if len(shape) == 2 else None
        order = np.argsort(turns[:, 0])
        sides = np.asarray(_three(shape, 1))[order]
        unit = IN_MM.get(image.header.get_xyzt_units()[0], 1.0)
        zooms = np.asarray(_three(image.header.get_zooms(), 1.0), dtype=np.float64)[order]
    return _Header(image, turns, tuple(sides.tolist()), tuple((zooms * unit).tolist()), flat)


@lru_cache(maxsize=2)  # an image's and its mask's
def _volume(path: Path, changed: tuple[int, int]) -> NDArray[Any]:  # noqa: ARG001
    """Return a volume in RAS+, (X, Y, Z) or (X, Y, Z, 3)."""
    header = _header(path)
    with _readable(path):
        stored = np.asanyarray(header.image.dataobj)
        shape = _three(stored.shape, 1)
        if stored.dtype.names is not None:
            stored = np.stack([stored[name] for name in ("R", "G", "B")], axis=-1)
            shape = (*shape, 3)
        elif stored.dtype.kind not in "iuf":
            raise DataError(
                f"image '{path}' has values of type {stored.dtype}, which are neither grey nor"
                " colour",
                remedy=REMEDY,
            )
        elif stored.dtype.kind == "f":  # double precision is that of scaled integers
            stored = stored.astype(np.float32, copy=False)
        volume: NDArray[Any] = apply_orientation(  # type: ignore[no-untyped-call]
            stored.reshape(shape), header.turns
        )
    require_finite(volume, path)
    return volume


@lru_cache(maxsize=2)
def _ends(path: Path, changed: tuple[int, int], window: str) -> tuple[float, float]:
    """Return what becomes black and white in all slices."""
    volume = _volume(path, changed)
    if window == "full":
        return ends_of(volume)
    low, high = np.percentile(volume, PERCENTILES)
    return float(low), float(high)


def _three(sides: tuple[Any, ...], missing: Any) -> tuple[Any, ...]:
    """Return what is said of each axis for three of them."""
    return (*sides[:3], missing)[:3]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say what is wrong with a file.

    Raises:
        DataError: If something is.
    """
    try:
        yield
    except ImageFileError:
        raise DataError(
            f"'{path}' is not a NIfTI image, whatever its name says", remedy=REMEDY
        ) from None
    except (
        EOFError,
        HeaderDataError,
        OSError,
        OrientationError,
        OverflowError,
        ValueError,
        zlib.error,
    ) as error:
        raise DataError(f"image '{path}' cannot be decoded: {error}", remedy=REMEDY) from None

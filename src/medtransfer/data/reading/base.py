"""How files become images: settings, what readers share, and which reader takes which file."""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from medtransfer.data.base import Image
from medtransfer.errors import DataError

RASTER = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
DICOM = frozenset({".dcm", ".dicom", ".ima"})
NIFTI = frozenset({".nii", ".nii.gz"})
SUFFIXES = RASTER | DICOM | NIFTI

REMEDY = "repair or remove the file, or leave such files out with dataset.on_error=skip"
RANGE_REMEDY = (
    "say which values are black and white with dataset.reading.window=[low, high], take the least"
    " and the greatest with dataset.reading.window=full, or leave such files out with"
    " dataset.on_error=skip"
)

Window = Literal["auto", "full"] | tuple[float, float]


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Reading:
    """How pixels are read from files.

    Attributes:
        window: Which grey values become black and white. `auto` takes those that a DICOM file
            states (window or VOI LUT), or else the whole of what its bits can hold; of a NIfTI
            volume the percentiles 0.5 and 99.5; of other formats the whole range of their type.
            `full` takes the least and the greatest value of the image, or of all slices of its
            file. Two numbers are values of the modality, such as Hounsfield units. Colours are
            left as they are.
        axis: Of NIfTI volumes, the one across which slices lie: 0 sagittal, 1 coronal, 2 axial.
        step: Every so many slices of volumes, frames and pages are taken.
    """

    window: Window = "auto"
    axis: Literal[0, 1, 2] = 2
    step: Annotated[int, Field(ge=1)] = 1

    def __post_init__(self) -> None:
        if not isinstance(self.window, str):
            low, high = self.window
            if not (low < high and math.isfinite(high - low)):
                msg = f"a window goes from a lower to a higher value, and not from {low} to {high}"
                raise ValueError(msg)


@dataclass(frozen=True)
class Identity:
    """Whose image it is, by the header of its file; empty where that does not say.

    Attributes:
        patient: The patient's identifier.
        exam: The examination's.
        view: Which of the exam's views it is, such as `CC`.
    """

    patient: str
    exam: str
    view: str


class Reader(Protocol):
    """What the module of a family of formats offers; each may raise a `DataError`."""

    def frames(self, path: Path, reading: Reading) -> tuple[int, ...] | None:
        """See `frames`."""

    def read(self, path: Path, frame: int | None, reading: Reading) -> Image:
        """See `read`."""

    def spacing(
        self, path: Path, frame: int | None, reading: Reading
    ) -> tuple[float, float] | None:
        """See `spacing`."""


def frames(path: Path, reading: Reading) -> tuple[int, ...] | None:
    """Return the numbers, from 0, of the images that are taken from one file.

    Returns:
        None for a file of one image, and for one that cannot be read: reading it will tell why.
    """
    try:
        return _reader(path).frames(path, reading)
    except DataError:
        return None


def read(path: Path, frame: int | None, reading: Reading) -> Image:
    """Return one image of a file.

    Args:
        path: The file.
        frame: Number of the slice, frame or page; None for a file of one image.
        reading: Which values become black and white, and how volumes are cut.

    Returns:
        (H, W) grey or (H, W, 3) colour; uint8, or uint16 where values have more than eight bits.

    Raises:
        DataError: If there is no such image, or it cannot be decoded; the message names file and
            frame, and nothing of what a header says about persons.
    """
    reader = _reader(path)
    if path.stat().st_size == 0:
        raise DataError(
            f"'{path}' is not an image, whatever its name says: it is empty", remedy=REMEDY
        )
    return reader.read(path, frame, reading)


def spacing(path: Path, frame: int | None, reading: Reading) -> tuple[float, float] | None:
    """Return the distance in mm between rows and between columns, if the file states it."""
    try:
        found = _reader(path).spacing(path, frame, reading)
    except DataError:
        return None
    sound = found is not None and all(math.isfinite(side) and side > 0 for side in found)
    return found if sound else None


def identity(path: Path) -> Identity | None:
    """Return whose image a DICOM file holds; None for other files and for damaged ones."""
    if suffix_of(path) in RASTER | NIFTI:
        return None
    from medtransfer.data.reading import dicom

    try:
        return dicom.identity(path) if _reader(path) is dicom else None
    except DataError:
        return None


def require_file(path: Path, what: str = "image") -> None:
    """Refuse what is no plain file: opening a pipe would wait for ever, a device never ends.

    Args:
        path: What is to be opened.
        what: It is, for the message.

    Raises:
        DataError: If it is none, or is not there.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(f"{what} '{path}' does not exist", remedy=REMEDY) from None
    except (OSError, ValueError) as error:  # the latter of names with a null character
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{what} '{path}' cannot be decoded: {why}", remedy=REMEDY) from None
    if not stat.S_ISREG(mode):
        raise DataError(
            f"{what} '{path}' cannot be decoded: it is a folder, a pipe or a device", remedy=REMEDY
        )


def suffix_of(path: PurePath) -> str:
    """Return the suffix in small letters, `.nii.gz` whole."""
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix.lower()


def stem_of(path: PurePath) -> str:
    """Return a path without its suffix, if that is one of images; names may have other dots."""
    suffix = suffix_of(path)
    return path.as_posix().removesuffix(path.name[-len(suffix) :] if suffix in SUFFIXES else "")


def named(path: Path, frame: int | None) -> str:
    """Return what messages call an image."""
    return f"image '{path}'" if frame is None else f"frame {frame} of image '{path}'"


def stamp(path: Path) -> tuple[int, int]:
    """Return what changes when a file does, beside whose path a decoded volume is remembered."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def require_frame(path: Path, frame: int | None, count: int) -> int:
    """Return the number of a frame among `count`.

    Raises:
        DataError: If there are not so many, or several and none is named.
    """
    if frame is None and count > 1:
        raise DataError(
            f"image '{path}' holds {count} frames, and one image is expected here",
            remedy="save each frame in a file of its own",
        )
    if frame is not None and frame >= count:
        raise DataError(f"image '{path}' has {count} frames, and so none {frame}", remedy=REMEDY)
    return frame or 0


def bomb_limit() -> float:
    """Return how many pixels are decoded at a time, as Pillow has it."""
    limit = PILImage.MAX_IMAGE_PIXELS
    return math.inf if limit is None else 2 * limit


def bomb(path: Path, pixels: int, limit: float) -> DataError:
    """Return the error of a file that claims more pixels than memory should be given to."""
    return DataError(
        f"image '{path}' cannot be decoded: its size of {pixels} pixels exceeds limit of"
        f" {limit:.0f} pixels, and it could be a decompression bomb",
        remedy=REMEDY,
    )


def no_range(path: Path, frame: int | None, bits: int) -> DataError:
    """Return the error of values of which nobody says what is black and what white."""
    return DataError(
        f"{named(path, frame)} has {bits} bits for each pixel, and their range is unknown",
        remedy=RANGE_REMEDY,
    )


def require_finite(values: NDArray[Any], path: Path) -> None:
    """Refuse values that are no numbers.

    Raises:
        DataError: If any is NaN or infinite.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int(values.size - np.isfinite(values).sum())
        raise DataError(
            f"image '{path}' has {count} values that are NaN or infinite", remedy=REMEDY
        )


def ends_of(values: NDArray[Any]) -> tuple[float, float]:
    """Return the least and the greatest value."""
    return float(values.min()), float(values.max())


def stretch(values: NDArray[Any], low: float, high: float, *, deep: bool) -> Image:
    """Bring values to the range of an image, what lies outside to its ends.

    Args:
        values: Of any shape.
        low: What becomes black.
        high: What becomes white; values that are all alike become black.
        deep: Whether 16 bits are used, or else 8.
    """
    kind: Any = np.uint16 if deep else np.uint8
    top = float(np.iinfo(kind).max)
    if not low < high:
        return np.zeros(values.shape, kind)
    scaled = values.astype(np.float64)
    scaled -= low
    scaled *= top / (high - low)
    np.clip(scaled, 0, top, out=scaled)
    return np.rint(scaled, out=scaled).astype(kind)


def _reader(path: Path) -> Reader:
    """Return the module that reads a file: by the suffix, or else by what DICOM begins with.

    Raises:
        DataError: If there is none, or no such file.
    """
    require_file(path)
    suffix = suffix_of(path)
    if suffix in RASTER:
        from medtransfer.data.reading import raster

        return raster
    if suffix in NIFTI:
        from medtransfer.data.reading import nifti

        return nifti
    if suffix in DICOM or _has_magic(path):
        from medtransfer.data.reading import dicom

        return dicom
    raise DataError(f"'{path}' is not an image file", remedy=REMEDY)


def _has_magic(path: Path) -> bool:
    # scanners name files by number, and the numbers have dots
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False

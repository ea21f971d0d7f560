"""Images of DICOM files, single and multi-frame.

Of a header only the elements named here are read: those that pixels need, and whose exam it is. No
value of any other reaches an error message, a warning or a log.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from medtransfer.data.base import Image
from medtransfer.data.reading.base import (
    REMEDY,
    Identity,
    Reading,
    bomb,
    bomb_limit,
    ends_of,
    named,
    no_range,
    require_finite,
    require_frame,
    stamp,
    stretch,
)
from medtransfer.data.reading.dicom_values import GROUPS, in_units, item_of, stored_bits, windowed
from medtransfer.errors import DataError

CODECS = "pip install 'medtransfer[dicom]'"  # what decodes compressed pixels
PERSON = ("PatientID", "StudyInstanceUID", "ViewPosition")
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
COLOURS = ("Red", "Green", "Blue")
HEADER = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in COLOURS),
    *(f"{colour}PaletteColorLookupTableData" for colour in COLOURS),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in COLOURS),
    *SPACINGS,
    *GROUPS,
)
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")

GREY = {"MONOCHROME1", "MONOCHROME2"}
KNOWN = {*GREY, "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}

RATIO = 1000  # pixels that one byte of a file may stand for: no codec of DICOM makes as many

# pydicom quotes values of the header
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


def frames(path: Path, reading: Reading) -> tuple[int, ...] | None:
    """Return the numbers of the frames of a multi-frame file."""
    with _guarded(path, None):
        header = _header(path, HEADER)
        count = _count(header)
        if count == 1:
            return None
        _require_size(header, path)
    return tuple(range(0, count, reading.step))


def read(path: Path, frame: int | None, reading: Reading) -> Image:
    """Return one frame: 8 bits where the file stores no more, else 16; colours become RGB.

    Raises:
        DataError: If the file has no pixels, or they cannot be decoded.
    """
    with _guarded(path, frame):
        data = _loaded(path, stamp(path))
        number = require_frame(path, frame, _count(data))
        photometric = data.get("PhotometricInterpretation")
        if photometric not in KNOWN:
            raise DataError(
                f"{named(path, frame)} has a photometric interpretation that is none of"
                f" {', '.join(sorted(KNOWN))}",
                remedy=REMEDY,
            )
        pixels = _pixels(data, number, path)
        bits = stored_bits(data)
        if photometric == "PALETTE COLOR":
            colours = apply_color_lut(pixels, data)[..., :3]
            depth = int(data.RedPaletteColorLookupTableDescriptor[2])
            if int(colours.max()) >= 2**depth:  # tables of few bits may fill whole words
                depth = 8 * colours.dtype.itemsize
            return stretch(colours, 0, 2**depth - 1, deep=depth > 8)
        if photometric not in GREY:
            return stretch(pixels, 0, 2**bits - 1, deep=bits > 8)
        ends = partial(_ends, path, stamp(path))
        grey = windowed(data, pixels, number, reading.window, ends)
        if grey is None:
            raise no_range(path, frame, bits)
        return np.iinfo(grey.dtype).max - grey if photometric == "MONOCHROME1" else grey


def spacing(
    path: Path,
    frame: int | None,
    reading: Reading,  # noqa: ARG001
) -> tuple[float, float] | None:
    """Return the distance in mm between rows and between columns, in the patient if it is known."""
    with _guarded(path, frame):
        header = _header(path, HEADER)
        for item in (item_of(header, frame or 0, "PixelMeasuresSequence"), header):
            for keyword in SPACINGS:
                if (found := item.get(keyword)) is not None:
                    rows, columns = found
                    return float(rows), float(columns)
    return None


def identity(path: Path) -> Identity:
    """Return whose exam it is."""
    with _guarded(path, None):
        header = _header(path, PERSON)
        patient, exam, view = (str(header.get(keyword) or "").strip() for keyword in PERSON)
    return Identity(patient, exam, view)


def _header(path: Path, keywords: tuple[str, ...]) -> Dataset:
    return dcmread(path, stop_before_pixels=True, specific_tags=list(keywords))


@lru_cache(maxsize=1)  # frames are asked for one after another
def _loaded(path: Path, changed: tuple[int, int]) -> Dataset:  # noqa: ARG001
    """Return a file with its pixels, not decoded yet."""
    data = dcmread(path, specific_tags=[*HEADER, *OFFSETS, *PIXELS])
    if not any(data.get(keyword) for keyword in PIXELS):
        raise DataError(
            f"image '{path}' has no pixels: it is a DICOM file of another kind", remedy=REMEDY
        )
    _require_size(data, path)
    return data


def _pixels(data: Dataset, number: int, path: Path) -> NDArray[Any]:
    """Decode one frame, (H, W) or (H, W, 3).

    Raises:
        DataError: If its transfer syntax has no codec here.
    """
    syntax = data.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise _no_codec(path, syntax.name) from None
    if not decoder.is_available:
        raise _no_codec(path, syntax.name, decoder.missing_dependencies)
    try:
        pixels = pixel_array(data, index=number)
    except RuntimeError:
        if not syntax.is_compressed:
            raise
        raise DataError(
            f"image '{path}' cannot be decoded: its transfer syntax is {syntax.name}, and the"
            " installed codecs do not know this kind of it, or its data are damaged",
            remedy=f"{CODECS}, or {REMEDY}",
        ) from None
    require_finite(pixels, path)
    return pixels


def _no_codec(path: Path, name: str, missing: list[str] | None = None) -> DataError:
    codecs = " | ".join(missing or ())
    return DataError(
        f"image '{path}' cannot be decoded: its transfer syntax is {name}, and no codec for it is"
        " installed",
        remedy=f"{CODECS} (any of {codecs} will do), or save the file uncompressed"
        if codecs
        else "save the file uncompressed, or leave such files out with dataset.on_error=skip",
    )


@lru_cache(maxsize=1)
def _ends(path: Path, changed: tuple[int, int]) -> tuple[float, float]:
    """Return the least and the greatest value of all frames, in the units of the modality."""
    data = _loaded(path, changed)
    found: list[float] = []
    for number in range(_count(data)):
        found += ends_of(in_units(data, _pixels(data, number, path), number))
    return min(found), max(found)


def _count(data: Dataset) -> int:
    return max(int(data.get("NumberOfFrames") or 1), 1)


def _require_size(data: Dataset, path: Path) -> None:
    """Refuse more pixels in a frame than memory should be given to, and more frames than can be."""
    limit, size, count = bomb_limit(), path.stat().st_size, _count(data)
    frame = int(data.Rows) * int(data.Columns)
    if frame > limit or frame * count > max(limit, RATIO * size):
        raise bomb(path, frame * count, limit)
    if count > size:
        raise DataError(
            f"image '{path}' cannot be decoded: it claims {count} frames in {size} bytes",
            remedy=REMEDY,
        )


@contextmanager
def _guarded(path: Path, frame: int | None) -> Iterator[None]:
    """Say what is wrong with a file, without a word of its header.

    Raises:
        DataError: If something is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the header
            yield
    except DataError:
        raise
    except InvalidDicomError:
        raise DataError(
            f"'{path}' is not a DICOM file, whatever its name says", remedy=REMEDY
        ) from None
    except Exception as error:  # pydicom meets damage with any, and quotes the header
        raise DataError(
            f"{named(path, frame)} cannot be decoded: its header or its pixels are damaged or cut"
            f" off ({type(error).__name__})",
            remedy=REMEDY,
        ) from None

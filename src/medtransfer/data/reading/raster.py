"""Images of one or several pages in the formats that Pillow decodes: PNG, JPEG, TIFF and so on.

Pixels are taken as they are stored: a note on how the camera was turned (EXIF) is passed over, or
masks and boxes would not fit. Colours of 16 bits keep them in TIFF; in PNG the upper eight remain.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from medtransfer.data.base import Image
from medtransfer.data.reading.base import (
    REMEDY,
    Reading,
    ends_of,
    named,
    no_range,
    require_finite,
    require_frame,
    stamp,
    stretch,
)
from medtransfer.errors import DataError

BITS, PHOTOMETRIC = 258, 262  # tags of TIFF
WHITE_IS_ZERO = 0  # the value of the latter


def frames(path: Path, reading: Reading) -> tuple[int, ...] | None:
    """Return the numbers of the pages of a TIFF file; other files hold one image.

    Of an animation the first image is taken.
    """
    if path.suffix.lower() not in {".tif", ".tiff"}:
        return None
    with _opened(path, None) as image:
        count = _pages(image)
    return None if count == 1 else tuple(range(0, count, reading.step))


def read(path: Path, frame: int | None, reading: Reading) -> Image:
    """Decode one page to (H, W) grey or (H, W, 3) colour.

    Raises:
        DataError: If the file is no image, is truncated, is a decompression bomb, or has grey
            values without a known range.
    """
    with _opened(path, frame) as image:
        page = require_frame(path, frame, _pages(image))
        image.seek(page)
        values = _grey(image, path)
        if values is None:
            if image.mode in {"RGB", "RGBA", "RGBX"} and max(_tag(image, BITS, (8,))) > 8:
                return _deep_colours(path, page)
            return np.asarray(image.convert("RGB"))
        wide = image.mode in {"I", "F"}
        deep = wide or values.dtype.itemsize > 1
        inverted = deep and _tag(image, PHOTOMETRIC, 1) == WHITE_IS_ZERO
    if reading.window != "auto":
        ends = _ends(path, stamp(path)) if reading.window == "full" else reading.window
        grey: NDArray[Any] = stretch(values, *ends, deep=deep)
    elif wide:
        raise no_range(path, frame, 32)
    else:
        grey = values.astype(np.uint16 if deep else np.uint8, copy=False)
    return np.iinfo(grey.dtype).max - grey if inverted else grey


def spacing(
    path: Path,  # noqa: ARG001
    frame: int | None,  # noqa: ARG001
    reading: Reading,  # noqa: ARG001
) -> tuple[float, float] | None:
    """Return None: what these formats state is the resolution of a print."""
    return None


def _pages(image: PILImage.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format == "TIFF" else 1


def _tag(image: PILImage.Image, number: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(number, default)


def _grey(image: PILImage.Image, path: Path) -> NDArray[Any] | None:
    """Return the grey values of a page, (H, W), without opacity; None if it is in colour.

    Raises:
        DataError: If some are no numbers.
    """
    if image.mode in {"1", "LA"}:
        return np.asarray(image.convert("L"))
    if image.mode not in {"L", "I", "F"} and not image.mode.startswith("I;16"):
        return None
    values = np.asarray(image)
    require_finite(values, path)
    return values


@lru_cache(maxsize=1)
def _ends(path: Path, changed: tuple[int, int]) -> tuple[float, float]:  # noqa: ARG001
    """Return the least and the greatest grey value of all pages."""
    found: list[float] = []
    with _opened(path, None) as image:
        for page in range(_pages(image)):
            image.seek(page)
            values = _grey(image, path)
            if values is not None:
                found += ends_of(values)
    return min(found), max(found)


def _deep_colours(path: Path, page: int) -> Image:
    """Decode colours of 16 bits, of which Pillow would drop eight.

    Raises:
        ValueError: If this cannot be done.
    """
    from tifffile import TiffFile, TiffFileError

    try:
        with TiffFile(path) as file:
            found = file.pages[page]
            pixels: NDArray[Any] = found.asarray()
            planes_first = found.axes.startswith("S")
    except (KeyError, TiffFileError, zlib.error) as error:
        raise ValueError(error) from None
    if pixels.dtype != np.uint16:
        msg = f"its colours are of type {pixels.dtype}, and 8 or 16 bits are expected"
        raise ValueError(msg)
    if planes_first:
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels[..., :3]  # without opacity


@contextmanager
def _opened(path: Path, frame: int | None) -> Iterator[PILImage.Image]:
    """Open an image, and say what is wrong with it.

    Raises:
        DataError: If it cannot be opened or, inside, decoded.
    """
    try:
        with PILImage.open(path) as image:
            yield image
    except UnidentifiedImageError:
        raise DataError(
            f"'{path}' is not an image, whatever its name says", remedy=REMEDY
        ) from None
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError) as error:
        raise DataError(f"{named(path, frame)} cannot be decoded: {error}", remedy=REMEDY) from None

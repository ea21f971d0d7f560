"""What an image is like in a few numbers, taken once from the pixels as they were read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from medtransfer.data.base import Image

CORNERS = ("top left", "top right", "bottom left", "bottom right")
SIDES = ("top", "bottom", "left", "right")

CORNER = 8  # a corner is this part of each side: burned-in letters and rulers lie within it
JUMP = 0.25  # of the range: neighbouring pixels of printed letters differ by more, of tissue seldom

DTYPE = np.dtype(
    [
        ("height", np.int32),  # pixels
        ("width", np.int32),
        ("bits", np.uint8),  # 8 or 16
        ("channels", np.uint8),  # as stored, 1 or 3
        ("colour", np.bool_),  # whether the channels differ anywhere
        ("low", np.float32),  # the least value; this and the next ones in parts of the type's range
        ("high", np.float32),
        ("mean", np.float32),
        ("std", np.float32),
        ("border", np.int32, (4,)),  # rows or columns of one value on each of `SIDES`
        ("corner_mean", np.float32, (4,)),  # in the order of `CORNERS`
        ("corner_std", np.float32, (4,)),
        ("corner_jumps", np.float32, (4,)),  # share of neighbours that differ by more than `JUMP`
        ("spacing", np.float32, (2,)),  # mm between rows and between columns; NaN where unknown
    ]
)


def describe(image: Image, spacing: tuple[float, float] | None) -> NDArray[Any]:
    """Return the facts of one image.

    Args:
        image: (H, W) or (H, W, 3), as read: neither scaled nor padded.
        spacing: Distance in mm between rows and between columns, if known.

    Returns:
        An array of `DTYPE` without dimensions.
    """
    facts = np.zeros((), DTYPE)
    height, width = image.shape[:2]
    colours = image.ndim == 3
    grey = image[..., 1] if colours else image  # of three channels green carries the most light
    top = float(np.iinfo(image.dtype).max)
    facts["height"], facts["width"] = height, width
    facts["bits"] = 8 * image.dtype.itemsize
    facts["channels"] = 3 if colours else 1
    if colours:
        first = image[..., :1]
        facts["colour"] = bool((image[..., 1:] != first).any())
    facts["low"], facts["high"] = image.min() / top, image.max() / top
    facts["mean"], facts["std"] = _moments(image, top)
    facts["border"] = _borders(image)
    rows, columns = max(2, height // CORNER), max(2, width // CORNER)
    for k, (y, x) in enumerate((y, x) for y in (0, height - rows) for x in (0, width - columns)):
        patch = grey[max(0, y) : y + rows, max(0, x) : x + columns].astype(np.float32) / top
        across, down = np.diff(patch, axis=1), np.diff(patch, axis=0)
        jumps = int((abs(across) > JUMP).sum() + (abs(down) > JUMP).sum())
        facts["corner_mean"][k], facts["corner_std"][k] = patch.mean(), patch.std()
        facts["corner_jumps"][k] = jumps / max(1, across.size + down.size)
    facts["spacing"] = np.nan if spacing is None else spacing
    return facts


def _moments(image: Image, top: float) -> tuple[float, float]:
    """Return mean and standard deviation, exactly, in parts of the range."""
    # the histogram is a copy of the image smaller than floats would be, and sums of it are exact
    counts = np.bincount(image.ravel())
    values = np.arange(len(counts)) / top
    mean = float(counts @ values) / image.size
    return mean, float(np.sqrt(counts @ np.square(values - mean) / image.size))


def _borders(image: Image) -> tuple[int, int, int, int]:
    """Return how many rows or columns on each side have the one value of that side's corner."""
    return (
        _constant(image),
        _constant(image[::-1]),
        _constant(image.swapaxes(0, 1)),
        _constant(image.swapaxes(0, 1)[::-1]),
    )


def _constant(lines: Image) -> int:
    """Return how many of the first lines hold nothing but the value of the first pixel."""
    first = lines[0, 0]
    if (lines[0] != first).any():
        return 0  # most images: one line is looked at
    other = (lines != first).reshape(len(lines), -1).any(axis=1)
    return int(other.argmax()) if other.any() else len(lines)

"""Images as small grey squares, whatever their size, in which copies are looked for."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.annotations import Fit

Floats = NDArray[np.float32]


def squares(
    images: NDArray[np.uint8] | NDArray[np.uint16],
    facts: NDArray[Any],
    indices: NDArray[np.intp],
    side: int,
) -> Floats:
    """Return images without their padding, grey, stretched to squares.

    A crop and a quarter turn change an image's proportions; in squares they do not matter.

    Args:
        images: (n, C, S, S), letterboxed.
        facts: (n,) of `facts.DTYPE`: their heights and widths tell what is padding.
        indices: (m,) of those asked for.
        side: Of the squares, in pixels.

    Returns:
        (m, side, side), in parts of the type's range.
    """
    result = np.empty((len(indices), side, side), np.float32)
    scale = np.float32(np.iinfo(images.dtype).max)
    shapes = np.stack([facts["height"][indices], facts["width"][indices]], axis=1)
    kinds, kind_of = np.unique(shapes, axis=0, return_inverse=True)
    for kind, (height, width) in enumerate(kinds.tolist()):
        fit = Fit.of(height, width, images.shape[-1])
        (members,) = np.nonzero(kind_of.reshape(-1) == kind)
        inside = images[indices[members]][:, :, *fit.place]
        grey = inside.mean(axis=1, dtype=np.float32) / scale
        result[members] = resampling(fit.height, side) @ grey @ resampling(fit.width, side).T
    return result


@lru_cache(maxsize=512)
def resampling(pixels: int, side: int, start: float = 0.0, end: float = 1.0) -> Floats:
    """Return the matrix (side, pixels) that scales a part of a line, by triangles.

    Args:
        pixels: Length of the line.
        side: Length of the result.
        start: Where the part starts, in parts of the line.
        end: Where it ends.
    """
    step = (end - start) * pixels / side
    centres = start * pixels + (np.arange(side) + 0.5) * step
    # shrinking widens the triangles, or details would alias
    distance = np.abs(np.arange(pixels) + 0.5 - centres[:, None]) / max(1.0, step)
    weights = np.clip(1 - distance, 0, None)
    matrix: Floats = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def turned(image: Floats, turn: int) -> Floats:
    """Return squares (..., side, side) in one of their eight orientations.

    Args:
        image: The squares.
        turn: 0 to 7: 4 swaps rows and columns, then 1 turns the rows round and 2 the columns.
    """
    if turn & 4:
        image = image.swapaxes(-1, -2)
    if turn & 1:
        image = image[..., ::-1, :]
    if turn & 2:
        image = image[..., ::-1]
    return image

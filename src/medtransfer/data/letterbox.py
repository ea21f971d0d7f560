"""Images are scaled to fit a square, padded, and given the channels asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from medtransfer.data.annotations import Fit
from medtransfer.data.base import Image

LUMA = (19595, 38470, 7471)  # of red, green and blue in grey (ITU-R BT.601), as Pillow weighs them
ONE = sum(LUMA)  # 16 bits times this do not overflow 32


def letterbox(image: Image, size: int, channels: int) -> Image:
    """Scale an image to fit a square, pad it with black, and give it the channels asked for.

    Args:
        image: (H, W) or (H, W, 3), uint8 or uint16.
        size: Height and width of the result.
        channels: 1 or 3.

    Returns:
        (channels, size, size) of the type of the image.
    """
    scaled = _scaled if image.dtype == np.uint8 else _scaled_deep
    height, width = image.shape[:2]
    fit = Fit.of(height, width, size)
    canvas = np.zeros((size, size, channels), dtype=image.dtype)
    canvas[fit.place] = scaled(image, fit, channels).reshape(fit.height, fit.width, -1)
    return canvas.transpose(2, 0, 1)


def _scaled(image: Image, fit: Fit, channels: int) -> Image:
    picture = PILImage.fromarray(image).convert("L" if channels == 1 else "RGB")
    return np.asarray(_resized(picture, fit))


def _scaled_deep(image: Image, fit: Fit, channels: int) -> Image:
    """Do the same with 16 bits, for which Pillow has no mode in colour and no filter in grey."""
    if image.ndim == 3 and channels == 1:
        image = _grey(image)
    planes = [image] if image.ndim == 2 else list(np.moveaxis(image, 2, 0))
    if (fit.height, fit.width) != image.shape[:2]:
        planes = [_plane(plane, fit) for plane in planes]
    return np.stack(planes * (channels // len(planes)), axis=2)


def _plane(plane: Image, fit: Fit) -> NDArray[np.uint16]:
    picture = PILImage.fromarray(plane.astype(np.float32))
    values: NDArray[np.float32] = np.asarray(_resized(picture, fit))
    # the filter swings over where edges are sharp
    values = np.rint(values.clip(0, np.iinfo(np.uint16).max))
    return values.astype(np.uint16)


def _grey(image: Image) -> NDArray[np.uint16]:
    weighted: NDArray[np.uint32] = image.astype(np.uint32) @ np.asarray(LUMA, dtype=np.uint32)
    return ((weighted + ONE // 2) // ONE).astype(np.uint16)


def _resized(picture: PILImage.Image, fit: Fit) -> PILImage.Image:
    target = (fit.width, fit.height)
    if target == picture.size:
        return picture
    return picture.resize(target, PILImage.Resampling.BICUBIC, reducing_gap=3.0)

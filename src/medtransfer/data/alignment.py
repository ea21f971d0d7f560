"""Whether two images that look alike are one: they are laid over each other, pixel by pixel."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from medtransfer.data.squares import Floats

SPREAD = 3.0  # pixels: coarser structure is left out, which images of one kind share
FLOOR = 0.1  # of an image's deviation: where there is less detail it is noise
BLANK = 2e-4  # of the range: images that deviate less are of one value
COARSE = 1.2  # pixels of blur with which images are first laid over each other
REACH = 0.06  # of the side, by which a window's end moves: twice what parts leave open
LITTLE = 0.25  # of an image's variance


def detail(images: Floats) -> Floats:
    """Return the fine structure (m, side, side) of images, of equal strength everywhere.

    What brightness, contrast and gamma change is gone.
    """
    fine = images - _blurred(images, SPREAD)
    strength = np.sqrt(_blurred(np.square(fine), SPREAD))
    deviation = images.std(axis=(1, 2), keepdims=True)
    result: Floats = fine / (strength + FLOOR * deviation + BLANK)
    result[deviation[:, 0, 0] < BLANK] = 0  # what is left of rounding
    return result


def align(wholes: Floats, copies: Floats, windows: Floats, steps: int) -> Floats:
    """Return windows of images, moved and scaled until these look most like others.

    The steps are Gauss-Newton's (Lucas and Kanade, "An iterative image registration technique with
    an application to stereo vision", 1981).

    Args:
        wholes: (m, side, side), `detail` of the images of which a window is meant.
        copies: (m, side, side), `detail` of the images that may be these windows.
        windows: (m, 4), where the windows start and end along rows, and along columns, in parts of
            the side.
        steps: How many.

    Returns:
        The best windows (m, 4) on the way.
    """
    best, moved = windows, windows
    now = cut(wholes, moved)
    score = correlation(now, copies)
    for _ in range(steps):
        moved = moved + _step(now, copies, moved) / wholes.shape[-1]
        # where nothing fits, a step would lead anywhere
        moved = np.clip(moved, windows - REACH, windows + REACH)
        now = cut(wholes, moved)
        found = correlation(now, copies)
        best = np.where((found > score)[:, None], moved, best)
        score = np.maximum(found, score)
    return best


def blurred(images: Floats) -> Floats:
    """Return images (m, side, side) without what is finer than windows are laid at first."""
    return _blurred(images, COARSE)


def _blurred(images: Floats, sigma: float) -> Floats:
    # as products of matrices several times as fast as filters of so small images
    matrix = _blur(images.shape[-1], sigma)
    return (matrix @ images @ matrix.T).astype(np.float32, copy=False)


@lru_cache
def _blur(side: int, sigma: float) -> Floats:
    """Return the matrix (side, side) that blurs a line, reflected at its ends."""
    return gaussian_filter1d(np.eye(side, dtype=np.float32), sigma, axis=0)


def partial_correlation(a: Floats, b: Floats, shared: tuple[Floats, Floats]) -> Floats:
    """Return the correlation (m,) of what images do not have in common with all the others.

    Args:
        a: (m, side, side).
        b: (m, side, side).
        shared: (m, side, side) each, what all images have in common, laid like `a` and like `b`.
    """
    left_a, left_b = (_rest(image, shared) for image in (a, b))
    result = correlation(left_a, left_b)
    # an image that is itself what all have in common: a still scene, or a few images
    little = np.minimum(_share(left_a, a), _share(left_b, b)) < LITTLE
    mixed: Floats = np.where(little, correlation(a, b), result)
    return mixed


def _rest(image: Floats, shared: tuple[Floats, Floats]) -> Floats:
    """Return what a linear combination of the shared images does not explain."""
    basis = np.stack(shared, axis=1).reshape(len(image), 2, -1)
    basis -= basis.mean(axis=-1, keepdims=True)
    flat = image.reshape(len(image), -1, 1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    normal = basis @ basis.swapaxes(1, 2) + np.float32(1e-3) * np.eye(2, dtype=np.float32)
    rest: Floats = flat - basis.swapaxes(1, 2) @ np.linalg.solve(normal, basis @ flat)
    return rest.reshape(image.shape).astype(np.float32)


def _share(part: Floats, image: Floats) -> Floats:
    variance: Floats = part.var(axis=(1, 2)) / np.maximum(image.var(axis=(1, 2)), 1e-6)
    return variance


def correlation(a: Floats, b: Floats) -> Floats:
    """Return the correlation (m,) of images (m, side, side); 0 where one has no structure."""
    a = a - a.mean(axis=(1, 2), keepdims=True)
    b = b - b.mean(axis=(1, 2), keepdims=True)
    norm = np.sqrt(np.square(a).sum(axis=(1, 2)) * np.square(b).sum(axis=(1, 2)))
    result: Floats = (a * b).sum(axis=(1, 2)) / np.maximum(norm, 1e-6)
    return result


def cut(images: Floats, windows: Floats) -> Floats:
    """Return windows (m, 4) of images (m, side, side), scaled to the side."""
    rows = _weights(images.shape[1], windows[:, :2])
    columns = _weights(images.shape[2], windows[:, 2:])
    return (rows @ images @ columns.swapaxes(1, 2)).astype(np.float32, copy=False)


def _weights(side: int, ends: Floats) -> Floats:
    """Return matrices (m, side, side) that scale parts of lines, linear between pixels."""
    start, end = ends[:, :1], ends[:, 1:]
    places = start * side + (np.arange(side, dtype=np.float32) + 0.5) * (end - start) - 0.5
    places = places.clip(0, side - 1).astype(np.float32)
    distance = np.abs(places[:, :, None] - np.arange(side, dtype=np.float32))
    weights: Floats = np.clip(1 - distance, 0, None)
    return weights


def _step(now: Floats, copy: Floats, windows: Floats) -> Floats:
    """Return by how many pixels to move each window's ends, (m, 4)."""
    side = now.shape[-1]
    share = ((np.arange(side, dtype=np.float32) + 0.5) / side)[:, None]
    down = np.gradient(now, axis=1) / (windows[:, 1] - windows[:, 0])[:, None, None]
    across = np.gradient(now, axis=2) / (windows[:, 3] - windows[:, 2])[:, None, None]
    # a window's end moves the pixels near it most
    moves = (down * (1 - share), down * share, across * (1 - share.T), across * share.T)
    slopes = np.stack(moves, axis=1).reshape(len(now), 4, -1)
    rest = (_unit(copy) - _unit(now)).reshape(len(now), -1, 1)
    slopes /= np.maximum(now.std(axis=(1, 2)), 1e-6)[:, None, None]
    normal = slopes @ slopes.swapaxes(1, 2)
    normal += (1e-3 * np.trace(normal, axis1=1, axis2=2) + 1e-6)[:, None, None] * np.eye(
        4, dtype=np.float32
    )
    result: NDArray[np.float32] = np.linalg.solve(normal, slopes @ rest)[..., 0]
    return result


def _unit(images: Floats) -> Floats:
    """Return images of zero mean and unit variance."""
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    unit: Floats = centred / np.maximum(images.std(axis=(1, 2), keepdims=True), 1e-6)
    return unit

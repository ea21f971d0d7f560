"""Metrics of segmentation for each image and class, from maps of class indices.

Maps are integer tensors (N, H, W), or (H, W) for one image, with 0 for background and 1 to K for
the foreground classes. Every metric is a float32 tensor (N, K) on the device of the prediction.

A class that is absent from both the truth and the prediction of an image has no say there: its
value is NaN, and means leave it out. A class absent from only one of the two is a miss: Dice,
Jaccard and NSD are 0, and the Hausdorff distance is the diagonal of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree
from torch import Tensor

from medtransfer.errors import ConfigError, DataError

# Three pixels of 0.1 mm must be within 0.3 mm, whatever floats make of it.
_SLACK = 1 + 1e-6


def overlap_metrics(
    predicted: Tensor, target: Tensor, classes: int, *, ignore_index: int | None = None
) -> dict[str, Tensor]:
    """Return `dice` and `jaccard`, each (N, K) in [0, 1]; see the module for absent classes.

    Args:
        predicted: Class indices in [0, K].
        target: Class indices in [0, K], or `ignore_index`.
        classes: K, the number of foreground classes.
        ignore_index: Pixels with this target are background in both maps.

    Raises:
        DataError: The maps differ in shape, are not integer, or hold another class.
    """
    predicted, target = _checked(predicted, target, classes, ignore_index)
    shared, either = [], []
    for k in range(1, classes + 1):
        ours, theirs = predicted == k, target == k
        shared.append((ours & theirs).sum((1, 2)))
        either.append((ours | theirs).sum((1, 2)))
    both, union = torch.stack(shared, 1), torch.stack(either, 1)
    # 0 / 0 is NaN, which is the rule
    return {"dice": 2 * both / (both + union), "jaccard": both / union}


def surface_metrics(
    predicted: Tensor,
    target: Tensor,
    classes: int,
    *,
    tolerance: float,
    ignore_index: int | None = None,
    spacing: Tensor | Sequence[float] = (1.0, 1.0),
) -> dict[str, Tensor]:
    """Return `nsd` in [0, 1] and `hd95` in units of `spacing`, each (N, K).

    The boundary of a mask is its pixels that have a neighbour (up, down, left, right) outside of
    it; the image's edge and ignored pixels are outside. Distances go from the centre of each pixel
    of one boundary to the nearest of the other.

    `nsd`: the share of the pixels of both boundaries that lie within `tolerance` of the other,
    the normalised surface Dice of Nikolov et al. (2018, arXiv 1809.04430), each pixel counted
    once instead of by the length of contour in it.
    `hd95`: the 95th percentile, linearly interpolated, of the distances from the prediction to
    the truth, or that from the truth to the prediction, whichever is larger.

    See the module for absent classes.

    Args:
        predicted: Class indices in [0, K].
        target: Class indices in [0, K], or `ignore_index`.
        classes: K, the number of foreground classes.
        tolerance: The distance that does not matter, at least 0, in units of `spacing`.
        ignore_index: Pixels with this target are background in both maps.
        spacing: Height and width of a pixel, (2,) for all images or (N, 2).

    Raises:
        ConfigError: The tolerance is negative.
        DataError: The maps differ in shape, are not integer, or hold another class; or the
            spacing is not positive.
    """
    if not tolerance >= 0:
        raise ConfigError(f"tolerance {tolerance} is not a distance", remedy="take 0 or more")
    device = predicted.device
    predicted, target = _checked(predicted, target, classes, ignore_index)
    ours, theirs = predicted.cpu().numpy(), target.cpu().numpy()
    pixels = _spacing(spacing, len(ours))
    values = np.full((2, len(ours), classes), np.nan)
    for n, pixel in enumerate(pixels):
        for k in range(classes):
            values[:, n, k] = _surface(ours[n] == k + 1, theirs[n] == k + 1, pixel, tolerance)
    nsd, hd95 = torch.from_numpy(values.astype(np.float32)).to(device)
    return {"nsd": nsd, "hd95": hd95}


def mean_foreground(values: Tensor) -> float:
    """Return the mean over classes of the means over images, of values (N, K).

    NaN has no say; a class that no image has is left out, and without any the mean is NaN.
    """
    return float(values.nanmean(0).nanmean())


def _surface(
    ours: NDArray[np.bool_],
    theirs: NDArray[np.bool_],
    pixel: NDArray[np.float64],
    tolerance: float,
) -> tuple[float, float]:
    """Return the normalised surface Dice and the 95th percentile distance of two masks (H, W)."""
    if not ours.any() and not theirs.any():
        return math.nan, math.nan
    if not ours.any() or not theirs.any():
        return 0.0, math.hypot(*(ours.shape * pixel))
    # Points in a tree are as exact as a distance transform, and cost what the boundary costs, not
    # what the image does: 6 times faster on masks of 256 x 256.
    a, b = _boundary(ours) * pixel, _boundary(theirs) * pixel
    there, back = KDTree(b).query(a)[0], KDTree(a).query(b)[0]
    close = (np.concatenate([there, back]) <= tolerance * _SLACK).mean()
    return float(close), float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _boundary(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return rows and columns, shape (points, 2)."""
    return np.argwhere(mask & ~binary_erosion(mask))


def _spacing(spacing: Tensor | Sequence[float], images: int) -> NDArray[np.float64]:
    given = torch.as_tensor(spacing, dtype=torch.float64).cpu().numpy()
    fits = given.shape in {(2,), (images, 2)}
    if not fits or not np.isfinite(given).all() or not (given > 0).all():
        raise DataError(
            f"spacing {given.tolist()} is not a positive height and width of a pixel",
            remedy="give two numbers, or two for each image",
        )
    return np.broadcast_to(given, (images, 2))


def _checked(
    predicted: Tensor, target: Tensor, classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Return both maps (N, H, W), ignored pixels as background."""
    if predicted.shape != target.shape or predicted.ndim not in (2, 3):
        raise DataError(
            f"the prediction has shape {tuple(predicted.shape)} and the truth "
            f"{tuple(target.shape)}, not both (N, H, W) or (H, W)"
        )
    if predicted.is_floating_point() or target.is_floating_point():
        raise DataError(
            f"maps of {predicted.dtype} and {target.dtype} are no class indices",
            remedy="take the argmax over classes",
        )
    if ignore_index is not None:
        ignored = target == ignore_index
        predicted, target = predicted.masked_fill(ignored, 0), target.masked_fill(ignored, 0)
    for name, labels in (("prediction", predicted), ("truth", target)):
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= classes:
            raise DataError(
                f"the {name} holds classes from {int(labels.min())} to {int(labels.max())}, "
                f"but there are 0 to {classes}",
                remedy="set ignore_index if one of them marks pixels to leave out",
            )
    height, width = predicted.shape[-2:]
    return predicted.reshape(-1, height, width), target.reshape(-1, height, width)

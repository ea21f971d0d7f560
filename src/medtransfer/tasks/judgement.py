"""What a trained model says of one case that nobody has judged before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.data.base import Boxes, Mask


@dataclass(frozen=True, eq=False)
class Judgement:
    """What is said of one image, or of the exam that begins with it.

    Attributes:
        index: Position of its record.
        values: By name: what is predicted, and how probable it is.
        mask: Class of each pixel.
        boxes: Objects, in pixels of the image.
        scores: Of the boxes, (n,).
        weights: How much each image of the exam counts, by the position of its record.
    """

    index: int
    values: Mapping[str, str | float | int]
    mask: Mask | None = None
    boxes: Boxes | None = None
    scores: NDArray[np.float32] | None = None
    weights: Mapping[int, float] = field(default_factory=dict)


def by_name(names: tuple[str, ...], scores: Tensor) -> dict[str, float]:
    """Return scores (K,) under the names that tables of predictions give them."""
    return {f"score_{name}": float(s) for name, s in zip(names, scores.tolist(), strict=True)}

"""Masks and boxes are checked against their image and brought into its square."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image as PILImage

from medtransfer.data.base import IGNORED, Boxes, Mask
from medtransfer.errors import DataError

REMEDY = "correct the annotation, or leave such samples out with dataset.on_error=skip"
BOX_REMEDY = "correct the annotation, or leave such boxes out with dataset.on_error=skip"


@dataclass(frozen=True)
class Fit:
    """Where an image comes to lie when it is scaled to fit a square and centred there.

    Attributes:
        height: Of the image in the square, in pixels.
        width: Of the image in the square.
        top: Rows of padding above it.
        left: Columns of padding to its left.
        size: Height and width of the square.
    """

    height: int
    width: int
    top: int
    left: int
    size: int

    @classmethod
    def of(cls, height: int, width: int, size: int) -> Fit:
        """Return the fit of an image of this height and width."""
        scale = size / max(height, width)
        rows, columns = (max(1, round(side * scale)) for side in (height, width))
        return cls(rows, columns, (size - rows) // 2, (size - columns) // 2, size)

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the square that the image takes."""
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )

    def mask(self, mask: Mask) -> Mask:
        """Return a mask (H, W) in the square (size, size), which is ignored around it."""
        picture = PILImage.fromarray(mask)
        if mask.shape != (self.height, self.width):
            # any other filter would invent classes between two
            picture = picture.resize((self.width, self.height), PILImage.Resampling.NEAREST)
        canvas = np.full((self.size, self.size), IGNORED, dtype=np.uint8)
        canvas[self.place] = np.asarray(picture)
        return canvas

    def boxes(self, boxes: Boxes, height: int, width: int) -> Boxes:
        """Return the boxes of an image of this height and width in the square."""
        scale = np.asarray([self.width / width, self.height / height] * 2)
        shift = np.asarray([self.left, self.top] * 2)
        moved = boxes.boxes.astype(np.float64) * scale + shift
        return Boxes(moved.astype(np.float32), boxes.labels, (self.size, self.size))

    def mask_back(self, mask: Mask, height: int, width: int) -> Mask:
        """Return what a mask of the square says of an image of this height and width."""
        picture = PILImage.fromarray(np.ascontiguousarray(mask[self.place]))
        return np.asarray(picture.resize((width, height), PILImage.Resampling.NEAREST))

    def boxes_back(self, boxes: Boxes, height: int, width: int) -> Boxes:
        """Return boxes of the square in an image of this height and width, cut at its edges."""
        scale = np.asarray([self.width / width, self.height / height] * 2)
        shift = np.asarray([self.left, self.top] * 2)
        moved = (boxes.boxes.astype(np.float64) - shift) / scale
        moved = moved.clip(0, [width, height] * 2).astype(np.float32)
        return Boxes(moved, boxes.labels, (height, width))


def check_mask(mask: Mask, size: tuple[int, int], classes: int, file: str) -> None:
    """Refuse a mask that does not fit its image.

    Args:
        mask: (H, W).
        size: Height and width of the image.
        classes: How many foreground classes there are.
        file: Names the mask in messages.

    Raises:
        DataError: If the mask has another size, or values beyond the classes.
    """
    _require_size(mask.shape, size, f"mask '{file}'")
    values = np.unique(mask)
    unknown = values[(values > classes) & (values != IGNORED)]
    if len(unknown):
        raise DataError(
            f"mask '{file}' has the value {unknown[0]}, and there are {classes} foreground classes",
            remedy=REMEDY,
        )


def check_boxes(
    found: Boxes, size: tuple[int, int], names: tuple[str, ...], file: str
) -> tuple[Boxes, list[DataError]]:
    """Part the boxes that lie in their image and have an area from those that do not.

    Args:
        found: As annotated.
        size: Height and width of the image.
        names: Of the foreground classes.
        file: Names the annotation in messages.

    Returns:
        The sound boxes, and an error for each of the others.

    Raises:
        DataError: If the annotation was made for an image of another size.
    """
    if found.size is not None:
        _require_size(found.size, size, f"the image that '{file}' annotates")
    height, width = size
    sound = np.ones(len(found.boxes), dtype=np.bool_)
    errors = []
    for i, (box, label) in enumerate(zip(found.boxes.tolist(), found.labels, strict=True)):
        x0, y0, x1, y1 = box
        # so written, a coordinate that is no number fails too
        if not (x0 < x1 and y0 < y1):
            wrong = "is empty or inverted"
        elif not (x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height):
            wrong = f"reaches outside of its image of {width} x {height} pixels"
        else:
            continue
        sound[i] = False
        corners = ", ".join(f"{value:g}" for value in box)
        errors.append(
            DataError(
                f"box {i + 1} ({names[label]}: {corners}) of '{file}' {wrong}", remedy=BOX_REMEDY
            )
        )
    return Boxes(found.boxes[sound], found.labels[sound], found.size), errors


def _require_size(found: tuple[int, ...], size: tuple[int, int], what: str) -> None:
    if tuple(found) != size:
        height, width = size
        raise DataError(
            f"{what} has {found[1]} x {found[0]} pixels, and its image {width} x {height}",
            remedy=REMEDY,
        )

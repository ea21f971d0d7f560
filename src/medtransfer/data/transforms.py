"""Augmentation of training images, by torchvision's transforms, with their masks or boxes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

from medtransfer.data.base import IGNORED

SMALLEST = 1.0  # pixels
LEAST = 0.1  # of the area

Share = Annotated[float, Field(ge=0, le=1)]


Sample = TypeVar("Sample", Tensor, dict[str, Tensor])


class Transform(ABC):
    """What is done to a training image; validation and test images stay as they are."""

    @property
    @abstractmethod
    def random(self) -> bool:
        """Whether two calls may differ."""

    @abstractmethod
    def __call__(self, sample: Sample) -> Sample:
        """Return an image transformed, alone or with its mask or boxes.

        Randomness comes from torch's global generator, which the loader seeds for each sample. The
        image is changed alike whether it comes alone or not.

        Args:
            sample: (C, H, W) float32 in [0, 1], or a dictionary of such an `image` and what moves
                with it, as torchvision's tv_tensors.
        """


def augmented(transform: Transform, sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return an image transformed together with what is annotated in it.

    Boxes are cut at the image's border. One that was cut is dropped with its label, if it is less
    than a pixel wide or high, or if less than a tenth of its area is left.

    Args:
        transform: What is done.
        sample: `image` (C, H, W); perhaps `mask` (H, W) uint8, which becomes `IGNORED` where no
            part of the image comes to lie; perhaps `boxes` (n, 4), a row x0, y0, x1, y1 in pixels,
            and their `labels` (n,).
    """
    image = sample["image"]
    if "mask" in sample:
        masked: dict[str, Tensor] = {
            "image": tv_tensors.Image(image),
            "mask": tv_tensors.Mask(sample["mask"]),
        }
        return {name: value.as_subclass(Tensor) for name, value in transform(masked).items()}
    if "boxes" not in sample:
        return {"image": transform(image)}
    height, width = image.shape[-2:]
    boxed: dict[str, Tensor] = {
        "image": tv_tensors.Image(image),
        "boxes": tv_tensors.BoundingBoxes(
            sample["boxes"],
            format="XYXY",
            canvas_size=(height, width),
            clamping_mode=None,  # whole, so that it can be told how much is cut off
        ),
    }
    moved = transform(boxed)
    whole = moved["boxes"].as_subclass(Tensor)
    cut = whole.clamp(torch.zeros(4), torch.tensor([width, height] * 2))
    sides, before = cut[:, 2:] - cut[:, :2], whole[:, 2:] - whole[:, :2]
    enough = (sides >= SMALLEST).all(1) & (sides.prod(1) >= LEAST * before.prod(1))
    kept = enough | (cut == whole).all(1)
    return {
        "image": moved["image"].as_subclass(Tensor),
        "boxes": cut[kept],
        "labels": sample["labels"][kept],
    }


def warped(image: Tensor, *, angle: float, translate: Sequence[float], scale: float) -> Tensor:
    """Return an image turned, scaled about its middle, and shifted; black where it does not reach.

    As torchvision's `affine` has it with bilinear interpolation, which takes twice as long.

    Args:
        image: (C, H, W).
        angle: Degrees, clockwise.
        translate: Pixels to the right, and down.
        scale: Above 1 the image becomes larger.
    """
    height, width = image.shape[-2:]
    cos, sin = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
    # where a pixel of the result comes from, in pixels from the middle
    across = torch.arange(width, dtype=image.dtype) - (width - 1) / 2 - translate[0]
    down = (torch.arange(height, dtype=image.dtype) - (height - 1) / 2 - translate[1])[:, None]
    x, y = cos * across + sin * down, cos * down - sin * across
    grid = torch.stack([x / (width / 2), y / (height / 2)], dim=-1)
    return functional.grid_sample(image[None], grid[None], align_corners=False)[0]


class _Affine(v2.RandomAffine):
    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if isinstance(inpt, (tv_tensors.Mask, tv_tensors.BoundingBoxes)):
            return super().transform(inpt, params)
        moved = {name: params[name] for name in ("angle", "translate", "scale")}
        image = warped(inpt.as_subclass(Tensor), **moved)
        return tv_tensors.wrap(image, like=inpt) if isinstance(inpt, tv_tensors.Image) else image


@dataclass(frozen=True, kw_only=True)
class Augment(Transform):
    """Geometric and photometric changes, each absent when its strength is zero.

    Attributes:
        flip: Mirror left and right in half of the cases.
        rotation: Largest angle, in degrees.
        translation: Largest shift, as a share of the width and height.
        scale: Largest change of size, as a share.
        brightness: Largest change of brightness, as a share.
        contrast: Largest change of contrast, as a share.
        blur: Probability of a Gaussian blur.
        erasing: Probability that a patch is erased.
    """

    flip: bool
    rotation: Annotated[float, Field(ge=0, le=180)]
    translation: Share
    scale: Annotated[float, Field(ge=0, lt=1)]
    brightness: Share
    contrast: Share
    blur: Share
    erasing: Share

    def __post_init__(self) -> None:
        moves: list[torch.nn.Module] = []
        if self.flip:
            moves.append(v2.RandomHorizontalFlip())
        if self.rotation or self.translation or self.scale:
            affine = _Affine(
                (-self.rotation, self.rotation),
                translate=(self.translation, self.translation),
                scale=(1 - self.scale, 1 + self.scale),
                interpolation=v2.InterpolationMode.BILINEAR,
                fill={tv_tensors.Mask: IGNORED, "others": None},
            )
            moves.append(affine)
        changes: list[torch.nn.Module] = []
        if self.brightness or self.contrast:
            changes.append(v2.ColorJitter(brightness=self.brightness, contrast=self.contrast))
        if self.blur:
            changes.append(v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], p=self.blur))
        if self.erasing:
            changes.append(v2.RandomErasing(p=self.erasing, scale=(0.02, 0.15)))
        for name, steps in (("_moves", moves), ("_changes", changes)):
            object.__setattr__(self, name, v2.Compose(steps) if steps else torch.nn.Identity())

    @property
    def random(self) -> bool:
        """See `Transform.random`."""
        steps = (self._moves, self._changes)  # type: ignore[attr-defined]
        return not all(isinstance(step, torch.nn.Identity) for step in steps)

    def __call__(self, sample: Sample) -> Sample:
        """See `Transform.__call__`."""
        sample = self._moves(sample)  # type: ignore[attr-defined]
        if isinstance(sample, dict):
            # colours and erased patches are of the image alone
            return {**sample, "image": self._changes(sample["image"])}  # type: ignore[attr-defined]
        return self._changes(sample)  # type: ignore[attr-defined, no-any-return]

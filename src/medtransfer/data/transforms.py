"""Augmentation of training images, by torchvision's transforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torchvision.transforms import v2

Share = Annotated[float, Field(ge=0, le=1)]


class Transform(ABC):
    """What is done to a training image; validation and test images stay as they are."""

    @property
    @abstractmethod
    def random(self) -> bool:
        """Whether two calls may differ."""

    @abstractmethod
    def __call__(self, image: Tensor) -> Tensor:
        """Return the image transformed; both (C, H, W) float32 in [0, 1].

        Randomness comes from torch's global generator, which the loader seeds for each sample.
        """


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
        steps: list[torch.nn.Module] = []
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.rotation or self.translation or self.scale:
            affine = v2.RandomAffine(
                (-self.rotation, self.rotation),
                translate=(self.translation, self.translation),
                scale=(1 - self.scale, 1 + self.scale),
                interpolation=v2.InterpolationMode.BILINEAR,
            )
            steps.append(affine)
        if self.brightness or self.contrast:
            steps.append(v2.ColorJitter(brightness=self.brightness, contrast=self.contrast))
        if self.blur:
            steps.append(v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], p=self.blur))
        if self.erasing:
            steps.append(v2.RandomErasing(p=self.erasing, scale=(0.02, 0.15)))
        object.__setattr__(self, "_steps", v2.Compose(steps) if steps else torch.nn.Identity())

    @property
    def random(self) -> bool:
        """See `Transform.random`."""
        return not isinstance(self._steps, torch.nn.Identity)  # type: ignore[attr-defined]

    def __call__(self, image: Tensor) -> Tensor:
        """See `Transform.__call__`."""
        return self._steps(image)  # type: ignore[attr-defined, no-any-return]

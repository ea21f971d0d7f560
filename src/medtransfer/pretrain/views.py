"""Random views of images, drawn for a whole batch at once."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, pad

from medtransfer.data.transforms import Share

BLUR = (1 / 200, 1 / 50)  # standard deviations, as shares of the image's width


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Views:
    """What a view may differ in from its image; nothing does at a strength of zero.

    What a class lies in must not be among it: brightness is no noise where it tells a cyst.

    Attributes:
        crop: Largest share of the width and height that is cut away.
        flip: Whether half of the views are mirrored left and right.
        rotation: Largest angle, in degrees.
        brightness: Largest change of brightness, as a share.
        contrast: Largest change of contrast, as a share.
        blur: Share of the views that are blurred, some more and some less.
        noise: Largest standard deviation of Gaussian noise; pixels lie in [0, 1].
    """

    crop: Annotated[float, Field(ge=0, lt=1)]
    flip: bool
    rotation: Annotated[float, Field(ge=0, le=180)]
    brightness: Share
    contrast: Share
    blur: Share
    noise: Annotated[float, Field(ge=0, le=1)]

    def __call__(self, images: Tensor) -> Tensor:
        """Return one view of each image.

        Each image gets draws of its own, from torch's global generator.

        Args:
            images: (N, C, S, S) float32 in [0, 1].

        Returns:
            The views, in the form of the images.
        """
        if self.crop or self.flip or self.rotation:
            images = self._placed(images)
        if self.brightness or self.contrast:
            images = self._lit(images)
        if self.blur:
            images = self._blurred(images)
        if self.noise:
            images = images + _uniform(images) * self.noise * torch.randn_like(images)
        return images.clamp(0, 1)

    def _placed(self, images: Tensor) -> Tensor:
        """Crop, rotate and mirror by one resampling; what lies outside is mirrored in."""
        size = 1 - self.crop * _uniform(images)
        angle = math.radians(self.rotation) * (2 * _uniform(images) - 1)
        mirror = torch.ones_like(size)
        if self.flip:
            mirror = 1 - 2 * (_uniform(images) < 0.5).to(images)
        across, down = ((1 - size) * (2 * _uniform(images) - 1) for _ in range(2))
        cos, sin = size * angle.cos(), size * angle.sin()
        rows = (cos * mirror, -sin, across, sin * mirror, cos, down)
        theta = torch.cat(rows, dim=1).view(-1, 2, 3)
        grid = affine_grid(theta, list(images.shape), align_corners=False)
        return grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def _lit(self, images: Tensor) -> Tensor:
        """Change the contrast about each image's mean, then the brightness."""
        contrast = 1 + self.contrast * (2 * _uniform(images) - 1)
        brightness = 1 + self.brightness * (2 * _uniform(images) - 1)
        mean = images.mean((1, 2, 3), keepdim=True)
        return torch.lerp(mean, images, contrast) * brightness

    def _blurred(self, images: Tensor) -> Tensor:
        """Blur some images by a Gaussian, first along the rows and then along the columns.

        Shifted images are added rather than convolved, which mixed precision would round.
        """
        chosen = _uniform(images) < self.blur
        narrowest, widest = (share * images.shape[-1] for share in BLUR)
        sigma = narrowest + (widest - narrowest) * _uniform(images)
        reach = math.ceil(2 * widest)
        offsets = torch.arange(-reach, reach + 1, device=images.device)
        taps = (-0.5 * (offsets / sigma.view(-1, 1)) ** 2).exp() * chosen.view(-1, 1)
        taps[:, reach] = 1.0
        taps = (taps / taps.sum(1, keepdim=True)).view(len(images), 1, 1, 1, -1)
        for axis in (-1, -2):
            edges = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
            padded, length = pad(images, edges, mode="replicate"), images.shape[axis]
            images = sum(
                (taps[..., k] * padded.narrow(axis, k, length) for k in range(2 * reach + 1)),
                start=torch.zeros_like(images),
            )
        return images


def _uniform(images: Tensor) -> Tensor:
    """Return a number in [0, 1) for each image, (N, 1, 1, 1)."""
    return torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)

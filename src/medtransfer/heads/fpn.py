"""The feature pyramid that detectors look at, and where their anchors lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from medtransfer.errors import ConfigError
from medtransfer.heads.necks import STRIDES, Pyramid

GROUPS = 32  # of a norm
GROUPED = 2  # channels of a group at least, so that a single pixel has a spread too
STRIDES_ACROSS = 4  # strides that an object measures on the level that is to find it

Positive = Annotated[float, Field(gt=0)]
Sizes = tuple[tuple[Positive, ...], ...]
Ratios = Annotated[tuple[Positive, ...], Field(min_length=1)]


def group_norm(channels: int) -> nn.GroupNorm:
    """Return the norm of detectors, whose batches are too small for BatchNorm."""
    return nn.GroupNorm(min(GROUPS, channels // GROUPED), channels)


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Levels:
    """The levels that a detector looks at.

    Attributes:
        width: Channels of each.
        finest: Stride of the finest; the others double, up to 32.
        extra: Levels beyond stride 32, as far as the image is larger than their stride.
    """

    width: Annotated[int, Field(gt=0, multiple_of=GROUPS)]
    finest: Literal[4, 8, 16]
    extra: Annotated[int, Field(ge=0, le=2)]


class FeaturePyramid(nn.Module):
    """Levels of equal width, each told by those coarser than itself (Lin et al. 2017).

    Args:
        channels: Channels of the backbone's levels, fine to coarse.
        strides: Their strides, measured at `image_size`.
        image_size: Height and width of the images in pixels.
        levels: The levels wanted.
        extra: How levels beyond stride 32 are made: by convolutions of stride 2, or by taking
            every other pixel.

    Attributes:
        strides: Of its levels, fine to coarse.
        out_channels: Of each level, under the name that torchvision reads.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        levels: Levels,
        extra: Literal["convolution", "pooling"],
    ) -> None:
        super().__init__()
        first = STRIDES.index(levels.finest)
        self.neck = Pyramid(channels, strides, image_size, stem=False, unused=STRIDES[:first])
        self.first = first + 1  # the neck begins with stride 2
        coarse = [STRIDES[-1] * 2 ** (k + 1) for k in range(levels.extra)]
        coarse = [stride for stride in coarse if stride <= image_size]
        self.strides = (*STRIDES[first:], *coarse)
        self.out_channels = levels.width
        made = Convolved(levels.width, len(coarse)) if extra == "convolution" else Pooled(coarse)
        self.fpn = FeaturePyramidNetwork(
            list(self.neck.channels[self.first :]),
            levels.width,
            extra_blocks=made,
            norm_layer=group_norm,
        )

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Return maps (N, width, ...) in float32, fine to coarse, on the neck's canvas."""
        maps = self.neck(levels, size)[self.first :]
        found = self.fpn({str(k): level for k, level in enumerate(maps)})
        return [level.float() for level in found.values()]


class Convolved(ExtraFPNBlock):
    """Coarser levels by convolutions of stride 2, as in RetinaNet.

    Args:
        width: Channels of the levels.
        count: How many to add.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        made = [nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(count)]
        for convolution in made:
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.constant_(convolution.get_parameter("bias"), 0)
        self.convolutions = nn.ModuleList(made)

    def forward(
        self,
        results: list[Tensor],
        x: list[Tensor],  # noqa: ARG002
        names: list[str],
    ) -> tuple[list[Tensor], list[str]]:
        """Return the levels and names with those added; the backbone's `x` is not used."""
        for k, convolution in enumerate(self.convolutions):
            results.append(convolution(relu(results[-1]) if k else results[-1]))
            names.append(f"extra{k}")
        return results, names


class Pooled(ExtraFPNBlock):
    """Coarser levels by every other pixel, as in Faster R-CNN.

    Args:
        strides: Of the levels to add.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        self.count = len(strides)

    def forward(
        self,
        results: list[Tensor],
        x: list[Tensor],  # noqa: ARG002
        names: list[str],
    ) -> tuple[list[Tensor], list[str]]:
        """Return the levels and names with those added; the backbone's `x` is not used."""
        for k in range(self.count):
            results.append(max_pool2d(results[-1], 1, stride=2))
            names.append(f"extra{k}")
        return results, names


class Anchors(AnchorGenerator):
    """Boxes around the centre of every pixel of every level.

    Unlike its parent it takes strides as they are, not from the image's size, which is no multiple
    of the coarsest ones; it puts boxes on the centres of pixels, not on their corners, so that both
    edges of the image are covered alike; and it does not round small boxes to whole pixels.

    Args:
        strides: Of the levels.
        sizes: Square roots of areas in pixels, as many for each level.
        ratios: Height divided by width.
    """

    def __init__(
        self, strides: Sequence[int], sizes: Sequence[Sequence[float]], ratios: Sequence[float]
    ) -> None:
        aspect = (tuple(ratios),) * len(strides)
        super().__init__(tuple(map(tuple, sizes)), aspect)  # type: ignore[no-untyped-call]
        self.strides = [[torch.tensor(stride), torch.tensor(stride)] for stride in strides]
        tall = torch.tensor(ratios).sqrt()[:, None]
        self.cell_anchors = []
        for stride, level in zip(strides, torch.tensor(sizes), strict=True):
            half = torch.stack([(level / tall).flatten(), (level * tall).flatten()], 1) / 2
            self.cell_anchors.append(torch.cat([stride / 2 - half, stride / 2 + half], 1))

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the boxes of each image, (boxes, 4), fine levels first."""
        self.set_cell_anchors(feature_maps[0].dtype, feature_maps[0].device)
        grids = [list(level.shape[-2:]) for level in feature_maps]
        boxes = torch.cat(self.grid_anchors(grids, self.strides))
        return [boxes] * len(image_list.image_sizes)


def anchor_sizes(
    strides: Sequence[int],
    anchors: Literal["auto"] | Sizes,
    per_level: int,
    boxes_seen: ArrayLike | None,
) -> Sizes:
    """Return the sizes of the anchors of each level, in pixels.

    Args:
        strides: Of the levels.
        anchors: Sizes for each level; or `auto`: each box seen belongs to the level on which it is
            about 4 pixels wide, and a level takes quantiles of the sides (square roots of areas) of
            its boxes, or sizes around 4 strides where it has none.
        per_level: How many `auto` takes for each level.
        boxes_seen: Boxes of the training images, (n, 4), or None.

    Raises:
        ConfigError: If sizes are not given for every level, or not as many for each.
    """
    if anchors != "auto":
        if len(anchors) != len(strides) or len({len(level) for level in anchors}) != 1:
            raise ConfigError(
                f"head.anchors has sizes for {len(anchors)} levels, and the strides are "
                f"{', '.join(map(str, strides))}",
                remedy="give equally many sizes for each stride, or head.anchors=auto",
            )
        return anchors
    boxes = np.zeros((0, 4)) if boxes_seen is None else np.asarray(boxes_seen, dtype=np.float64)
    sides = np.sqrt(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1))
    sides = sides[sides > 0]
    usual = STRIDES_ACROSS * np.asarray(strides, dtype=np.float64)
    belongs = np.abs(np.log2(sides[:, None] / usual)).argmin(axis=1)
    places = (np.arange(per_level) + 0.5) / per_level
    sizes = []
    for level, side in enumerate(usual):
        own = sides[belongs == level]
        found = np.quantile(own, places) if len(own) else side * 2 ** (places - 0.5)
        sizes.append(tuple(found.tolist()))
    return tuple(sizes)

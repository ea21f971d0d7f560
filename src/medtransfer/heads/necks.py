"""What brings any backbone's pyramid to the levels that dense heads are made for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from medtransfer.errors import ConfigError

STRIDES = (4, 8, 16, 32)
CANVAS = 32  # the canvas is a multiple of the coarsest stride


class Pyramid(nn.Module):
    """Levels of stride 4, 8, 16 and 32, and of stride 2 for heads that want it.

    What the backbone has is taken as it is, the deepest level of each stride; levels coarser than
    32 join that of 32. What it lacks is made from the next coarser level by transposed
    convolutions, each followed by a norm and GELU, or from the coarsest by pooling. Where all
    levels have one stride, this is the simple pyramid of Li et al. (2022, arXiv 2203.16527): all
    four are made from the last level, normalised. A level of stride 2 is never made: it has no
    channels where the backbone lacks it.

    Levels lie on a canvas, the image filled up at the bottom and on the right to a multiple of 32,
    so that each is exactly half as large as the one before.

    Args:
        channels: Channels of the backbone's levels, fine to coarse.
        strides: Their strides, measured at `image_size`.
        image_size: Height and width of the images in pixels.
        stem: Whether the head wants stride 2; else that level has no channels.
        unused: Other strides that the head does not look at; these have no channels either.

    Attributes:
        channels: Channels of the five levels, stride 2 to stride 32.

    Raises:
        ConfigError: If the backbone has no levels.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        *,
        stem: bool,
        unused: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not channels:
            raise ConfigError(
                "the backbone gives no feature maps, which heads of dense tasks are made for",
                remedy="choose another backbone, such as backbone=resnet18",
            )
        self.groups = _by_stride(nominal_strides(strides, image_size))
        widths = {s: sum(channels[k] for k in group) for s, group in self.groups.items()}
        alone = len(self.groups) == 1
        # the last norm of a transformer comes after its last level
        self.norm = LayerNorm2d(sum(widths.values())) if alone else nn.Identity()
        self.stem = stem and 2 in self.groups
        coarsest = max(self.groups)
        self.sources = [
            0
            if wanted in unused
            else min((s for s in self.groups if s >= wanted), default=coarsest)
            for wanted in STRIDES
        ]
        self.make = nn.ModuleList()
        found = [widths[2] if self.stem else 0]
        for wanted, source in zip(STRIDES, self.sources, strict=True):
            module, width = _resampled(widths.get(source, 0), source, wanted)
            self.make.append(module)
            found.append(width)
        self.channels = tuple(found)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Return five levels (N, channels[i], ...) of strides 2 to 32 on the canvas.

        Args:
            levels: The backbone's pyramid.
            size: Height and width of the images in pixels.
        """
        placed = {s: self.norm(self._placed(levels, s, size)) for s in set(self.sources) if s}
        height, width = canvas(size)

        def without_channels(stride: int) -> Tensor:
            return levels[0].new_zeros(levels[0].shape[0], 0, height // stride, width // stride)

        return [
            self._placed(levels, 2, size) if self.stem else without_channels(2),
            *(
                make(placed[source]) if source else without_channels(wanted)
                for make, source, wanted in zip(self.make, self.sources, STRIDES, strict=True)
            ),
        ]

    def _placed(self, levels: Sequence[Tensor], stride: int, size: tuple[int, int]) -> Tensor:
        maps = [place(levels[k], stride, size) for k in self.groups[stride]]
        return maps[0] if len(maps) == 1 else torch.cat(maps, 1)


class EvenLevels(nn.Module):
    """Four of a transformer's levels, at even steps up to the last, on the canvas.

    Args:
        channels: Channels of the backbone's levels.
        stride: Of all of them, as `nominal_strides` has it.

    Attributes:
        channels: Channels of the four.
    """

    def __init__(self, channels: Sequence[int], stride: int) -> None:
        super().__init__()
        self.stride = stride
        count = len(channels)
        self.indices = [max(k * count // 4 - 1, 0) for k in (1, 2, 3, 4)]
        self.channels = tuple(channels[k] for k in self.indices)

    def forward(self, levels: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Return the four levels (N, channels[i], ...), see `Pyramid.forward`."""
        return [place(levels[k], self.stride, size) for k in self.indices]


def canvas(size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width, filled up to multiples of 32."""
    height, width = (-(-n // CANVAS) * CANVAS for n in size)
    return height, width


def place(level: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Put a level (N, C, h, w) of images of `size` on the canvas.

    A level that does not cover the image in steps of `stride` is scaled until it does; the rest of
    the canvas is zero, as the padding of convolutions is.
    """
    covered = [-(-n // stride) for n in size]
    whole = [n // stride for n in canvas(size)]
    if list(level.shape[-2:]) != covered:
        level = interpolate(level, covered, mode="bilinear", align_corners=False)
    return pad(level, (0, whole[1] - covered[1], 0, whole[0] - covered[0]))


def nominal_strides(strides: Sequence[int], image_size: int) -> list[int]:
    """Return the power of two, up to 64, that gives a level of about each one's size.

    Networks round sizes up, so that a level of stride 32 has 2 x 2 pixels of an image of 40 px,
    which measures as stride 20. Patches of 14 px count as 16.
    """
    powers = (1, 2, 4, 8, 16, 32, 64)
    return [
        min(powers, key=lambda power: abs(-(-image_size // power) - image_size / stride))
        for stride in strides
    ]


def _by_stride(strides: Sequence[int]) -> dict[int, list[int]]:
    """Return the deepest level of each stride, as indices; all beyond 32 stand with it."""
    deepest = {stride: k for k, stride in enumerate(strides)}
    groups: dict[int, list[int]] = {}
    for stride, k in sorted(deepest.items()):
        groups.setdefault(min(stride, STRIDES[-1]), []).append(k)
    return groups


def _resampled(channels: int, stride: int, wanted: int) -> tuple[nn.Module, int]:
    """Return what takes a level from one stride to another, and the channels that come out.

    A source of stride 0 is none.
    """
    if not stride:
        return nn.Identity(), 0
    layers: list[nn.Module] = []
    while stride > wanted:
        width = max(channels // 2, 1)
        up = nn.ConvTranspose2d(channels, width, 2, stride=2)
        layers += [up, LayerNorm2d(width), nn.GELU()]
        channels, stride = width, stride // 2
    if stride < wanted:
        layers.append(nn.MaxPool2d(wanted // stride))
    return nn.Sequential(*layers), channels

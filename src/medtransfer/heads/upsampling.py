"""Decoder blocks that learn to double the size of a map, where the library's repeat its pixels.

A transposed convolution (Zeiler et al. 2010) stands in for the interpolation. All else of a block
stays: its convolutions, under the names that the library gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Upsampling = Literal["interpolation", "transposed"]


class LearnedUp(nn.Module):
    """A block of U-Net++ or MAnet that doubles its input, and joins a level of the encoder to it.

    Args:
        block: The block; its first convolution is `conv1`, its second `conv2`.
        channels: Of the map whose size is doubled.
    """

    def __init__(self, block: nn.Module, channels: int) -> None:
        super().__init__()
        self.block: Any = block
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Return (N, E, 2 H, 2 W) from a map (N, C, H, W) and a level (N, D, 2 H, 2 W)."""
        x = self.up(x)
        return self.convolved(x if skip is None else torch.cat([x, skip], 1))

    def convolved(self, x: Tensor) -> Tensor:
        """Return the block's two convolutions of a map."""
        return self.block.conv2(self.block.conv1(x))  # type: ignore[no-any-return]


class LearnedUnetUp(LearnedUp):
    """A block of U-Net, which is told the size that its input is to have."""

    def forward(  # type: ignore[override]
        self, x: Tensor, height: int, width: int, skip_connection: Tensor | None = None
    ) -> Tensor:
        """See `LearnedUp.forward`; the size follows from the map."""
        del height, width
        return super().forward(x, skip_connection)


class LearnedAttentionUp(LearnedUp):
    """A fusion block of MAnet, which weighs channels by its input and by the encoder's level."""

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """See `LearnedUp.forward`."""
        assert skip is not None  # without one MAnet takes a plain block
        x = self.up(self.block.hl_conv(x))
        weights = self.block.SE_hl(x) + self.block.SE_ll(skip)
        return self.convolved(torch.cat([x * weights, skip], 1))


def learn_unet(decoder: Any, inputs: Sequence[int]) -> None:
    """Let U-Net's decoder learn to double; `inputs` are the channels that its blocks take."""
    blocks = zip(decoder.blocks, inputs, strict=True)
    decoder.blocks = nn.ModuleList(LearnedUnetUp(block, width) for block, width in blocks)


def learn_unetplusplus(decoder: Any) -> None:
    """Let U-Net++'s decoder learn to double, where its blocks give anything."""
    for name, block in decoder.blocks.items():
        depth, layer = (int(part) for part in name.split("_")[1:])
        inner = decoder.skip_channels[layer - 1]
        if not block.is_empty:
            width = inner if depth else decoder.in_channels[layer]
            decoder.blocks[name] = LearnedUp(block, width)


def learn_manet(decoder: Any, inputs: Sequence[int]) -> None:
    """Let MAnet's decoder learn to double; `inputs` are the channels that its blocks take."""
    made: list[nn.Module] = []
    for block, width in zip(decoder.blocks, inputs, strict=True):
        if hasattr(block, "hl_conv"):  # doubles what this gives
            made.append(LearnedAttentionUp(block, block.hl_conv[-1][0].out_channels))
        else:
            made.append(LearnedUp(block, width))
    decoder.blocks = nn.ModuleList(made)

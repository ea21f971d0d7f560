"""Heads that climb from the coarsest level to the finest, and join each on the way.

The decoders are those of segmentation-models-pytorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from segmentation_models_pytorch.decoders.linknet.decoder import LinknetDecoder
from segmentation_models_pytorch.decoders.manet.decoder import MAnetDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from torch import nn

from medtransfer.heads.necks import Pyramid
from medtransfer.heads.segmentation import Decoded, need_channels
from medtransfer.heads.upsampling import Upsampling, learn_manet, learn_unet, learn_unetplusplus

Width = Annotated[int, Field(ge=1)]
Widths = Annotated[Sequence[Width], Field(min_length=5, max_length=5)]


class UNet(Decoded):
    """U-Net (Ronneberger et al. 2015, arXiv 1505.04597).

    Args:
        outputs: See `SegmentationHead`.
        upsampling: How maps double in size: `interpolation` repeats pixels, `transposed` learns it.
        widths: Channels of the decoder's blocks, coarse to fine.
        **pyramid: What `Pyramid` is told of the backbone.
    """

    def __init__(
        self,
        *,
        outputs: int,
        upsampling: Upsampling,
        widths: Widths,
        **pyramid: Any,
    ) -> None:
        neck = Pyramid(**pyramid, stem=True)
        decoder = UnetDecoder([0, *neck.channels], widths)
        if upsampling == "transposed":
            learn_unet(decoder, [neck.channels[-1], *widths[:-1]])
        super().__init__(neck, decoder, nn.Conv2d(widths[-1], outputs, 3, padding=1))


class UNetPlusPlus(Decoded):
    """U-Net++ (Zhou et al. 2018, arXiv 1807.10165): U-Net with nested, dense paths between.

    Args:
        outputs: See `SegmentationHead`.
        upsampling: See `UNet`.
        widths: Channels of the decoder's outer blocks, coarse to fine; inner ones have those of
            the backbone.
        **pyramid: What `Pyramid` is told of the backbone.
    """

    def __init__(
        self,
        *,
        outputs: int,
        upsampling: Upsampling,
        widths: Widths,
        **pyramid: Any,
    ) -> None:
        neck = Pyramid(**pyramid, stem=True)
        decoder = UnetPlusPlusDecoder([0, *neck.channels], widths)
        if upsampling == "transposed":
            learn_unetplusplus(decoder)
        super().__init__(neck, decoder, nn.Conv2d(widths[-1], outputs, 3, padding=1))


class MAnet(Decoded):
    """MAnet (Fan et al. 2020, IEEE Access 8): U-Net with attention over places and channels.

    Args:
        outputs: See `SegmentationHead`.
        upsampling: See `UNet`.
        widths: Channels of the decoder's blocks, coarse to fine.
        attention_width: Channels in which places are compared.
        reduction: Divisor of the channels between the two layers that weigh them.
        **pyramid: What `Pyramid` is told of the backbone.
    """

    def __init__(
        self,
        *,
        outputs: int,
        upsampling: Upsampling,
        widths: Widths,
        attention_width: Width,
        reduction: Width,
        **pyramid: Any,
    ) -> None:
        neck = Pyramid(**pyramid, stem=True)
        decoder = MAnetDecoder(
            [0, *neck.channels],
            list(widths),
            pab_channels=attention_width,
            reduction=reduction,
        )
        if upsampling == "transposed":
            learn_manet(decoder, [neck.channels[-1], *widths[:-1]])
        super().__init__(neck, decoder, nn.Conv2d(widths[-1], outputs, 3, padding=1))


class Linknet(Decoded):
    """LinkNet (Chaurasia & Culurciello 2017, arXiv 1707.03718): adds levels, with few parameters.

    Args:
        outputs: See `SegmentationHead`.
        upsampling: Its blocks are transposed convolutions.
        width: Channels of the last block; the others have those of the backbone.
        **pyramid: What `Pyramid` is told of the backbone.

    Raises:
        ConfigError: If a level has less than four channels, by which its blocks divide.
    """

    def __init__(
        self,
        *,
        outputs: int,
        upsampling: Literal["transposed"],  # noqa: ARG002
        width: Width,
        **pyramid: Any,
    ) -> None:
        neck = Pyramid(**pyramid, stem=True)
        need_channels("linknet", [n for n in neck.channels if n])
        decoder = LinknetDecoder([0, *neck.channels], width)
        super().__init__(neck, decoder, nn.Conv2d(width, outputs, 1))

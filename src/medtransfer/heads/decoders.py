"""Heads that bring levels to one size and join them there.

The decoders are those of segmentation-models-pytorch. Where a paper dilates the backbone, so that
its last level has stride 16, that level is scaled to stride 16 instead: the backbone is the same
for every head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.pan.decoder import PANDecoder
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import Tensor, nn

from medtransfer.errors import ConfigError
from medtransfer.heads.necks import Pyramid, canvas
from medtransfer.heads.segmentation import Decoded, need_channels

Width = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Interpolation = Literal["interpolation"]
PAN_LEAST = 128  # pixels; its attention halves the level of stride 16 three times


class FPN(Decoded):
    """Feature pyramid for segmentation (Kirillov et al. 2019, arXiv 1901.02446).

    Args:
        outputs: See `SegmentationHead`.
        upsampling: Its maps are only scaled.
        pyramid_width: Channels of the pyramid.
        width: Channels of each of the four branches, a multiple of 32 for their GroupNorm.
        merge: Whether branches are added up (`add`) or stacked (`cat`).
        dropout: Probability with which a channel of the result is dropped in training.
        **pyramid: What `Pyramid` is told of the backbone.
    """

    def __init__(
        self,
        *,
        outputs: int,
        upsampling: Interpolation,  # noqa: ARG002
        pyramid_width: Width,
        width: Annotated[int, Field(ge=32, multiple_of=32)],
        merge: Literal["add", "cat"],
        dropout: Dropout,
        **pyramid: Any,
    ) -> None:
        neck = Pyramid(**pyramid, stem=False)
        decoder = FPNDecoder(
            [0, *neck.channels],
            pyramid_channels=pyramid_width,
            segmentation_channels=width,
            merge_policy=merge,
            dropout=dropout,
        )
        super().__init__(neck, decoder, nn.Conv2d(decoder.out_channels, outputs, 1))


class DeepLabV3Plus(Decoded):
    """DeepLabV3+ (Chen et al. 2018, arXiv 1802.02611), on levels of stride 16 and 4.

    Args:
        outputs: See `SegmentationHead`.
        upsampling: Its maps are only scaled.
        width: Channels of the decoder.
        rates: Dilations of the three convolutions on stride 16.
        separable: Whether these convolve each channel by itself, then mix channels.
        dropout: Probability with which a value is dropped in training, once these are joined.
        **pyramid: What `Pyramid` is told of the backbone.
    """

    def __init__(
        self,
        *,
        outputs: int,
        upsampling: Interpolation,  # noqa: ARG002
        width: Width,
        rates: Annotated[Sequence[Width], Field(min_length=3, max_length=3)],
        separable: bool,
        dropout: Dropout,
        **pyramid: Any,
    ) -> None:
        neck = Pyramid(**pyramid, stem=False, unused=(8, 16))
        decoder = DeepLabV3PlusDecoder(
            [0, *neck.channels],
            encoder_depth=5,
            out_channels=width,
            atrous_rates=rates,
            output_stride=16,
            aspp_separable=separable,
            aspp_dropout=dropout,
        )
        super().__init__(neck, decoder, nn.Conv2d(width, outputs, 1), coarsest=16)


class PAN(Decoded):
    """Pyramid attention network (Li et al. 2018, arXiv 1805.10180), its coarsest level at 16.

    Args:
        outputs: See `SegmentationHead`.
        upsampling: Its maps are only scaled.
        width: Channels of the decoder.
        **pyramid: What `Pyramid` is told of the backbone.

    Raises:
        ConfigError: If images are too small for its attention.
    """

    def __init__(
        self,
        *,
        outputs: int,
        upsampling: Interpolation,  # noqa: ARG002
        width: Width,
        **pyramid: Any,
    ) -> None:
        neck = Pyramid(**pyramid, stem=False)
        _need_pixels((pyramid["image_size"], pyramid["image_size"]))
        decoder = PANDecoder([0, *neck.channels], encoder_depth=5, decoder_channels=width)
        classifier = nn.Conv2d(width, outputs, 3, padding=1)
        super().__init__(neck, decoder, classifier, coarsest=16)

    def forward(self, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        """See `Decoded.forward`; patches may be smaller than the images."""
        _need_pixels(size)
        return super().forward(levels, size)


class PSPNet(Decoded):
    """Pyramid scene parsing (Zhao et al. 2017, arXiv 1612.01105), on the coarsest level alone.

    Args:
        outputs: See `SegmentationHead`.
        upsampling: Its maps are only scaled.
        width: Channels of the decoder.
        dropout: Probability with which a channel of the result is dropped in training.
        **pyramid: What `Pyramid` is told of the backbone.

    Raises:
        ConfigError: If the level has less than four channels, by which its branches divide.
    """

    def __init__(
        self,
        *,
        outputs: int,
        upsampling: Interpolation,  # noqa: ARG002
        width: Width,
        dropout: Dropout,
        **pyramid: Any,
    ) -> None:
        neck = Pyramid(**pyramid, stem=False, unused=(4, 8, 16))
        need_channels("pspnet", neck.channels[-1:])
        decoder = PSPDecoder([0, *neck.channels], out_channels=width, dropout=dropout)
        super().__init__(neck, decoder, nn.Conv2d(width, outputs, 3, padding=1))


class UPerNet(Decoded):
    """UPerNet (Xiao et al. 2018, arXiv 1807.10221): a feature pyramid over pooled context.

    Args:
        outputs: See `SegmentationHead`.
        upsampling: Its maps are only scaled.
        width: Channels of the decoder.
        **pyramid: What `Pyramid` is told of the backbone.
    """

    def __init__(
        self,
        *,
        outputs: int,
        upsampling: Interpolation,  # noqa: ARG002
        width: Width,
        **pyramid: Any,
    ) -> None:
        neck = Pyramid(**pyramid, stem=False)
        decoder = UPerNetDecoder([0, *neck.channels], decoder_channels=width)
        super().__init__(neck, decoder, nn.Conv2d(width, outputs, 1))


class SegFormer(Decoded):
    """The decoder of SegFormer (Xie et al. 2021, arXiv 2105.15203): one linear layer a level.

    Args:
        outputs: See `SegmentationHead`.
        upsampling: Its maps are only scaled.
        width: Channels of each level, and of all of them joined.
        **pyramid: What `Pyramid` is told of the backbone.
    """

    def __init__(
        self,
        *,
        outputs: int,
        upsampling: Interpolation,  # noqa: ARG002
        width: Width,
        **pyramid: Any,
    ) -> None:
        neck = Pyramid(**pyramid, stem=False)
        decoder = SegformerDecoder([0, *neck.channels], segmentation_channels=width)
        super().__init__(neck, decoder, nn.Conv2d(width, outputs, 1))


def _need_pixels(size: tuple[int, int]) -> None:
    if min(canvas(size)) < PAN_LEAST:
        raise ConfigError(
            f"head 'pan' cannot take images of {size[0]} x {size[1]} px: its attention halves the"
            " level of stride 16 three times",
            remedy="take images or patches of at least 97 px (they are filled up to a multiple of"
            " 32), or head=unet",
        )

"""The head that was made for plain transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder
from torch import Tensor, nn

from medtransfer.heads.necks import STRIDES, EvenLevels, Pyramid, nominal_strides
from medtransfer.heads.segmentation import Decoded

Width = Annotated[int, Field(ge=1)]


class DPT(Decoded):
    """Dense prediction transformer (Ranftl et al. 2021, arXiv 2103.13413), without class tokens.

    Where all levels have one stride it takes four of them, at even steps, and brings them to
    strides 4 to 32; of other backbones it takes the levels of these strides.

    Args:
        channels: Channels of the backbone's levels, fine to coarse.
        strides: Their strides, measured at `image_size`.
        image_size: Height and width of the images in pixels.
        outputs: See `SegmentationHead`.
        upsampling: Its maps are only scaled, once each level has its size.
        widths: Channels in which each of the four levels is brought to its size, fine to coarse.
        width: Channels in which they are joined.
        dropout: Probability with which a value is dropped in training, before the logits.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        outputs: int,
        upsampling: Literal["interpolation"],  # noqa: ARG002
        widths: Annotated[Sequence[Width], Field(min_length=4, max_length=4)],
        width: Width,
        dropout: Annotated[float, Field(ge=0, lt=1)],
    ) -> None:
        nominal = {min(stride, STRIDES[-1]) for stride in nominal_strides(strides, image_size)}
        neck: EvenLevels | Pyramid
        if len(nominal) == 1:
            (stride,) = nominal
            neck, taken = EvenLevels(channels, stride), (stride,) * len(STRIDES)
        else:
            neck, taken = Pyramid(channels, strides, image_size, stem=False), STRIDES
        decoder = DPTDecoder(
            neck.channels[-len(STRIDES) :],
            taken,
            encoder_has_prefix_tokens=False,
            readout="ignore",
            intermediate_channels=widths,
            fusion_channels=width,
        )
        classifier = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(width, outputs, 1),
        )
        super().__init__(neck, decoder, classifier)

    def decoded(self, levels: list[Tensor]) -> Tensor:
        """See `Decoded.decoded`; the decoder has a place for class tokens."""
        tokens = [None] * len(STRIDES)
        return self.classifier(self.decoder(levels[-len(STRIDES) :], tokens))  # type: ignore[no-any-return]

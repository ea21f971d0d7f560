"""What a head of segmentation is, and the way that most of them go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.functional import interpolate

from medtransfer.errors import ConfigError
from medtransfer.heads.base import Head
from medtransfer.heads.necks import canvas


class SegmentationHead(Head):
    """Turns the pyramid of a backbone into a class for every pixel.

    It is built with `channels` and `strides` of the pyramid, fine to coarse, `image_size` in
    pixels, at which strides were measured, and `outputs`: the classes with background, which is 0.
    """

    @abstractmethod
    def forward(self, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Return logits (N, outputs, H, W) of a pyramid of images of `size` (H, W)."""


class Decoded(SegmentationHead):
    """A neck, a decoder, and a convolution that gives the logits, scaled to the image's size.

    All of it is initialised as the decoders' library does: He et al. (2015) for the decoder,
    Glorot & Bengio (2010) for the logits.

    Args:
        neck: Gives levels, fine to coarse, as `Pyramid` does.
        decoder: Takes an empty level of stride 1 and those, and gives one map.
        classifier: Takes that map to logits.
        coarsest: The stride to which the coarsest level is scaled up before it is decoded.
    """

    def __init__(
        self, neck: nn.Module, decoder: nn.Module, classifier: nn.Module, coarsest: int = 32
    ) -> None:
        from segmentation_models_pytorch.base.initialization import (  # seconds to import
            initialize_decoder,
            initialize_head,
        )

        super().__init__()
        self.neck = neck
        self.decoder = decoder
        self.classifier = classifier
        self.coarsest = coarsest
        initialize_decoder(decoder)
        initialize_head(classifier)

    def forward(self, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        """See `SegmentationHead.forward`.

        Raises:
            ConfigError: In training, if a batch of one image is too small to be normalised.
        """
        height, width = canvas(size)
        found = self.neck(levels, size)
        if self.coarsest != 32:
            whole = (height // self.coarsest, width // self.coarsest)
            found[-1] = interpolate(found[-1], whole, mode="bilinear", align_corners=False)
        empty = found[0].new_zeros(found[0].shape[0], 0, height, width)
        try:
            logits = self.decoded([empty, *found]).float()
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ConfigError(
                f"head {type(self).__name__} cannot train on a batch of one image: it has"
                " BatchNorm where such a batch is a single vector",
                remedy="trainer.batch_size=2 or more, or head=unet",
            ) from None
        if logits.shape[-2:] != (height, width):
            logits = interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return logits[..., : size[0], : size[1]]

    def decoded(self, levels: list[Tensor]) -> Tensor:
        """Return logits (N, outputs, h, w) at the size that the decoder comes to."""
        return cast("Tensor", self.classifier(self.decoder(levels)))


def need_channels(head: str, channels: Sequence[int]) -> None:
    """Refuse levels that a head cannot divide by four.

    Raises:
        ConfigError: If one of them has less than four channels.
    """
    if min(channels) < 4:
        raise ConfigError(
            f"head '{head}' divides the channels of a level by four, and the backbone gives"
            f" {min(channels)}",
            remedy="head=unet and head=fpn take any number",
        )

"""The raw-pixel control: what a classifier gets from the image without any network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from medtransfer.backbones.base import Backbone, Normalisation

STRIDES = (2, 4, 8, 16)


class Pixels(Backbone):
    """The image itself, scaled down: nothing learns and nothing is loaded.

    With a linear head it is logistic regression on pixels. A claim about features has to beat it.

    Args:
        channels: Channels of the images.
        size: Height and width of the image that becomes the embedding.
        image_size: Height and width of the images in pixels.
    """

    def __init__(self, channels: int, size: Annotated[int, Field(ge=1)], image_size: int) -> None:
        super().__init__(channels, Normalisation((0.5,), (0.25,)))
        self.name = "pixels"
        self.size = min(size, image_size)
        self.embedding_size = channels * self.size**2
        self.strides = tuple(stride for stride in STRIDES if stride <= image_size)
        self.channels = (channels,) * len(self.strides)

    def embed(self, images: Tensor) -> Tensor:
        """See `Backbone.embed`: every pixel of the scaled image is a feature."""
        return adaptive_avg_pool2d(self.normalised(images), self.size).flatten(1)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.pyramid`: the image at each stride."""
        normalised = self.normalised(images)
        return [avg_pool2d(normalised, stride) for stride in self.strides]

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Backbone.features`."""
        return self.embed(images), self.pyramid(images)

    def layer_groups(self) -> Sequence[tuple[str, ...]]:
        """See `Backbone.layer_groups`; there is nothing that could learn."""
        return ()

"""Residual networks for images of a few dozen pixels."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from medtransfer.backbones.base import Normalisation
from medtransfer.backbones.timm import TimmBackbone

SUFFIX = "_small"


class SmallResNet(TimmBackbone):
    """A residual network of timm's whose stem leaves images as large as they are.

    A convolution of 3 x 3 pixels and stride 1 stands for that of 7 x 7 and the pooling after it, as
    He et al. (2016, section 4.2) and the authors of MedMNIST v2 do it; the rest is the same. Its
    weights are not those of the network that it derives from, so that its name is another, and what
    was made for that one is refused. Levels have strides 1, 2, 4 and 8; that of the stem is left
    out, since the first stage has its stride.

    Args:
        name: Which one.
        channels: Channels of the images.
        mean: Of the pixels in [0, 1], where weights bring none; of all channels.
        std: Of the same, their standard deviation.
        image_size: Height and width of the images in pixels.
    """

    def __init__(
        self,
        name: Literal["resnet18_small", "resnet50_small"],
        channels: int,
        mean: float,
        std: Annotated[float, Field(gt=0)],
        image_size: int,
    ) -> None:
        super().__init__(name, channels, image_size)
        self.normalise_by(Normalisation((mean,) * channels, (std,) * channels))

    @property
    def chosen_by(self) -> str:
        """See `Backbone.chosen_by`."""
        return f"backbone={self.name}"

    def network(self, name: str, channels: int) -> nn.Module:
        """See `TimmBackbone.network`."""
        model: Any = super().network(name.removesuffix(SUFFIX), channels)
        model.conv1 = nn.Conv2d(channels, model.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
        return cast("nn.Module", model)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.pyramid`."""
        return super().pyramid(images)[1:]

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Backbone.features`."""
        embedding, levels = super().features(images)
        return embedding, levels[1:]

    def stages(self) -> tuple[nn.Module, ...]:
        """See `Backbone.stages`."""
        stem, first, *rest = super().stages()
        return (nn.Sequential(stem, first), *rest)

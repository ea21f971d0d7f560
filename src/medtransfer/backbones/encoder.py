"""Plain stacks of layers, for the era of layer-wise pre-training: nothing but a chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from medtransfer.backbones.base import Backbone, Normalisation
from medtransfer.errors import ConfigError

Units = Literal["relu", "sigmoid"]
Width = Annotated[int, Field(ge=1)]

CENTRE = Normalisation((0.5,), (0.25,))  # of pixels in [0, 1], where no weights bring their own


class Layer(nn.Module):
    """One layer of a stack: weighted sums, their units, and pooling.

    Args:
        inputs: Channels of the input.
        width: Units at each place.
        kernel: Height and width of what a unit sees.
        units: What a unit makes of its sum.
        norm: Whether the sums are normalised by the batch.
        pool: Whether the maximum of each 2 x 2 places is kept.
        whole: Whether a unit sees its whole input, so that there is one place; otherwise units
            stand at every place of the input.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        kernel: int,
        *,
        units: Units,
        norm: bool,
        pool: bool,
        whole: bool = False,
    ) -> None:
        super().__init__()
        padding = 0 if whole else kernel // 2
        self.sums = nn.Conv2d(inputs, width, kernel, padding=padding, bias=not norm)
        self.norm = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.units = nn.ReLU() if units == "relu" else nn.Sigmoid()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, width, H, W), or half of H and W with pooling, from (N, inputs, H, W)."""
        pooled: Tensor = self.pool(self.units(self.norm(self.sums(x))))
        return pooled


class _Stack(Backbone):
    """What both encoders share: a chain of layers, applied one after the other."""

    layers: nn.ModuleList

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.pyramid`: the output of each layer."""
        levels = [self.normalised(images)]
        for layer in self.layers:
            levels.append(layer(levels[-1]))
        return levels[1:]

    def embed(self, images: Tensor) -> Tensor:
        """See `Backbone.embed`."""
        return self.features(images)[0]

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Backbone.features`; the embedding is the mean of the last level."""
        levels = self.pyramid(images)
        return levels[-1].mean((2, 3)), levels

    def layer_groups(self) -> Sequence[tuple[str, ...]]:
        """See `Backbone.layer_groups`: one for each layer."""
        return [
            tuple(f"layers.{k}.{name}" for name, _ in layer.named_parameters())
            for k, layer in enumerate(self.layers)
        ]

    def stages(self) -> Sequence[nn.Module]:
        """See `Backbone.stages`."""
        return tuple(self.layers)

    def place(self) -> tuple[str, int] | None:
        """See `Backbone.place`: the last layer, where it has places."""
        last = len(self.layers) - 1
        return (f"layers.{last}", self.embedding_size) if self.channels else None


class ConvEncoder(_Stack):
    """Convolution, units, pooling, and again: each layer halves the resolution.

    Args:
        channels: Channels of the images.
        widths: Units of each layer.
        kernel: Height and width of the kernels, odd.
        units: `relu`, or `sigmoid` as a restricted Boltzmann machine has them.
        norm: `batch`, or `none` as a restricted Boltzmann machine needs it.
        image_size: Height and width of the images in pixels.

    Raises:
        ConfigError: If the images are too small for so many layers, or the kernel is even.
    """

    def __init__(
        self,
        *,
        channels: int,
        widths: Sequence[Width],
        kernel: Annotated[int, Field(ge=1)],
        units: Units,
        norm: Literal["batch", "none"],
        image_size: int,
    ) -> None:
        super().__init__(channels, CENTRE)
        if kernel % 2 == 0:
            raise ConfigError(f"backbone.kernel={kernel} is even, and has no centre")
        if not widths or image_size < 2 ** len(widths):
            raise ConfigError(
                f"{len(widths)} layers that halve images of {image_size} px leave nothing",
                remedy="shorten backbone.widths, or raise dataset.image_size",
            )
        self.name = "conv_encoder" if units == "relu" else "sigmoid_encoder"
        inputs = (channels, *widths[:-1])
        self.layers = nn.ModuleList(
            Layer(i, o, kernel, units=units, norm=norm == "batch", pool=True)
            for i, o in zip(inputs, widths, strict=True)
        )
        self.embedding_size = widths[-1]
        self.channels = tuple(widths)
        self.strides = tuple(2 ** (k + 1) for k in range(len(widths)))


class DenseEncoder(_Stack):
    """Fully connected layers on the scaled image, as the first deep networks had them.

    It has no pyramid: what needs one, such as detection and segmentation, cannot use it.

    Args:
        channels: Channels of the images.
        size: Height and width to which images are scaled.
        widths: Units of each layer.
        units: `sigmoid`, as a restricted Boltzmann machine has them, or `relu`.
        image_size: Height and width of the images in pixels.
    """

    def __init__(
        self,
        *,
        channels: int,
        size: Annotated[int, Field(ge=1)],
        widths: Annotated[Sequence[Width], Field(min_length=1)],
        units: Units,
        image_size: int,
    ) -> None:
        super().__init__(channels, CENTRE)
        self.name = "dense_encoder"
        self.size = min(size, image_size)
        inputs, kernels = (channels, *widths[:-1]), (self.size, *(1 for _ in widths[1:]))
        self.layers = nn.ModuleList(
            Layer(i, o, k, units=units, norm=False, pool=False, whole=True)
            for i, o, k in zip(inputs, widths, kernels, strict=True)
        )
        self.embedding_size = widths[-1]
        self.channels = ()
        self.strides = ()

    def normalised(self, images: Tensor) -> Tensor:
        """See `Backbone.normalised`; the images are scaled down."""
        return adaptive_avg_pool2d(super().normalised(images), self.size)

    def pyramid(self, images: Tensor) -> list[Tensor]:  # noqa: ARG002
        """See `Backbone.pyramid`: no level keeps the places of the image."""
        return []

    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """See `Backbone.features`."""
        return super().pyramid(images)[-1].flatten(1), []

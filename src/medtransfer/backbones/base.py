"""What every backbone gives: an embedding, a pyramid, and its layers in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Normalisation(NamedTuple):
    """Mean and standard deviation of the pixels that the weights were trained on, by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class Backbone(nn.Module, ABC):
    """A network that turns images into features.

    Its input is (N, channels, H, W) in [0, 1]; it normalises by itself, with the values that come
    with its weights, so that a checkpoint stands alone. All outputs come from one set of weights
    and one `state_dict`.

    Attributes:
        name: What identifies the architecture, for the weights' provenance.
        channels_in: Channels of the images.
        embedding_size: Columns of `embed`'s output.
        channels: Channels of each pyramid level, fine to coarse.
        strides: Pixels of the image for each pixel of a level, fine to coarse.
    """

    name: str
    channels_in: int
    embedding_size: int
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __init__(self, channels_in: int, normalisation: Normalisation) -> None:
        super().__init__()
        self.channels_in = channels_in
        self.register_buffer("mean", torch.zeros(1, channels_in, 1, 1))
        self.register_buffer("std", torch.ones(1, channels_in, 1, 1))
        self.normalise_by(normalisation)

    def normalise_by(self, normalisation: Normalisation) -> None:
        """Take over mean and standard deviation; they are averaged for a single channel."""
        for name in ("mean", "std"):
            values = torch.tensor(getattr(normalisation, name), dtype=torch.float32)
            if len(values) != self.channels_in:
                values = values.mean().expand(self.channels_in)
            self.get_buffer(name).copy_(values.view(1, -1, 1, 1))

    def normalised(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, W) in [0, 1] as the network wants them."""
        return (images - self.get_buffer("mean")) / self.get_buffer("std")

    @property
    def chosen_by(self) -> str:
        """What chooses this architecture on the command line."""
        return f"backbone={self.name}"

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Return the embedding, (N, embedding_size)."""

    @abstractmethod
    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Return feature maps (N, channels[i], H / strides[i], W / strides[i]), fine to coarse."""

    @abstractmethod
    def features(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return `embed` and `pyramid` from one pass."""

    @abstractmethod
    def layer_groups(self) -> Sequence[tuple[str, ...]]:
        """Return the parameter names of each group of layers, stem first, every one once."""

    def stages(self) -> Sequence[nn.Module]:
        """Return modules that give the pyramid's levels when applied one after the other.

        The first one takes normalised images. Empty where the network is no such chain.
        """
        return ()

    def place(self) -> tuple[str, int] | None:
        """Return the last layer whose output has places, by its name, and its channels.

        The embedding must come from that output. None where there is no such layer.
        """
        return None

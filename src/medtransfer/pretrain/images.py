"""The images that a source learns from: the training part of a dataset, without end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from medtransfer.backbones.base import Normalisation
from medtransfer.data.loading import Data
from medtransfer.data.seen import seen
from medtransfer.pretrain.base import Material

DARKEST = 1e-3  # smallest standard deviation of pixels, for images of one colour


class ImageBatch(TypedDict):
    """What a learner receives: `image` (N, C, H, W) float32 in [0, 1], `target` (N,) int64."""

    image: Tensor
    target: Tensor


@dataclass(frozen=True)
class Images(Material):
    """The training subset of a dataset as a stream of batches.

    Attributes:
        data: The dataset, divided.
        seed: Seed of the order.
    """

    data: Data
    seed: int

    @property
    def classes(self) -> int:
        """How many classes the targets name."""
        return len(self.data.spec.class_names)

    @property
    def image_size(self) -> int:  # type: ignore[override]
        """See `Material.image_size`."""
        return self.data.spec.image_size

    def draw(self, step: int, size: int, channels: int, generator: Generator) -> ImageBatch:  # noqa: ARG002
        """See `Material.draw`: permutations of the training subset, one after another."""
        count = len(self.data.train)
        epochs, places = np.divmod(np.arange(step * size, (step + 1) * size), count)
        orders = {e: np.random.default_rng([self.seed, e]).permutation(count) for e in set(epochs)}
        chosen = [orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)]
        return self._batch(self.data.train[chosen])

    def describe(self) -> dict[str, Any]:
        """See `Material.describe`; with it go the hashes of all that is seen."""
        spec = self.data.spec
        return {
            "trained_on": f"{len(self.data.train)} training images of {self.data.identity}",
            "licence": "that of the images",
            "data_hash": spec.data_hash,
            "split_hash": spec.split_hash,
            "seen": seen(self.data, self.data.train),
        }

    def some(self, split: Literal["train", "val"], limit: int) -> Tensor:
        """Return at most `limit` images of a split, evenly spaced, (N, C, H, W) in [0, 1]."""
        indices = self.data.train if split == "train" else self.data.division.val
        return self._batch(indices[:: max(1, len(indices) // limit)][:limit])["image"]

    def normalisation(self) -> Normalisation:
        """Return mean and standard deviation of the training pixels in [0, 1], by channel."""
        moments = np.zeros((2, self.data.spec.channels))
        for index in self.data.train:  # one by one: all of them as float64 may not fit
            pixels = self.data.decoded.images[index] / 255
            moments += pixels.mean((1, 2)), np.square(pixels).mean((1, 2))
        mean, square = moments / len(self.data.train)
        std = np.sqrt(np.maximum(square - mean**2, DARKEST**2))
        return Normalisation(tuple(mean.tolist()), tuple(std.tolist()))

    def _batch(self, indices: NDArray[np.int64]) -> ImageBatch:
        pixels = torch.from_numpy(self.data.decoded.images[indices])
        return {
            "image": pixels.float().div_(255),
            "target": torch.from_numpy(self.data.targets[indices]),
        }

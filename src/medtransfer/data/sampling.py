"""In which order samples are seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) in an order that follows from the seed and the epoch alone.

    Args:
        indices: What to draw from, (n,).
        seed: The trial's seed.
        weights: Draw n indices with replacement in proportion to these; None shuffles.
    """

    def __init__(
        self, indices: NDArray[np.int64], seed: int, weights: NDArray[np.float64] | None = None
    ) -> None:
        self.indices = indices
        self.seed = seed
        self.weights = None if weights is None else weights / weights.sum()
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.weights is None:
            order = rng.permutation(self.indices)
        else:
            order = rng.choice(self.indices, size=len(self.indices), p=self.weights)
        return ((self.epoch, int(i)) for i in order)


class InOrder(Sampler[tuple[int, int]]):
    """Yields (0, index) as the indices stand."""

    def __init__(self, indices: Sequence[int] | NDArray[np.int64]) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, int(i)) for i in self.indices)

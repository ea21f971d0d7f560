"""In which order samples are seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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


class WholeExams(Sampler[list[tuple[int, int]]]):
    """Yields batches of exams: the keys of all images of one exam after those of another.

    Args:
        sampler: Yields (epoch, index), the index being of an exam's first image.
        members: The images of each exam, by its first.
        batch_size: Exams in a batch.
        drop_last: Whether a last batch of fewer is left out.
    """

    def __init__(
        self,
        sampler: EpochSampler | InOrder,
        members: Mapping[int, NDArray[np.int64]],
        *,
        batch_size: int,
        drop_last: bool,
    ) -> None:
        self.sampler = sampler
        self.members = members
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batch: list[tuple[int, int]] = []
        exams = 0
        for epoch, first in self.sampler:
            batch += [(epoch, int(index)) for index in self.members[first]]
            exams += 1
            if exams == self.batch_size:
                yield batch
                batch, exams = [], 0
        if batch and not self.drop_last:
            yield batch

"""In which order samples are seen, and in which batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

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


@dataclass(frozen=True)
class Parts:
    """How batches are cut into parts, and which of the parts are loaded here.

    Each batch is cut into `accumulate * ranks` parts of as many cases, give or take one. Part
    `j * ranks + rank` is the `j`-th that this rank computes before all ranks make one step.

    Attributes:
        accumulate: Parts that one rank computes one after another.
        ranks: Processes that compute at the same time.
        rank: Which of them this is, from 0.
    """

    accumulate: int = 1
    ranks: int = 1
    rank: int = 0

    @property
    def count(self) -> int:
        """Parts of a batch on all ranks."""
        return self.accumulate * self.ranks

    def bounds(self, cases: int, turn: int, *, least: int = 1) -> tuple[int, int]:
        """Return where in a batch the part of a turn begins and ends.

        Args:
            cases: In the batch.
            turn: Which of this rank's parts, from 0.
            least: Cases in a part, as far as there are so many; parts for which too few are left
                are empty.
        """
        filled = max(1, min(self.count, cases // least))
        part = min(turn * self.ranks + self.rank, filled)
        return part * cases // filled, min(part + 1, filled) * cases // filled

    def share(self, cases: int, turn: int, *, least: int = 1) -> float:
        """Return what the mean loss of the part counts, so that those of all average to 1."""
        start, end = self.bounds(cases, turn, least=least)
        return self.count * (end - start) / cases


class CaseBatches(Sampler[list[tuple[int, int]]]):
    """Yields batches of cases, or this rank's parts of them.

    Every rank gets `accumulate` parts of each batch, whatever its size: a part that would be empty
    repeats the batch's first cases, and its share is 0. One case alone, of which there are no batch
    statistics, is a part only where that is all that a whole batch gives.

    Args:
        sampler: Yields (epoch, index), one for each case. Lightning tells it the epoch.
        batch_size: Cases in a batch, on all ranks.
        drop_last: Whether a last batch of fewer is left out.
        parts: How batches are cut.
        members: The images of each case, by its index, where that is an exam's first image; None
            where each case is one image.
    """

    def __init__(
        self,
        sampler: EpochSampler | InOrder,
        *,
        batch_size: int,
        drop_last: bool,
        parts: Parts | None = None,
        members: Mapping[int, NDArray[np.int64]] | None = None,
    ) -> None:
        self.sampler = sampler
        self.size = batch_size
        self.drop_last = drop_last
        self.parts = parts or Parts()
        self.least = 2 if batch_size >= 2 * self.parts.count else 1
        self.members = members

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.size)
        return (whole + (rest > 0 and not self.drop_last)) * self.parts.accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = iter(self.sampler)
        while batch := list(islice(order, self.size)):
            if self.drop_last and len(batch) < self.size:
                return
            for turn in range(self.parts.accumulate):
                start, end = self.parts.bounds(len(batch), turn, least=self.least)
                yield self._images(batch[start:end] or batch[:2])

    def share(self, number: int) -> float:
        """Return the share of what is yielded as this number of an epoch, from 0."""
        whole, turn = divmod(number, self.parts.accumulate)
        left = len(self.sampler) - whole * self.size
        return self.parts.share(min(self.size, left), turn, least=self.least)

    def _images(self, cases: list[tuple[int, int]]) -> list[tuple[int, int]]:
        if self.members is None:
            return cases
        return [(epoch, int(index)) for epoch, case in cases for index in self.members[case]]

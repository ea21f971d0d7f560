"""From decoded samples to batches, with randomness keyed by (seed, epoch, sample)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from medtransfer.data.base import Dataset, DataSpec
from medtransfer.data.decoded import Decoded, decode
from medtransfer.data.splits import Division, divide, subset
from medtransfer.data.transforms import Transform
from medtransfer.seeding import derive


class Batch(TypedDict):
    """What a task receives.

    Keys: `target` (N,) int64; `index` (N,) int64, the position of each sample in
    `Data.decoded.records`; `image` (N, C, H, W) float32 in [0, 1], or what was computed from it
    before: `embedding` (N, D) float32, or `levels`, the pyramid: (N, C_i, H_i, W_i) float32, fine
    to coarse.
    """

    target: Tensor
    index: Tensor
    image: NotRequired[Tensor]
    embedding: NotRequired[Tensor]
    levels: NotRequired[list[Tensor]]


@dataclass(frozen=True)
class Data:
    """One trial's view of a dataset: its division, its training subset, its loaders.

    Attributes:
        decoded: All samples.
        division: Which of them lie in which split.
        train: Indices of the training subset.
        spec: What the task may know.
        seed: The trial's seed.
        identity: What tells the collection apart from others.
    """

    decoded: Decoded
    division: Division
    train: NDArray[np.int64]
    spec: DataSpec
    seed: int
    identity: str

    @classmethod
    def open(cls, dataset: Dataset, *, cache: Path, seed: int) -> Data:
        """Decode, divide and subset a dataset.

        Raises:
            DataError: If the data cannot be used; nothing has been computed from them yet.
        """
        decoded = decode(dataset, cache)
        groups = [record.group_id for record in decoded.records]
        targets = [record.target for record in decoded.records]
        ids = [record.sample_id for record in decoded.records]
        division = divide(dataset.split, ids, groups, targets, decoded.class_names)
        train = subset(
            division.train,
            groups,
            targets,
            fraction=dataset.fraction,
            shots=dataset.shots,
            seed=seed,
        )
        counts = np.bincount([targets[i] for i in train], minlength=len(decoded.class_names))
        spec = DataSpec(
            class_names=decoded.class_names,
            channels=dataset.channels,
            image_size=dataset.image_size,
            train_counts=tuple(int(count) for count in counts),
            data_hash=decoded.data_hash,
            split_hash=division.hash,
        )
        return cls(decoded, division, train, spec, seed, dataset.identity)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Class index of every sample, (n,)."""
        return np.asarray([record.target for record in self.decoded.records], dtype=np.int64)

    def train_loader(
        self,
        transform: Transform,
        *,
        batch_size: int,
        workers: int,
        sampler: Literal["shuffle", "balanced"],
    ) -> DataLoader[Batch]:
        """Return shuffled, augmented batches of the training subset."""
        weights = None
        if sampler == "balanced":
            weights = 1 / np.bincount(self.targets[self.train])[self.targets[self.train]]
        return DataLoader(
            _Samples(self.decoded.images, self.targets, self.seed, transform),
            batch_size=batch_size,
            sampler=EpochSampler(self.train, self.seed, weights),
            num_workers=workers,
            persistent_workers=workers > 0,
            # a last batch of one sample has no batch statistics
            drop_last=len(self.train) > batch_size,
        )

    def loader(
        self, split: Literal["train", "val", "test"], *, batch_size: int, workers: int = 0
    ) -> DataLoader[Batch]:
        """Return batches of a split in its own order, as they are; `train` is the subset."""
        indices = self.train if split == "train" else getattr(self.division, split)
        return DataLoader(
            _Samples(self.decoded.images, self.targets, self.seed, None),
            batch_size=batch_size,
            sampler=_InOrder(indices),
            num_workers=workers,
        )

    def views(
        self,
        indices: NDArray[np.int64],
        transform: Transform | None,
        *,
        count: int,
        batch_size: int,
        workers: int,
    ) -> DataLoader[Batch]:
        """Return `count` views of each sample, those of one sample after each other.

        View v is what a trial of seed 0 sees in epoch v: they are the same for all trials.
        """
        return DataLoader(
            _Samples(self.decoded.images, self.targets, 0, transform),
            batch_size=batch_size,
            sampler=[(view, int(index)) for index in indices for view in range(count)],
            num_workers=workers,
            generator=torch.Generator(),  # else each pass takes a number from torch's own
        )


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


class _InOrder(Sampler[tuple[int, int]]):
    def __init__(self, indices: Sequence[int] | NDArray[np.int64]) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, int(i)) for i in self.indices)


class _Samples(TorchDataset[Batch]):
    def __init__(
        self,
        images: NDArray[np.uint8],
        targets: NDArray[np.int64],
        seed: int,
        transform: Transform | None,
    ) -> None:
        self.images = images
        self.targets = targets
        self.seed = seed
        self.transform = transform

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        image = torch.from_numpy(np.array(self.images[index])).float().div_(255)
        if self.transform is not None and self.transform.random:
            # The same sample in the same epoch is augmented alike whoever loads it and when.
            with torch.random.fork_rng(devices=[]):
                # torch.manual_seed seeds absent GPUs too, and notes a stack trace each time
                torch.default_generator.manual_seed(derive(self.seed, epoch, index))
                image = self.transform(image)
        return {
            "image": image,
            "target": torch.tensor(self.targets[index]),
            "index": torch.tensor(index),
        }

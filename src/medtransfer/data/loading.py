"""From decoded samples to batches, with randomness keyed by (seed, epoch, sample)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NotRequired, Required, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from medtransfer.data.base import Annotation, Dataset, DataSpec
from medtransfer.data.decoded import Decoded, decode
from medtransfer.data.sampling import EpochSampler, InOrder
from medtransfer.data.splits import Division, divide, subset
from medtransfer.data.transforms import Transform, augmented
from medtransfer.errors import DataError, Note
from medtransfer.seeding import derive


class Truth(TypedDict, total=False):
    """What is annotated in the images of a batch, as they are seen.

    Keys: `mask` (N, H, W) int64, 0 background, k + 1 class k, 255 ignored; or for each image
    `boxes` (n_i, 4) float32 in pixels and `labels` (n_i,) int64.
    """

    mask: Tensor
    boxes: list[Tensor]
    labels: list[Tensor]


class Batch(Truth):
    """What a task receives.

    Keys: `target` (N,) int64; `index` (N,) int64, the position of each sample in
    `Data.decoded.records`; `image` (N, C, H, W) float32 in [0, 1], or what was computed from it
    before: `embedding` (N, D) float32, or `levels`, the pyramid: (N, C_i, H_i, W_i) float32, fine
    to coarse.
    """

    target: Required[Tensor]
    index: Required[Tensor]
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
    def open(
        cls, dataset: Dataset, annotation: Annotation = "class", *, cache: Path, seed: int
    ) -> Data:
        """Decode, divide and subset a dataset; its notes are shown as warnings.

        Args:
            dataset: Where samples come from.
            annotation: What is learned of them.
            cache: Folder of all caches.
            seed: The trial's seed.

        Raises:
            DataError: If the data cannot be used; nothing has been computed from them yet.
        """
        decoded = decode(dataset, cache, annotation)
        groups = [record.group_id for record in decoded.records]
        targets = [record.target for record in decoded.records]
        ids = [record.sample_id for record in decoded.records]
        division = divide(
            dataset.split,
            ids,
            groups,
            targets,
            decoded.class_names,
            lists=_readable(dataset.lists(), ids),
        )
        train = subset(
            division.train,
            groups,
            targets,
            fraction=dataset.fraction,
            shots=dataset.shots,
            seed=seed,
        )
        names, counts = decoded.class_names, np.bincount([targets[i] for i in train])
        if decoded.foreground is not None:
            names, counts = decoded.foreground.names, decoded.foreground.shows[train].sum(axis=0)
            if not counts.any():
                raise DataError(
                    f"none of the {len(train)} training images shows any of {', '.join(names)}",
                    remedy="check where the annotation lies, or divide otherwise",
                )
        for note in dataset.notes():
            warnings.warn(Note(note), stacklevel=2)
        spec = DataSpec(
            class_names=names,
            channels=dataset.channels,
            image_size=dataset.image_size,
            train_counts=tuple(int(count) for count in counts),
            data_hash=decoded.data_hash,
            split_hash=division.hash,
            annotation=annotation,
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
            _Samples(self.decoded, self.targets, self.seed, transform),
            batch_size=batch_size,
            sampler=EpochSampler(self.train, self.seed, weights),
            num_workers=workers,
            collate_fn=collate,
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
            _Samples(self.decoded, self.targets, self.seed, None),
            batch_size=batch_size,
            sampler=InOrder(indices),
            num_workers=workers,
            collate_fn=collate,
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
            _Samples(self.decoded, self.targets, 0, transform),
            batch_size=batch_size,
            sampler=[(view, int(index)) for index in indices for view in range(count)],
            num_workers=workers,
            collate_fn=collate,
            generator=torch.Generator(),  # else each pass takes a number from torch's own
        )

    def truth(
        self, indices: Sequence[int], views: Sequence[int], transform: Transform | None
    ) -> Truth:
        """Return the masks or boxes of views of samples, as they match the images of `views`.

        Args:
            indices: Positions among the records, (N,).
            views: Which view of each, (N,).
            transform: What `views` was given.
        """
        samples = _Samples(self.decoded, self.targets, 0, transform)
        keys = zip(views, indices, strict=True)
        batch = collate([samples[int(view), int(index)] for view, index in keys])
        if self.spec.annotation == "mask":
            return {"mask": batch["mask"]}
        if self.spec.annotation == "boxes":
            return {"boxes": batch["boxes"], "labels": batch["labels"]}
        return {}


class _Samples(TorchDataset[Batch]):
    def __init__(
        self,
        decoded: Decoded,
        targets: NDArray[np.int64],
        seed: int,
        transform: Transform | None,
    ) -> None:
        self.images = decoded.images
        self.masks = decoded.foreground.masks if decoded.foreground else None
        self.boxes = decoded.foreground.boxes if decoded.foreground else None
        self.targets = targets
        self.seed = seed
        self.transform = transform

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        sample = self._read(index)
        if self.transform is not None and self.transform.random:
            # The same sample in the same epoch is augmented alike whoever loads it and when.
            with torch.random.fork_rng(devices=[]):
                # torch.manual_seed seeds absent GPUs too, and notes a stack trace each time
                torch.default_generator.manual_seed(derive(self.seed, epoch, index))
                sample = augmented(self.transform, sample)
        if "mask" in sample:
            sample["mask"] = sample["mask"].long()
        sample["target"] = torch.tensor(self.targets[index])
        sample["index"] = torch.tensor(index)
        return cast("Batch", sample)

    def _read(self, index: int) -> dict[str, Tensor]:
        sample = {"image": torch.from_numpy(np.array(self.images[index])).float().div_(255)}
        if self.masks is not None:
            sample["mask"] = torch.from_numpy(np.array(self.masks[index]))
        if self.boxes is not None:
            sample["boxes"] = torch.from_numpy(self.boxes[index].boxes.copy())
            sample["labels"] = torch.from_numpy(self.boxes[index].labels.copy())
        return sample


def collate(samples: Sequence[Mapping[str, object]]) -> Batch:
    """Join samples to a batch; boxes and their labels stay apart, since each image has its own."""
    batch = {
        key: [sample[key] for sample in samples]
        if key in {"boxes", "labels"}
        else default_collate([sample[key] for sample in samples])
        for key in samples[0]
    }
    return cast("Batch", batch)


def _readable(
    lists: Mapping[str, Sequence[str]] | None, sample_ids: Sequence[str]
) -> dict[str, list[str]] | None:
    """Return a dataset's lists without the samples that were skipped."""
    if lists is None:
        return None
    known = set(sample_ids)
    return {name: [i for i in listed if i in known] for name, listed in lists.items()}

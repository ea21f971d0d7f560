"""From decoded samples to batches, with randomness keyed by (seed, epoch, sample)."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired, Required, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from medtransfer.data.base import Annotation, Dataset, DataSpec
from medtransfer.data.decoded import Decoded, decode
from medtransfer.data.dividing import divided, groups_of, require_whole_exams, strata_of
from medtransfer.data.sampling import CaseBatches, EpochSampler, InOrder, Parts
from medtransfer.data.seal import Seal
from medtransfer.data.splits import Division, subset
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

    Keys: `target` (N,) int64, of labels (N, L) with `UNKNOWN`; `index` (N,) int64, the position of
    each sample in `Data.decoded.records`; `image` (N, C, H, W) float32 in [0, 1], or what was
    computed from it before: `embedding` (N, D) float32, or `levels`, the pyramid:
    (N, C_i, H_i, W_i) float32, fine to coarse.

    A batch of exams holds the N images of all of them, those of one exam after those of another,
    and besides `exam` (N,) int64, which of the batch's exams each is of, counted from 0, and `view`
    (N,) int64, its position in `DataSpec.views`, -1 where training has no such view.
    """

    target: Required[Tensor]
    index: Required[Tensor]
    exam: NotRequired[Tensor]
    view: NotRequired[Tensor]
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
        notes: What whoever reads results on these data must know.
        seal: Keeps the test split closed until all choices are made.
    """

    decoded: Decoded
    division: Division
    train: NDArray[np.int64]
    spec: DataSpec
    seed: int
    identity: str
    seal: Seal
    notes: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        dataset: Dataset,
        annotation: Annotation = "class",
        *,
        cache: Path,
        seed: int,
        waived: Collection[str] = (),
        test: bool = True,
    ) -> Data:
        """Decode, divide and subset a dataset; its notes are shown as warnings.

        Args:
            dataset: Where samples come from.
            annotation: What is learned of them.
            cache: Folder of all caches.
            seed: The trial's seed.
            waived: Codes of the leaks that are put up with.
            test: Whether the test split may be opened later.

        Raises:
            DataError: If the data cannot be used; nothing has been computed from them yet.
            LeakageError: If a given division cuts through a patient and that is not waived.
        """
        decoded = decode(dataset, cache, annotation)
        division = divided(decoded, dataset, annotation, waived=waived)
        records = decoded.records
        train = subset(
            division.train,
            groups_of(decoded),
            strata_of(decoded, annotation),
            fraction=dataset.fraction,
            shots=dataset.shots,
            seed=seed,
        )
        names = decoded.class_names
        if annotation == "exam":
            require_whole_exams(records)
            exams = {records[i].exam_id: records[i].target for i in train}
            counts = np.bincount([*exams.values()], minlength=len(names))
        elif annotation == "labels":
            counts = (np.asarray([records[i].labels for i in train]) == 1).sum(axis=0)
        elif decoded.foreground is not None:
            names, counts = decoded.foreground.names, decoded.foreground.shows[train].sum(axis=0)
        else:
            counts = np.bincount([records[i].target for i in train], minlength=len(names))
        if not counts.any():
            raise DataError(
                f"none of the {len(train)} training images shows any of {', '.join(names)}",
                remedy="check where the annotation lies, or divide otherwise",
            )
        notes = dataset.notes()
        if division.dropped:
            notes += (
                f"{division.dropped} samples were left out of training or validation: they, or"
                " others of their patient, lie in a later split too",
            )
        for note in notes:
            warnings.warn(Note(note), stacklevel=2)
        spec = DataSpec(
            class_names=names,
            channels=dataset.channels,
            image_size=dataset.image_size,
            train_counts=tuple(int(count) for count in counts),
            data_hash=decoded.data_hash,
            split_hash=division.hash,
            annotation=annotation,
            views=tuple(sorted({records[i].view for i in division.train})),
        )
        seal = Seal(division.test, len(records), allowed=test)
        return cls(decoded, division, train, spec, seed, dataset.identity, seal, notes)

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Class index of every sample, (n,), or its labels, (n, L)."""
        if self.spec.annotation == "labels":
            return np.asarray([record.labels for record in self.decoded.records], dtype=np.int64)
        return np.asarray([record.target for record in self.decoded.records], dtype=np.int64)

    @cached_property
    def exams(self) -> NDArray[np.int64]:
        """For every sample the index of the first sample of its exam, (n,)."""
        first: dict[str, int] = {}
        records = enumerate(self.decoded.records)
        return np.asarray([first.setdefault(r.exam_id, i) for i, r in records], dtype=np.int64)

    @cached_property
    def members(self) -> dict[int, NDArray[np.int64]]:
        """The samples of each exam, by its first."""
        order = np.argsort(self.exams, kind="stable")
        firsts, starts = np.unique(self.exams[order], return_index=True)
        return dict(zip(firsts.tolist(), np.split(order, starts[1:]), strict=True))

    @cached_property
    def view_of(self) -> NDArray[np.int64]:
        """For every sample the position of its view among those of training, or -1, (n,)."""
        place = {name: k for k, name in enumerate(self.spec.views)}
        views = [place.get(record.view, -1) for record in self.decoded.records]
        return np.asarray(views, dtype=np.int64)

    def cases(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return of samples what is judged: each by itself, or the first one of each exam."""
        return np.unique(self.exams[indices]) if self.spec.annotation == "exam" else indices

    def batches(
        self,
        sampler: EpochSampler | InOrder,
        batch_size: int,
        *,
        drop_last: bool = False,
        parts: Parts | None = None,
    ) -> dict[str, Any]:
        """Return a loader's arguments that make batches of so many cases, or parts of them."""
        exams = self.spec.annotation == "exam"
        if not exams and (parts is None or parts.count == 1):
            return {"sampler": sampler, "batch_size": batch_size, "drop_last": drop_last}
        cut = CaseBatches(
            sampler,
            batch_size=batch_size,
            drop_last=drop_last,
            parts=parts,
            members=self.members if exams else None,
        )
        return {"batch_sampler": cut}

    def train_loader(
        self,
        transform: Transform,
        *,
        batch_size: int,
        workers: int,
        sampler: Literal["shuffle", "balanced"],
        parts: Parts | None = None,
    ) -> DataLoader[Batch]:
        """Return shuffled, augmented batches of the training subset, or parts of them."""
        cases = self.cases(self.train)
        weights = None
        if sampler == "balanced":
            weights = 1 / np.bincount(self.targets[cases])[self.targets[cases]]
        order = EpochSampler(cases, self.seed, weights)
        return DataLoader(
            _Samples(self, self.seed, transform),
            num_workers=workers,
            collate_fn=collate,
            persistent_workers=workers > 0,
            # a last batch of one sample has no batch statistics
            **self.batches(order, batch_size, drop_last=len(cases) > batch_size, parts=parts),
        )

    def loader(
        self, split: Literal["train", "val", "test"], *, batch_size: int, workers: int = 0
    ) -> DataLoader[Batch]:
        """Return batches of a split in its own order, as they are; `train` is the subset."""
        indices = self.train if split == "train" else getattr(self.division, split)
        self.seal.require(indices)
        return DataLoader(
            _Samples(self, self.seed, None),
            num_workers=workers,
            collate_fn=collate,
            **self.batches(InOrder(self.cases(indices)), batch_size),
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
        self.seal.require(indices)
        return DataLoader(
            _Samples(self, 0, transform),
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
        samples = _Samples(self, 0, transform)
        keys = zip(views, indices, strict=True)
        batch = collate([samples[int(view), int(index)] for view, index in keys])
        if self.spec.annotation == "mask":
            return {"mask": batch["mask"]}
        if self.spec.annotation == "boxes":
            return {"boxes": batch["boxes"], "labels": batch["labels"]}
        return {}


class _Samples(TorchDataset[Batch]):
    def __init__(self, data: Data, seed: int, transform: Transform | None) -> None:
        foreground = data.decoded.foreground
        self.seal = data.seal
        self.images = data.decoded.images
        self.white = float(np.iinfo(self.images.dtype).max)
        self.masks = foreground.masks if foreground else None
        self.boxes = foreground.boxes if foreground else None
        self.keys = {"target": data.targets}
        if data.spec.annotation == "exam":
            self.keys |= {"exam": data.exams, "view": data.view_of}
        self.seed = seed
        self.transform = transform

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        epoch, index = key
        self.seal.require(index)
        sample = self._read(index)
        if self.transform is not None and self.transform.random:
            # The same sample in the same epoch is augmented alike whoever loads it and when.
            with torch.random.fork_rng(devices=[]):
                # torch.manual_seed seeds absent GPUs too, and notes a stack trace each time
                torch.default_generator.manual_seed(derive(self.seed, epoch, index))
                sample = augmented(self.transform, sample)
        if "mask" in sample:
            sample["mask"] = sample["mask"].long()
        for name, values in self.keys.items():
            sample[name] = torch.tensor(values[index])
        sample["index"] = torch.tensor(index)
        return cast("Batch", sample)

    def _read(self, index: int) -> dict[str, Tensor]:
        pixels = self.images[index].astype(np.float32)
        sample = {"image": torch.from_numpy(pixels).div_(self.white)}
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
    if "exam" in batch:
        batch["exam"] = numbered(cast("Tensor", batch["exam"]))
    return cast("Batch", batch)


def numbered(exams: Tensor) -> Tensor:
    """Return the exams of a batch's images counted from 0, given what tells them apart, (N,)."""
    _, numbers = torch.unique_consecutive(exams, return_inverse=True)
    return cast("Tensor", numbers)

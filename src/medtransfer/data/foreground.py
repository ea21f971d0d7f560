"""What the masks or boxes of a dataset mark, decoded beside its images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medtransfer.cache import array_file
from medtransfer.data.annotations import Fit, check_boxes, check_mask
from medtransfer.data.base import Annotation, Boxes, Dataset, Record
from medtransfer.errors import DataError

Recorder = Callable[[Record, tuple[int, ...]], list[DataError]]
"""Reads, checks and keeps the annotation of a sample whose image has this height and width; returns
errors about boxes that are left out. If it raises, nothing of the sample is kept."""


@dataclass(frozen=True)
class Foreground:
    """Masks or boxes of all samples, in the squares of their images.

    Attributes:
        names: Of the classes.
        shows: (n, K) bool: which classes each sample shows.
        hashes: Of each sample's annotation as it was read.
        masks: (n, image_size, image_size) uint8, mapped from the cache, where masks are learned.
        boxes: In pixels of the square, where boxes are learned.
    """

    names: tuple[str, ...]
    shows: NDArray[np.bool_]
    hashes: tuple[str, ...]
    masks: NDArray[np.uint8] | None
    boxes: tuple[Boxes, ...] | None

    @property
    def negatives(self) -> int:
        """How many samples show none of the classes."""
        return int((~self.shows.any(axis=1)).sum())


@contextmanager
def recorder(
    annotation: Annotation, dataset: Dataset, count: int, folder: Path
) -> Iterator[Recorder]:
    """Open the files of an annotation in the entry of a cache.

    Args:
        annotation: Masks or boxes; of classes and labels nothing is written.
        dataset: Where they come from.
        count: How many samples there are at most.
        folder: The entry.

    Yields:
        What takes one sample after another.
    """
    if annotation not in {"mask", "boxes"}:
        yield lambda _record, _size: []
        return
    kind = _masks if annotation == "mask" else _boxes
    hashes: list[str] = []
    shows: list[list[bool]] = []
    classes = np.arange(len(dataset.foreground()))

    def keep(content: bytes, shown: NDArray[np.int64]) -> None:
        hashes.append(hashlib.sha256(content).hexdigest()[:32])
        shows.append(np.isin(classes, shown).tolist())

    with kind(dataset, count, folder, keep) as add:
        yield add
    index = json.dumps({"hashes": hashes, "shows": shows})
    (folder / "foreground.json").write_text(index, encoding="utf-8")


def load(folder: Path, annotation: Annotation, names: tuple[str, ...]) -> Foreground:
    """Return what `recorder` has written."""
    index = json.loads((folder / "foreground.json").read_text(encoding="utf-8"))
    count = len(index["hashes"])
    masks, boxes = None, None
    if annotation == "mask":
        masks = np.load(folder / "masks.npy", mmap_mode="r")
    else:
        found, labels, ends = (np.load(folder / f"{n}.npy") for n in ("boxes", "labels", "ends"))
        boxes = tuple(map(Boxes, np.split(found, ends)[:count], np.split(labels, ends)[:count]))
    shows = np.asarray(index["shows"], dtype=np.bool_).reshape(count, len(names))
    return Foreground(names, shows, tuple(index["hashes"]), masks, boxes)


Keep = Callable[[bytes, NDArray[np.int64]], None]


@contextmanager
def _masks(dataset: Dataset, count: int, folder: Path, keep: Keep) -> Iterator[Recorder]:
    size, classes = dataset.image_size, len(dataset.foreground())
    with array_file(folder / "masks.npy", (count, size, size), np.uint8) as append:

        def add(record: Record, shape: tuple[int, ...]) -> list[DataError]:
            height, width = shape
            mask = np.ascontiguousarray(dataset.mask(record))
            check_mask(mask, (height, width), classes, dataset.annotated_in(record))
            fitted = Fit.of(height, width, size).mask(mask)
            append(fitted)
            keep(repr(mask.shape).encode() + mask.tobytes(), np.unique(fitted).astype(np.int64) - 1)
            return []

        yield add


@contextmanager
def _boxes(dataset: Dataset, count: int, folder: Path, keep: Keep) -> Iterator[Recorder]:  # noqa: ARG001
    kept = [Boxes.of([], None)]  # numpy joins no empty list
    names = dataset.foreground()

    def add(record: Record, shape: tuple[int, ...]) -> list[DataError]:
        height, width = shape
        file = dataset.annotated_in(record)
        found, errors = check_boxes(dataset.boxes(record), (height, width), names, file)
        if errors and dataset.on_error == "raise":
            raise errors[0]
        kept.append(Fit.of(height, width, dataset.image_size).boxes(found, height, width))
        keep(found.boxes.tobytes() + found.labels.tobytes(), found.labels)
        return errors

    yield add
    np.save(folder / "boxes.npy", np.concatenate([found.boxes for found in kept]))
    np.save(folder / "labels.npy", np.concatenate([found.labels for found in kept]))
    ends = np.cumsum([len(found.labels) for found in kept[1:]], dtype=np.int64)
    np.save(folder / "ends.npy", ends)

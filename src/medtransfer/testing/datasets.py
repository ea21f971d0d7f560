"""What every dataset keeps: samples that stay what they are, divided by patient.

A check takes a dataset and raises `AssertionError` in words.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data.base import IGNORED, UNKNOWN, Annotation, Boxes, Dataset, Record
from medtransfer.data.loading import Batch, Data
from medtransfer.data.splits import SPLITS
from medtransfer.testing.composing import composed
from medtransfer.testing.requiring import require, require_same

LOOKED_AT = 20  # masks and boxes; of a large dataset reading all takes minutes
BATCH = 3
ANNOTATIONS: tuple[Annotation, ...] = get_args(Annotation)


def check_dataset(
    name: str,
    *overrides: str,
    config_dir: Path | str | None = None,
    trusted: Sequence[str] = (),
) -> None:
    """Check a choice of the group `dataset` on whatever images it is told to read.

    Samples are unique and in one order; pixels, masks and boxes are what they should be, and the
    same when they are read again; no patient lies on two sides of a split, and every class lies on
    each; hashes do not change; batches come for every kind of annotation. A few images are enough,
    such as ten patients of each class; all of them are read.

    Args:
        name: The choice.
        *overrides: Keys of it, as on the command line, such as `dataset.root=FOLDER`.
        config_dir: The folder that you give as --config-dir.
        trusted: The modules that you trust on the command line; they must be importable.

    Raises:
        AssertionError: If it does not keep one of these; it says which.
        MedtransferError: If it cannot be composed or built, or its files cannot be read.
    """
    with tempfile.TemporaryDirectory() as scratch:
        places = [f"paths.{each}='{scratch}/{each}'" for each in ("output", "cache")]
        given = [f"dataset={name}", *places, *overrides]
        config = composed(given, config_dir, trusted).typed(TrainConfig)

        def anew() -> Dataset:
            return build(config.dataset, Dataset, trusted=trusted)

        dataset = anew()
        provides_what_is_known(dataset)
        has_unique_samples(dataset)
        has_stable_samples(dataset, anew())
        has_whole_exams(dataset)
        has_plain_pixels(dataset)
        is_divided_by_group(dataset, Path(scratch, "first"))
        has_stable_hashes(dataset, anew(), Path(scratch))
        annotates_its_images(dataset)
        for annotation in (each for each in ANNOTATIONS if each in dataset.provides):
            comes_in_batches(dataset, annotation, Path(scratch, "first"))


def provides_what_is_known(dataset: Dataset) -> None:
    """Require that a dataset says which annotation it brings."""
    require(bool(dataset.provides), "`provides` names the annotation that there is")
    known = set(ANNOTATIONS)
    require_same(dataset.provides & known, dataset.provides, "`provides` names known annotation")
    marks = bool({"mask", "boxes"} & dataset.provides)
    require(bool(dataset.foreground()) == marks, "foreground() names what masks and boxes mark")
    labels = "labels" in dataset.provides
    require(bool(dataset.labels()) or not labels, "labels() names the labels of records")


def has_unique_samples(dataset: Dataset) -> None:
    """Require of samples that no two have one id, and that every class has some."""
    names, records = dataset.records()
    require(bool(records), "records() returns samples")
    seen: set[str] = set()
    for record in records:
        require(bool(record.sample_id), "a sample has an empty id")
        require(record.sample_id not in seen, f"two samples have the id '{record.sample_id}'")
        require(bool(record.group_id), f"sample '{record.sample_id}' has no patient")
        require(bool(record.exam_id), f"sample '{record.sample_id}' has no exam")
        seen.add(record.sample_id)
    places = {str(record.target) for record in records}
    require_same(places, {str(i) for i in range(len(names))}, "targets are places in the names")
    for record in records if "labels" in dataset.provides else ():
        count, values = len(record.labels), set(record.labels)
        right = count == len(dataset.labels()) and values <= {0, 1, UNKNOWN}
        require(right, f"sample '{record.sample_id}' has the labels {record.labels}")


def has_stable_samples(dataset: Dataset, again: Dataset) -> None:
    """Require of two datasets of one configuration that they list the same, in one order."""
    first, second = dataset.records(), again.records()
    require(first[0] == second[0], f"names of classes change: {first[0]}, then {second[0]}")
    same = list(first[1]) == list(second[1])
    require(same, "records() returns others, or in another order, when it is called again")
    unchanged = dataset.fingerprint(first[1]) == again.fingerprint(second[1])
    require(unchanged, "fingerprint() changes, and no file does")


def has_plain_pixels(dataset: Dataset) -> None:
    """Require of the first image of each class that it is grey or colour, of 8 or 16 bits."""
    names, records = dataset.records()
    for target in range(len(names)):
        record = next(r for r in records if r.target == target)
        image, where = dataset.read(record), f"image '{record.sample_id}'"
        require(image.dtype in {np.dtype("u1"), np.dtype("u2")}, f"{where} is {image.dtype}")
        plain = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        require(plain, f"{where} is {image.shape}, and neither (H, W) nor (H, W, 3)")
        require(bool(image.min() < image.max()), f"{where} has one value in all pixels")
        require(np.array_equal(image, dataset.read(record)), f"{where} changes when read again")


def has_whole_exams(dataset: Dataset) -> None:
    """Require of the images of an exam that they are of one patient, and judged alike."""
    first: dict[str, Record] = {}
    for record in dataset.records()[1]:
        before = first.setdefault(record.exam_id, record)
        of_one = record.group_id == before.group_id
        require(of_one, f"exam '{record.exam_id}' is of two patients")
        alike = record.target == before.target or "exam" not in dataset.provides
        require(alike, f"exam '{record.exam_id}' is of two classes")


def is_divided_by_group(dataset: Dataset, cache: Path) -> None:
    """Require that no patient lies on two sides, that every class lies on each, and batches.

    Args:
        dataset: The dataset.
        cache: A folder.
    """
    data = Data.open(dataset, cache=cache, seed=0)
    records = data.decoded.records
    sides = {name: getattr(data.division, name) for name in SPLITS}
    lies: dict[str, str] = {}
    for side, members in sides.items():
        for i in members:
            where = lies.setdefault(records[i].group_id, side)
            require(where == side, f"patient '{records[i].group_id}' is in {where} and in {side}")
        found = {data.spec.class_names[i] for i in set(data.targets[members])}
        require_same(found, data.spec.class_names, f"classes in {side}")
    counted = sum(data.spec.train_counts) == len(data.train)
    require(counted, f"{data.spec.train_counts} are not the classes of {len(data.train)} images")
    data.seal.open()
    size = min(BATCH, len(sides["test"]))
    _require_images(next(iter(data.loader("test", batch_size=BATCH))), dataset, size)


def has_stable_hashes(dataset: Dataset, again: Dataset, cache: Path) -> None:
    """Require of two datasets of one configuration the same hashes, computed anew.

    Args:
        dataset: The dataset.
        again: It again.
        cache: A folder for two caches.
    """
    one, other = (
        Data.open(each, cache=cache / name, seed=0)
        for each, name in ((dataset, "first"), (again, "second"))
    )
    require(one.spec.data_hash == other.spec.data_hash, "the hash of the data changes")
    require(one.spec.split_hash == other.spec.split_hash, "the hash of the split changes")


def annotates_its_images(dataset: Dataset) -> None:
    """Require of masks and boxes that they fit their images and name known classes."""
    names = dataset.foreground()
    for record in dataset.records()[1][:LOOKED_AT]:
        height, width = dataset.read(record).shape[:2]
        where = f"of '{record.sample_id}'"
        if "mask" in dataset.provides:
            mask = dataset.mask(record)
            require(mask.dtype == np.uint8, f"the mask {where} is {mask.dtype}, and not uint8")
            fits = mask.shape == (height, width)
            require(fits, f"the mask {where} is {mask.shape}, and its image {(height, width)}")
            known = set(np.unique(mask)) <= {*range(len(names) + 1), IGNORED}
            require(known, f"the mask {where} has values of no class")
        if "boxes" in dataset.provides:
            _require_boxes(dataset.boxes(record), len(names), (height, width), where)


def _require_boxes(found: Boxes, classes: int, size: tuple[int, int], where: str) -> None:
    kinds = [str(each.dtype) for each in (found.boxes, found.labels)]
    require(kinds == ["float32", "int64"], f"boxes and labels {where} are {kinds}")
    shapes = found.boxes.shape == (len(found.labels), 4)
    require(shapes, f"boxes {where} are {found.boxes.shape} for {len(found.labels)} labels")
    require(set(found.labels) <= set(range(classes)), f"a box {where} is of no class")
    x0, y0, x1, y1 = found.boxes.T
    require(bool(((x0 < x1) & (y0 < y1)).all()), f"a box {where} ends before it begins")
    inside = (x0 >= 0) & (y0 >= 0) & (x1 <= size[1]) & (y1 <= size[0])
    require(bool(inside.all()), f"a box {where} leaves its image")


def comes_in_batches(dataset: Dataset, annotation: Annotation, cache: Path) -> None:
    """Require that a kind of annotation comes with its images.

    Args:
        dataset: One that provides it.
        annotation: The kind.
        cache: A folder.
    """
    data = Data.open(dataset, annotation, cache=cache, seed=0)
    marks = annotation in {"mask", "boxes"}
    if marks:
        require(data.spec.class_names == dataset.foreground(), "its classes are foreground()")
    shown = all(0 < count <= len(data.train) for count in data.spec.train_counts)
    require(shown, f"counts of {annotation} in training are {data.spec.train_counts}")
    batch = next(iter(data.loader("train", batch_size=BATCH)))
    count = len(batch["index"])
    _require_images(batch, dataset, count)
    size = dataset.image_size
    if annotation == "mask":
        mask = batch["mask"]
        require(tuple(mask.shape) == (count, size, size), f"a batch of masks is {mask.shape}")
        require(mask.dtype == torch.int64, f"a batch of masks is {mask.dtype}")
    elif annotation == "boxes":
        for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True):
            require(boxes.shape == (len(labels), 4), f"boxes of an image are {boxes.shape}")
    elif annotation == "labels":
        wanted = (count, len(dataset.labels()))
        require(tuple(batch["target"].shape) == wanted, f"labels are {batch['target'].shape}")


def _require_images(batch: Batch, dataset: Dataset, count: int) -> None:
    images, size = batch["image"], dataset.image_size
    wanted = (count, dataset.channels, size, size)
    require(tuple(images.shape) == wanted, f"a batch is {tuple(images.shape)}, and not {wanted}")
    inside = bool(((images >= 0) & (images <= 1)).all())
    require(images.dtype == torch.float32 and inside, "images are float32 in [0, 1]")

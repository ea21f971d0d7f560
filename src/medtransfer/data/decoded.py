"""Every image and its annotation are decoded, checked and hashed once, into mapped files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from medtransfer.cache import array_file, entry
from medtransfer.data.annotations import Fit
from medtransfer.data.base import Annotation, Dataset, Image, Record
from medtransfer.data.foreground import Foreground, load, recorder
from medtransfer.data.splits import merge_groups
from medtransfer.errors import DataError

FORMAT = 2  # changes when what is written changes


@dataclass(frozen=True)
class Decoded:
    """A dataset with its pixels.

    Attributes:
        class_names: In the order of the targets.
        records: The samples that could be read; groups of identical images are merged.
        images: (n, channels, image_size, image_size) uint8, mapped from the cache.
        skipped: Messages about the samples, and the boxes, that were left out.
        contents: Hash of the pixels as they were read, by sample id.
        data_hash: Hash of every sample's id, group, target, pixels and annotation.
        foreground: What masks or boxes mark; None where targets are learned.
    """

    class_names: tuple[str, ...]
    records: tuple[Record, ...]
    images: NDArray[np.uint8]
    skipped: tuple[str, ...]
    contents: Mapping[str, str]
    data_hash: str
    foreground: Foreground | None = None

    @property
    def images_hash(self) -> str:
        """What `data_hash` is where no mask and no box is learned: pre-training knows it so."""
        return _hash(_described(self.records, self.contents))


def decode(dataset: Dataset, cache: Path, annotation: Annotation = "class") -> Decoded:
    """Return the dataset decoded, from the cache where it holds just this.

    The key covers the dataset's own fingerprint and everything that shapes the pixels, so a changed
    file or size is another entry.

    Args:
        dataset: Where samples come from.
        cache: Folder of all caches.
        annotation: What is learned, and so decoded beside the images.

    Raises:
        DataError: If an image, a mask or a box cannot be used and `on_error` is `raise`, or none
            can; or if two samples share an id.
        StoreError: If the cache cannot be written.
    """
    class_names, records = dataset.records()
    names = () if annotation == "class" else dataset.foreground()
    _require_unique(records)
    parts = (FORMAT, type(dataset).__qualname__, dataset.image_size, dataset.channels)
    text = f"{parts} {annotation} {names} {dataset.fingerprint(records)}"
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    write = partial(_write, dataset, records, annotation)
    with entry(cache / "decoded", key, write) as folder:
        index = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="r")
        foreground = None if annotation == "class" else load(folder, annotation, names)
    if index["skipped"] and dataset.on_error == "raise":
        raise DataError(**index["skipped"][0])

    hashes: dict[str, str] = index["hashes"]
    read = [record for record in records if record.sample_id in hashes]
    _require_every_class(class_names, read)
    groups = merge_groups([r.group_id for r in read], [hashes[r.sample_id] for r in read])
    merged = tuple(
        Record(r.sample_id, group, r.exam_id, r.target)
        for r, group in zip(read, groups, strict=True)
    )
    described = _described(merged, hashes)
    if foreground is not None:
        described.append([annotation, *names, *foreground.hashes])
    return Decoded(
        class_names=class_names,
        records=merged,
        images=images,
        skipped=tuple(skipped["problem"] for skipped in index["skipped"]),
        contents=hashes,
        data_hash=_hash(described),
        foreground=foreground,
    )


def letterbox(image: Image, size: int, channels: int) -> Image:
    """Scale an image to fit a square, pad it with black, and give it the channels asked for.

    Args:
        image: (H, W) or (H, W, 3).
        size: Height and width of the result.
        channels: 1 or 3.

    Returns:
        (channels, size, size).
    """
    picture = PILImage.fromarray(image).convert("L" if channels == 1 else "RGB")
    fit = Fit.of(picture.height, picture.width, size)
    if (fit.width, fit.height) != picture.size:
        target = (fit.width, fit.height)
        picture = picture.resize(target, PILImage.Resampling.BICUBIC, reducing_gap=3.0)
    canvas = np.zeros((size, size, channels), dtype=np.uint8)
    canvas[fit.place] = np.asarray(picture).reshape(fit.height, fit.width, -1)
    return canvas.transpose(2, 0, 1)


def _write(
    dataset: Dataset, records: Sequence[Record], annotation: Annotation, folder: Path
) -> None:
    shape = (len(records), dataset.channels, dataset.image_size, dataset.image_size)
    hashes: dict[str, str] = {}
    skipped: list[dict[str, str]] = []
    with (
        array_file(folder / "images.npy", shape, np.uint8) as append,
        recorder(annotation, dataset, len(records), folder) as record_annotation,
    ):
        for record in records:
            try:
                image = dataset.read(record)
                errors = record_annotation(record, image.shape[:2])
            except DataError as error:
                if dataset.on_error == "raise":
                    raise
                errors = [error]
            else:
                # `shape` keeps two images apart that share their bytes but not their proportions
                content = repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()
                append(letterbox(image, dataset.image_size, dataset.channels))
                hashes[record.sample_id] = hashlib.sha256(content).hexdigest()[:32]
            skipped += [{"problem": error.problem, "remedy": error.remedy} for error in errors]
    index = json.dumps({"hashes": hashes, "skipped": skipped})
    (folder / "samples.json").write_text(index, encoding="utf-8")


def _described(records: Sequence[Record], contents: Mapping[str, str]) -> list[list[object]]:
    """Return what is hashed of each sample."""
    return [[r.sample_id, r.group_id, r.exam_id, r.target, contents[r.sample_id]] for r in records]


def _hash(described: list[list[object]]) -> str:
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _require_unique(records: Sequence[Record]) -> None:
    # pixels are found by the id: a second one would shift every image after it
    for sample_id, count in Counter(record.sample_id for record in records).items():
        if count > 1:
            raise DataError(
                f"sample '{sample_id}' is listed {count} times", remedy="list every sample once"
            )


def _require_every_class(class_names: Sequence[str], records: Sequence[Record]) -> None:
    if not records:
        raise DataError("no image of the dataset can be read", remedy="repair its files")
    present = {record.target for record in records}
    for target, name in enumerate(class_names):
        if target not in present:
            raise DataError(
                f"class '{name}' has no image that can be read",
                remedy="repair its files, or leave it out with dataset.classes=[...]",
            )

"""Every image and its annotation are decoded, checked and hashed once, into mapped files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medtransfer.cache import array_file, entry
from medtransfer.data import duplicates, facts
from medtransfer.data.base import Annotation, Dataset, Image, Record
from medtransfer.data.foreground import Foreground, load, recorder
from medtransfer.data.letterbox import letterbox
from medtransfer.data.splits import merge_groups, merge_pairs
from medtransfer.errors import DataError

FORMAT = 3  # changes when what is written changes


@dataclass(frozen=True)
class Decoded:
    """A dataset with its pixels.

    Attributes:
        class_names: In the order of the targets, or of the labels.
        records: The samples that could be read; groups of identical images are merged.
        patients: Of each sample, as the dataset names its group.
        images: (n, channels, image_size, image_size) uint8 or uint16, mapped from the cache.
        facts: Of each image as it was read, (n,), of `facts.DTYPE`.
        skipped: Messages about the samples, and the boxes, that were left out.
        contents: Hash of the pixels as they were read, by sample id.
        data_hash: Hash of every sample's id, group, target, labels, pixels and annotation.
        foreground: What masks or boxes mark; None where targets are learned.
    """

    class_names: tuple[str, ...]
    records: tuple[Record, ...]
    patients: tuple[str, ...]
    images: NDArray[np.uint8] | NDArray[np.uint16]
    facts: NDArray[np.void]
    skipped: tuple[str, ...]
    contents: Mapping[str, str]
    data_hash: str
    foreground: Foreground | None = None

    @property
    def images_hash(self) -> str:
        """What `data_hash` is where no mask and no box is learned: pre-training knows it so."""
        return _hash(_described(self.records, self.contents))

    @property
    def sources(self) -> dict[str, int]:
        """How many images were read of each kind, such as `grey 8-bit`."""
        kinds = zip(self.facts["channels"].tolist(), self.facts["bits"].tolist(), strict=True)
        named = Counter(f"{'grey' if c == 1 else 'colour'} {bits}-bit" for c, bits in kinds)
        return dict(named.most_common())


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
    if annotation == "labels":
        class_names = dataset.labels()
    marked = annotation in {"mask", "boxes"}
    names = dataset.foreground() if marked else ()
    _require_unique(records)
    parts = (
        *(FORMAT, type(dataset).__qualname__),
        *(dataset.image_size, dataset.channels, dataset.bits),
    )
    text = f"{parts} {annotation} {names} {dataset.fingerprint(records)}"
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    write = partial(_write, dataset, records, annotation)
    with entry(cache / "decoded", key, write) as folder:
        index = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        images = np.load(folder / "images.npy", mmap_mode="r")
        facts_of = np.load(folder / "facts.npy")[: len(index["hashes"])]
        foreground = load(folder, annotation, names) if marked else None
    if index["skipped"] and dataset.on_error == "raise":
        raise DataError(**index["skipped"][0])

    hashes: dict[str, str] = index["hashes"]
    read = [record for record in records if record.sample_id in hashes]
    _require_every_class(class_names if annotation != "labels" else (), read)
    patients = tuple(r.group_id for r in read)
    contents = [hashes[r.sample_id] for r in read]
    groups = merge_groups(patients, contents)
    if dataset.split.duplicates == "near":
        pairs = near_duplicates(facts_of, contents, images, cache)
        groups = merge_pairs(groups, ((pair.first, pair.second) for pair in pairs))
    learned = annotation == "labels"  # else whoever sees them would take them for the targets
    merged = tuple(
        replace(record, group_id=group, labels=record.labels if learned else ())
        for record, group in zip(read, groups, strict=True)
    )
    described = _described(merged, hashes)
    if foreground is not None:
        described.append([annotation, *names, *foreground.hashes])
    return Decoded(
        class_names=class_names,
        records=merged,
        patients=patients,
        images=images,
        facts=facts_of,
        skipped=tuple(skipped["problem"] for skipped in index["skipped"]),
        contents=hashes,
        data_hash=_hash(described),
        foreground=foreground,
    )


def near_duplicates(
    described: NDArray[np.void],
    contents: Sequence[str],
    images: NDArray[np.uint8] | NDArray[np.uint16],
    cache: Path,
) -> tuple[duplicates.Pair, ...]:
    """Return what `duplicates.find` finds, from the cache where it was looked for before."""
    parts = (duplicates.FORMAT, images.shape[1:], str(images.dtype))
    key = hashlib.sha256(json.dumps([parts, *contents]).encode()).hexdigest()[:32]

    def write(folder: Path) -> None:
        pairs = duplicates.find(described, contents, images)
        (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")

    with entry(cache / "duplicates", key, write) as folder:
        found = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    return tuple(duplicates.Pair(*pair) for pair in found)


def _write(
    dataset: Dataset, records: Sequence[Record], annotation: Annotation, folder: Path
) -> None:
    shape = (len(records), dataset.channels, dataset.image_size, dataset.image_size)
    kind = np.uint8 if dataset.bits == 8 else np.uint16
    hashes: dict[str, str] = {}
    skipped: list[dict[str, str]] = []
    with (
        array_file(folder / "images.npy", shape, kind) as append,
        array_file(folder / "facts.npy", (len(records),), facts.DTYPE) as note,
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
                append(_kept(letterbox(image, dataset.image_size, dataset.channels), kind))
                note(facts.describe(image, dataset.spacing(record)))
                hashes[record.sample_id] = hashlib.sha256(content).hexdigest()[:32]
            skipped += [{"problem": error.problem, "remedy": error.remedy} for error in errors]
    index = json.dumps({"hashes": hashes, "skipped": skipped})
    (folder / "samples.json").write_text(index, encoding="utf-8")


def _kept(image: Image, kind: type[np.unsignedinteger[Any]]) -> Image:
    """Return an image with as many bits as are kept; white stays white."""
    if image.dtype == kind:
        return image
    if kind is np.uint8:
        return (image >> 8).astype(np.uint8)
    return image.astype(np.uint16) * 257


def _described(records: Sequence[Record], contents: Mapping[str, str]) -> list[list[object]]:
    """Return what is hashed of each sample."""
    return [
        [r.sample_id, r.group_id, r.exam_id, r.target, contents[r.sample_id], *r.labels]
        for r in records
    ]


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

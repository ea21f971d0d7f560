"""Features of a frozen backbone, computed once and shared by all that need the same."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from medtransfer import __version__
from medtransfer.backbones.base import Backbone
from medtransfer.backbones.weights import hash_tensors
from medtransfer.cache import array_file, entry
from medtransfer.data import decoded
from medtransfer.data.loading import Batch, Data, numbered
from medtransfer.data.transforms import Transform

FORMAT = 2  # changes when what is stored changes
EMBEDDING = "embedding"
KINDS = {"fp32": np.float32, "bf16": np.int16}  # numpy has no bf16: its bits are kept

Split = Literal["train", "val", "test"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Extractor:
    """A frozen backbone and how features are taken from it.

    Attributes:
        backbone: Set up, its weights loaded; they stay as they are from here on.
        part: Which of its outputs.
        device: Where it computes; it is moved there when there is something to compute.
        precision: `bf16` computes under autocast, as a trial does.
        dtype: How features are kept; bf16 takes half of the space and moves the head's values.
        batch_size: Images at once.
        workers: Processes that load images; 0 loads in this one.
        known: Hash of all parameters and buffers, where it has been computed before.
    """

    backbone: Backbone
    part: Literal["embedding", "pyramid"]
    device: torch.device
    precision: Precision
    dtype: Precision
    batch_size: int
    workers: int
    known: str | None = field(default=None, kw_only=True)

    @cached_property
    def digest(self) -> str:
        """Hash of all parameters and buffers, kept from its first use on."""
        if self.known is not None:
            return self.known
        named = {**dict(self.backbone.named_parameters()), **dict(self.backbone.named_buffers())}
        return hash_tensors(named)

    def __call__(self, images: Tensor) -> dict[str, NDArray[Any]]:
        """Return features of images (N, C, H, W) in [0, 1], by name, as they are kept.

        `embedding` is (N, D), `level00` (N, C, H, W) and so on.
        """
        backbone = self.backbone.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(self.device, memory_format=torch.channels_last)
        bf16 = self.precision == "bf16"
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
            if self.part == "embedding":
                found = {EMBEDDING: backbone.embed(images)}
            else:
                found = {f"level{k:02}": x for k, x in enumerate(backbone.pyramid(images))}
        return {name: _kept(value, self.dtype) for name, value in found.items()}


@dataclass(frozen=True)
class FeatureStore:
    """Where features are kept between trials.

    Attributes:
        folder: The cache.
        max_gb: Its size in 10^9 bytes, beyond which the features that were used least recently are
            removed; None for no bound.
    """

    folder: Path
    max_gb: float | None


@dataclass(frozen=True)
class Features(TorchDataset[Batch]):
    """Features of one split, looked up by the position of a sample among the dataset's records.

    Attributes:
        arrays: (n, views, ...) float32, or int16 for the bits of bf16, by name; mapped from disk
            or in memory.
        rows: For each record its row in the arrays, -1 where it is not in the split.
        data: Where their targets, masks or boxes come from.
        transform: What was done to the images, and is done to their masks or boxes.
    """

    arrays: Mapping[str, NDArray[Any]]
    rows: NDArray[np.int64]
    data: Data
    transform: Transform | None

    @property
    def views(self) -> int:
        """How many views of each sample there are."""
        return int(next(iter(self.arrays.values())).shape[1])

    def in_place_of(self, loader: DataLoader[Batch]) -> DataLoader[Batch]:
        """Return a loader of the same samples in the same batches, with features for images.

        In epoch e a sample is seen in view e modulo `views`. A batch is one read, so that neither
        processes nor collation are needed.

        Args:
            loader: One of `Data`'s, of samples in this split. It lends its sampler, through which
                both get to know the epoch.
        """
        if loader.batch_size is None:
            order: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
        else:
            names = ("batch_size", "sampler", "drop_last")
            order = {name: getattr(loader, name) for name in names}
        # `__getitems__` gives a batch whole
        return DataLoader(self, collate_fn=lambda batch: batch, **order)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """Return one batch, given the epoch and the index of each of its samples."""
        epochs, indices = np.array(keys, dtype=np.int64).T.copy()
        views = epochs % self.views
        found = self.read(indices, views)
        batch: Batch = {
            "target": torch.from_numpy(self.data.targets[indices]),
            "index": torch.from_numpy(indices),
        }
        if self.data.spec.annotation == "exam":
            batch["exam"] = numbered(torch.from_numpy(self.data.exams[indices]))
            batch["view"] = torch.from_numpy(self.data.view_of[indices])
        if self.data.decoded.foreground is not None:
            truth = self.data.truth(indices.tolist(), views.tolist(), self.transform)
            batch = {**batch, **truth}
        if EMBEDDING in found:
            return {**batch, "embedding": found[EMBEDDING]}
        return {**batch, "levels": list(found.values())}

    def read(self, indices: NDArray[np.int64], views: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return the features of samples, float32, by name.

        Args:
            indices: Positions among the records, (N,).
            views: Which view of each, (N,), less than `views`.

        Raises:
            KeyError: If a sample is not in this split.
        """
        rows = self.rows[indices]
        if (rows < 0).any():
            raise KeyError(f"records {indices[rows < 0].tolist()} are not in this split")
        return {name: _float(array[rows, views]) for name, array in self.arrays.items()}

    def table(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return all views of samples at once, for heads that are solved in closed form.

        Args:
            indices: Positions among the records, (m,), such as `Data.train`.

        Returns:
            Embeddings (m * views, D) float32, those of one sample after each other, and targets
            (m * views,) int64.
        """
        each = np.repeat(indices, self.views)
        embeddings = self.read(each, np.tile(np.arange(self.views), len(indices)))[EMBEDDING]
        return embeddings, torch.from_numpy(self.data.targets[each])


def open_features(
    data: Data,
    split: Split,
    extractor: Extractor,
    *,
    transform: Transform | None,
    views: int,
    store: FeatureStore | None,
) -> Features:
    """Return the features of a split; they are computed where they are not in the store.

    Those of training images are of the whole training division, whatever subset of it a trial sees,
    so that fractions, shots and seeds share them. The splits are apart: nothing of a test image is
    computed before its features are opened.

    Args:
        data: Where images come from.
        split: Which of them.
        extractor: What makes features of them.
        transform: What is done to training images; others are taken as they are.
        views: How many views of each training image there are, if the transform is random.
        store: Where features are kept; None keeps them in memory.

    Raises:
        StoreError: If the store cannot be written.
    """
    images = _Images(data, split, transform, views)
    if store is None:
        arrays = _in_memory(images, extractor)
    else:
        write = partial(_write, images, extractor)
        with entry(store.folder, images.key(extractor), write, max_gb=store.max_gb) as folder:
            arrays = {
                path.stem: np.asarray(np.load(path, mmap_mode="r"))
                for path in sorted(folder.glob("*.npy"))
            }
    rows = np.full(len(data.decoded.records), -1)
    rows[images.indices] = np.arange(len(images.indices))
    return Features(arrays, rows, data, images.transform)


def size_estimate(
    data: Data, split: Split, extractor: Extractor, *, transform: Transform | None, views: int
) -> int:
    """Return how many bytes `open_features` would take, from the output for one image."""
    images = _Images(data, split, transform, views)
    values = sum(math.prod(shape) for shape in images.shapes(extractor).values())
    return values * np.dtype(KINDS[extractor.dtype]).itemsize


class _Images:
    """The images of a split, each in all its views."""

    def __init__(self, data: Data, split: Split, transform: Transform | None, views: int) -> None:
        self.data = data
        self.indices: NDArray[np.int64] = getattr(data.division, split)
        random = split == "train" and transform is not None and transform.random
        self.transform = transform if random else None
        self.views = views if random else 1

    def shapes(self, extractor: Extractor) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the features by name; a pyramid's from the output for one image."""
        spec, rows = self.data.spec, (len(self.indices), self.views)
        if extractor.part == EMBEDDING:
            return {EMBEDDING: (*rows, extractor.backbone.embedding_size)}
        image = torch.zeros(1, spec.channels, spec.image_size, spec.image_size)
        return {name: (*rows, *values.shape[1:]) for name, values in extractor(image).items()}

    def key(self, extractor: Extractor) -> str:
        """Return a hash of all that the features depend on, and of nothing else."""
        backbone, spec = extractor.backbone, self.data.spec
        versions = [__version__, torch.__version__, torchvision.__version__, timm.__version__]
        network = [
            *(type(backbone).__qualname__, backbone.name, _code(backbone), repr(backbone)),
            *(backbone.embedding_size, backbone.channels, backbone.strides, extractor.digest),
        ]
        computed = [extractor.part, extractor.precision, extractor.dtype, extractor.device.type]
        records = [self.data.decoded.records[i] for i in self.indices]
        contents = [self.data.decoded.contents[record.sample_id] for record in records]
        pixels = [decoded.FORMAT, spec.image_size, spec.channels, contents]
        seen: list[object] = []
        if self.transform is not None:  # views are drawn by the position of the sample
            seen = [repr(self.transform), _code(self.transform), self.views, self.indices.tolist()]
        text = json.dumps([FORMAT, versions, network, computed, pixels, seen])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _stream(images: _Images, extractor: Extractor) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the features of each batch, by name, in the order of the rows."""
    size, workers = extractor.batch_size, extractor.workers
    for batch in images.data.views(
        images.indices, images.transform, count=images.views, batch_size=size, workers=workers
    ):
        yield from extractor(batch["image"]).items()


def _write(images: _Images, extractor: Extractor, folder: Path) -> None:
    with ExitStack() as files:
        append = {
            name: files.enter_context(
                array_file(folder / f"{name}.npy", shape, KINDS[extractor.dtype])
            )
            for name, shape in images.shapes(extractor).items()
        }
        for name, values in _stream(images, extractor):
            append[name](values)


def _in_memory(images: _Images, extractor: Extractor) -> dict[str, NDArray[Any]]:
    parts: dict[str, list[NDArray[Any]]] = defaultdict(list)
    for name, values in _stream(images, extractor):
        parts[name].append(values)
    shape = (len(images.indices), images.views)
    # one after the other, so that no more than one feature lies in memory twice
    return {
        name: (whole := np.concatenate(parts.pop(name))).reshape(*shape, *whole.shape[1:])
        for name in list(parts)
    }


def _kept(value: Tensor, dtype: Precision) -> NDArray[Any]:
    if dtype == "fp32":
        return value.float().contiguous().cpu().numpy()
    return value.to(torch.bfloat16).contiguous().cpu().view(torch.int16).numpy()


def _float(values: NDArray[Any]) -> Tensor:
    tensor = torch.from_numpy(values)
    return tensor if tensor.dtype == torch.float32 else tensor.view(torch.bfloat16).float()


def _code(part: object) -> str:
    """Return a hash of the file that defines an object's class: its author may edit it."""
    return hashlib.sha256(Path(inspect.getfile(type(part))).read_bytes()).hexdigest()

"""A trained model judges images that it has never seen: tables, masks and pictures of what it says.

Images go the way that those of the trial went: the same reading, letterbox, normalisation and
precision. Masks and boxes come back in the pixels of the images as they were given.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from PIL import Image as PILImage

from medtransfer import __version__
from medtransfer.data.annotations import Fit
from medtransfer.data.base import Boxes, DataSpec
from medtransfer.data.decoded import Decoded, decode
from medtransfer.data.loading import Data
from medtransfer.data.reading.base import Reading
from medtransfer.data.seal import Seal
from medtransfer.data.splits import Division, Split
from medtransfer.data.unlabelled import Unlabelled
from medtransfer.deploy.folders import new_folder
from medtransfer.deploy.trained import Trained
from medtransfer.drawing import draw_panel
from medtransfer.errors import DataError
from medtransfer.feed import device_of
from medtransfer.tasks.examples import Panel
from medtransfer.tasks.judgement import Judgement

SCHEMA = 1
SIDE = 640  # pixels of an overlay, which shows the square that the network has seen
CORNERS = ("x0", "y0", "x1", "y1")


@dataclass
class Written:
    """What was written of the cases, by the names of the files."""

    cases: int = 0
    skipped: tuple[str, ...] = ()
    files: list[str] = field(default_factory=list)


def open_images(
    trained: Trained, paths: Sequence[Path], cache: Path, *, skip: bool = False
) -> Data:
    """Return images as the trial would have seen them, all in one split that is open.

    Args:
        trained: Says how images are read.
        paths: Files and folders.
        cache: Where they are decoded to.
        skip: Whether those that cannot be read are left out, instead of ending it all.

    Raises:
        DataError: If there is none, or one cannot be read.
    """
    spec, known = trained.spec, trained.config.dataset
    root, relative = _root_of(paths)
    dataset = Unlabelled(
        root=root,
        paths=relative,
        image_size=spec.image_size,
        channels=known["channels"],
        bits=known.get("bits", 8),
        reading=Reading(**known.get("reading", {})),
        fraction=1.0,
        shots=None,
        on_error="skip" if skip else "raise",
        split=Split(kind="holdout", seed=0, file=None, ratios=(0.6, 0.15, 0.25)),  # not used
        labels_known=len(spec.class_names) if spec.annotation == "labels" else 0,
        views=spec.views,
    )
    annotation = spec.annotation if spec.annotation in {"exam", "labels"} else "class"
    decoded = decode(dataset, cache, annotation)
    return _all_open(decoded, spec, dataset.identity)


def _all_open(decoded: Decoded, spec: DataSpec, identity: str) -> Data:
    nothing, everything = np.empty(0, np.int64), np.arange(len(decoded.records))
    seal = Seal(everything, len(everything), allowed=True)
    seal.open()
    return Data(
        decoded=decoded,
        division=Division(nothing, nothing, everything, decoded.data_hash),
        train=nothing,
        spec=replace(spec, data_hash=decoded.data_hash, split_hash=decoded.data_hash),
        seed=0,
        identity=identity,
        seal=seal,
    )


@torch.no_grad()
def judge(trained: Trained, data: Data) -> Iterator[Judgement]:
    """Yield what the model says of each case, in order."""
    device = device_of(trained.settings)
    bf16 = trained.settings.precision.value == "bf16"
    for batch in data.loader("test", batch_size=trained.config.trainer.batch_size):
        moved = move_data_to_device(batch, device)
        moved["image"] = moved["image"].to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found = trained.model.judge(moved)
        yield from found


def predict(trained: Trained, paths: Sequence[Path], out: Path, *, skip: bool = False) -> Written:
    """Judge images and write what is said of them into a folder.

    `predictions.csv` has a row for each image, or each exam; `predictions.json` the same with what
    the model is. Of detection there is `detections.csv` besides, a row for each box, of exams
    `images.csv`, of segmentation `masks/`, and of both kinds of places `overlays/`.

    Args:
        trained: The model.
        paths: Files and folders.
        out: The folder; it is made, and must be empty if it is there.
        skip: Whether images that cannot be read are left out.

    Raises:
        DataError: If an image cannot be read.
        StoreError: If the folder is not empty or cannot be written.
    """
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        sink = _Sink(trained, open_images(trained, paths, Path(scratch), skip=skip), folder)
        for judgement in judge(trained, sink.data):
            sink.take(judgement)
        return sink.close()


class _Sink:
    """Writes what is said, case by case."""

    def __init__(self, trained: Trained, data: Data, folder: Path) -> None:
        self.trained, self.data, self.folder = trained, data, folder
        self.cases: list[dict[str, Any]] = []
        self.names: set[str] = set()

    def take(self, found: Judgement) -> None:
        records, facts = self.data.decoded.records, self.data.decoded.facts
        record = records[found.index]
        exam = bool(found.weights)
        case: dict[str, Any] = {"sample_id": record.exam_id if exam else record.sample_id}
        case |= found.values
        height, width = int(facts["height"][found.index]), int(facts["width"][found.index])
        fit = Fit.of(height, width, self.data.spec.image_size)
        if exam:
            case["images"] = [
                {"sample_id": records[i].sample_id, "view": records[i].view, "weight": weight}
                for i, weight in found.weights.items()
            ]
        if found.mask is not None:
            mask = fit.mask_back(found.mask, height, width)
            for k, name in enumerate(self.data.spec.class_names):
                case[f"pixels_{name}"] = int((mask == k + 1).sum())
            case["mask"] = self._picture("masks", record.sample_id, PILImage.fromarray(mask))
        if found.boxes is not None and found.scores is not None:
            case["boxes"] = self._boxes(fit.boxes_back(found.boxes, height, width), found.scores)
        if found.mask is not None or found.boxes is not None:
            panel = Panel(mask=found.mask, boxes=found.boxes, scores=found.scores)
            overlay = draw_panel(panel, self.data.decoded.images[found.index], SIDE)
            case["overlay"] = self._picture("overlays", record.sample_id, overlay)
        self.cases.append(case)

    def close(self) -> Written:
        """Write the tables and return what there is."""
        flat = [
            {k: v for k, v in case.items() if k not in {"images", "boxes"}} for case in self.cases
        ]
        self._table("predictions.csv", flat)
        if self.data.spec.annotation == "exam":
            rows = [
                {"exam_id": c["sample_id"], **image} for c in self.cases for image in c["images"]
            ]
            self._table("images.csv", rows)
        if self.data.spec.annotation == "boxes":
            rows = [{"sample_id": c["sample_id"], **box} for c in self.cases for box in c["boxes"]]
            columns = ("sample_id", "class", "score", *CORNERS)
            self._table("detections.csv", rows, columns)
        skipped = self.data.decoded.skipped
        told = {**describe(self.trained), "skipped": skipped, "cases": self.cases}
        text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
        (self.folder / "predictions.json").write_text(text, encoding="utf-8")
        return Written(len(self.cases), skipped, sorted(p.name for p in self.folder.iterdir()))

    def _boxes(self, boxes: Boxes, scores: Any) -> list[dict[str, Any]]:
        names = self.data.spec.class_names
        return [
            {
                "class": names[int(label)],
                "score": float(score),
                **{key: float(side) for key, side in zip(CORNERS, box, strict=True)},
            }
            for box, label, score in zip(boxes.boxes, boxes.labels, scores, strict=True)
        ]

    def _picture(self, kind: str, sample_id: str, picture: PILImage.Image) -> str:
        """Write a picture and return its path; no two samples share one."""
        (self.folder / kind).mkdir(exist_ok=True)
        name = re.sub(r"[^\w.-]+", "_", sample_id).strip("._") or "image"
        unique, number = name, 1
        while f"{kind}/{unique}" in self.names:
            number += 1
            unique = f"{name}-{number}"
        self.names.add(f"{kind}/{unique}")
        picture.save(self.folder / kind / f"{unique}.png")
        return f"{kind}/{unique}.png"

    def _table(
        self, name: str, rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()
    ) -> None:
        with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns or list(rows[0]))
            writer.writeheader()
            writer.writerows({k: _rounded(v) for k, v in row.items()} for row in rows)


def describe(trained: Trained) -> dict[str, Any]:
    """Return what a model is, in plain values."""
    model, spec = trained.model, trained.spec
    told = {
        "schema_version": SCHEMA,
        "run_id": trained.run_id,
        "run": trained.name,
        "task": trained.task,
        "class_names": list(spec.class_names),
        "image_size": spec.image_size,
        "channels": spec.channels,
        "weights": trained.provenance.source,
        "precision": trained.settings.precision.value,
        "version": __version__,
    }
    threshold = dict(model.named_buffers(recurse=False)).get("threshold")
    two = spec.annotation == "boxes" or len(spec.class_names) == 2
    return told | ({"threshold": float(threshold)} if threshold is not None and two else {})


def _rounded(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _root_of(paths: Sequence[Path]) -> tuple[Path, tuple[Path, ...]]:
    """Return the folder that ids of images are told from, and the paths from there.

    That is the working directory where all lie below it, else the folder that they share.
    """
    for path in paths:
        if not path.exists():
            raise DataError(f"there is no file or folder '{path}'")
    absolute = [path.resolve() for path in paths]
    root = Path.cwd().resolve()
    if not all(path.is_relative_to(root) for path in absolute):
        folders = [path if path.is_dir() else path.parent for path in absolute]
        root = Path(os.path.commonpath(folders))
    return root, tuple(path.relative_to(root) for path in absolute)

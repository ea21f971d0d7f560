"""What both sides of a comparison are given: images, their division, and weights."""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}
COLUMNS = ("image", "label", "split")


class Image(NamedTuple):
    """A file below the root, its class, and the split that it lies in."""

    image: str
    label: str
    split: str


def images(root: Path, count: int | None = None) -> list[Image]:
    """Divide a folder with one sub-folder for each class, each class in the same shares.

    Of files that are equal to the bit one is taken, so that no split holds a copy of another's.

    Args:
        root: The folder.
        count: About how many to take; None takes all.

    Raises:
        SystemExit: If there is no such folder.
    """
    if not root.is_dir():
        raise SystemExit(f"there is no folder {root}: set MEDTRANSFER_DATA")
    files = sorted(path for path in root.glob("*/*") if path.is_file())
    alone = {hashlib.sha256(path.read_bytes()).digest(): path for path in reversed(files)}
    taken = []
    for label in sorted({path.parent.name for path in files}):
        mine = sorted(path for path in alone.values() if path.parent.name == label)
        random.Random(0).shuffle(mine)
        mine = mine[: None if count is None else max(7, count * len(mine) // len(alone))]
        train, val = (round(SHARES[name] * len(mine)) for name in ("train", "val"))
        for i, path in enumerate(mine):
            split = "train" if i < train else "val" if i < train + val else "test"
            taken.append(Image(str(path.relative_to(root)), label, split))
    return taken


def write_table(path: Path, rows: Sequence[Image]) -> Path:
    """Write the division as a table with columns `image`, `label` and `split`."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    return path


def read_table(path: str | Path, split: str) -> list[Image]:
    """Return the rows of one split."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = [Image(**row) for row in csv.DictReader(file)]
    return [row for row in rows if row.split == split]


def lay_out(folder: Path, root: Path, rows: Sequence[Image]) -> Path:
    """Lay links to the files out as SPLIT/CLASS/FILE, `val` under the name `validation`."""
    for row in rows:
        split = "validation" if row.split == "val" else row.split
        target = folder / split / row.label / Path(row.image).name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(root.resolve() / row.image)
    return folder


def manifest(root: Path, table: Path, size: int) -> list[str]:
    """Return what tells medtransfer to take that division.

    It is drawn without regard to images that look alike, which medtransfer finds and refuses.
    """
    return [
        *("dataset=csv_manifest", f"dataset.root={root}", f"dataset.file={table}"),
        *("dataset.split.kind=own", "dataset.split_column=split"),
        *("audit.waive=[near_duplicates]", f"dataset.image_size={size}"),
    ]


def write_weights(path: Path, name: str, root: Path, rows: Sequence[Image], size: int) -> Path:
    """Write a network of timm's without its classifier, its values drawn at random.

    Its layers of batch normalisation learn their statistics from 64 of the training images, since
    what they leave as it is hardly differs from image to image.
    """
    import PIL.Image
    import timm
    import torch
    from safetensors.torch import save_file
    from torchvision.transforms.functional import normalize, to_tensor

    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=0)
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    batch = []
    for row in [row for row in rows if row.split == "train"][::4][:64]:
        picture = PIL.Image.open(root / row.image).convert("RGB").resize((size, size))
        batch.append(normalize(to_tensor(picture), mean, std))
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.stack(batch))
    save_file(model.state_dict(), path)
    return path

"""Small folders of images with masks or boxes, as files hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

Row = tuple[float, float, float, float, str]
"""x0, y0, x1, y1 in pixels, end exclusive, and the name of the class."""

SQUARE: Row = (2, 3, 8, 9, "cell")


def noise(path: Path, seed: int, height: int = 12, width: int = 16) -> None:
    """Write an image like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    PILImage.fromarray(pixels).save(path)


def write_masks(root: Path, count: int) -> Path:
    """Write `images` and `masks`: a rectangle of 255 on 0, another in each."""
    for i in range(count):
        noise(root / "images" / f"{i}.png", i)
        mask = np.zeros((12, 16), np.uint8)
        mask[3:9, 2 : 5 + i % 8] = 255
        save_mask(root, i, mask)
    return root


def save_mask(root: Path, name: object, mask: np.ndarray) -> Path:
    """Write one mask."""
    path = root / "masks" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    PILImage.fromarray(mask).save(path)
    return path


def voc_xml(rows: Sequence[Row], size: tuple[int, int] = (12, 16)) -> str:
    """Return an annotation in which pixels are counted from one."""
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0 + 1:g}</xmin><ymin>{y0 + 1:g}</ymin>"
        f"<xmax>{x1:g}</xmax><ymax>{y1:g}</ymax></bndbox></object>"
        for x0, y0, x1, y1, name in rows
    )
    height, width = size
    shape = f"<size><width>{width}</width><height>{height}</height><depth>1</depth></size>"
    return f"<annotation>{shape}{objects}</annotation>"


def write_voc(root: Path, images: Sequence[Sequence[Row]]) -> Path:
    """Write images `i0`, `i1` ... with their boxes, listed in train, val and test by turns."""
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for i, rows in enumerate(images):
        noise(root / "JPEGImages" / f"i{i}.png", i)
        (root / "Annotations" / f"i{i}.xml").write_text(voc_xml(rows))
    for k, name in enumerate(("train", "val", "test")):
        lines = "".join(f"i{i}\n" for i in range(k, len(images), 3))
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(lines)
    return root


def coco_content(images: Sequence[Sequence[Row]], names: Sequence[str]) -> dict[str, list[dict]]:
    """Return the instances of images `i0.png`, `i1.png` ...; categories have the ids 10, 20 ..."""
    numbers = {name: 10 * (k + 1) for k, name in enumerate(names)}
    boxes = [(i, row) for i, rows in enumerate(images) for row in rows]
    return {
        "images": [
            {"id": 100 + i, "file_name": f"i{i}.png", "height": 12, "width": 16}
            for i in range(len(images))
        ],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": [
            {
                "id": k,
                "image_id": 100 + i,
                "category_id": numbers[name],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
            for k, (i, (x0, y0, x1, y1, name)) in enumerate(boxes)
        ],
    }


def write_coco(root: Path, images: Sequence[Sequence[Row]], names: Sequence[str]) -> Path:
    """Write `images` and `annotations.json`."""
    for i in range(len(images)):
        noise(root / "images" / f"i{i}.png", i)
    (root / "annotations.json").write_text(json.dumps(coco_content(images, names)))
    return root

"""Images as they are decoded, and copies of them as they come about in hospitals and downloads."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image as PILImage

from medtransfer.data.facts import describe
from medtransfer.data.letterbox import letterbox
from medtransfer.data.scenes import render_exam

Picture = np.ndarray


@lru_cache
def phantoms(patients: int, size: int, views: int = 1) -> tuple[Picture, ...]:
    """Return images of patients, those of one after another."""
    return tuple(
        scene.image
        for patient in range(patients)
        for scene in render_exam(0, patient, patient % 3, images=views, size=size, difficulty=0.5)
    )


def small_images(folder: str, count: int, size: int) -> list[Picture]:
    """Return every k-th image below a folder, grey, so many of them."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix in {".png", ".jpg"})
    pictures = []
    for path in paths[:: max(1, len(paths) // count)][:count]:
        with PILImage.open(path) as picture:
            pictures.append(np.asarray(picture.convert("L").resize((size, size))))
    return pictures


def decoded(images: Sequence[Picture], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return their facts, and the images as they are decoded to this size."""
    facts = np.stack([describe(image, None) for image in images])
    return facts, np.stack([letterbox(image, size, 1) for image in images])


def jpeg(image: Picture, quality: int) -> Picture:
    """Return an image that was once saved as JPEG."""
    buffer = io.BytesIO()
    PILImage.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality)
    return np.asarray(PILImage.open(buffer))


def resized(image: Picture, scale: float) -> Picture:
    """Return an image of other height and width."""
    height, width = (round(side * scale) for side in image.shape)
    picture = PILImage.fromarray(image).resize((width, height), PILImage.Resampling.BICUBIC)
    return np.asarray(picture)


def brightened(image: Picture, gain: float, offset: float) -> Picture:
    """Return an image of other contrast and brightness, cut off at black and white."""
    return np.clip(image * float(gain) + offset, 0, 255).round().astype(np.uint8)


def gamma(image: Picture, power: float) -> Picture:
    """Return an image shown with another gamma."""
    return (255 * (image / 255) ** power).round().astype(np.uint8)


def cropped(image: Picture, rng: Generator, most: float = 0.1) -> Picture:
    """Return an image without up to a part of it on each side."""
    height, width = image.shape
    top, bottom = (int(part * height) for part in rng.uniform(0, most, 2))
    left, right = (int(part * width) for part in rng.uniform(0, most, 2))
    return image[top : height - bottom, left : width - right]


CHANGES: dict[str, Callable[[Picture, Generator], Picture]] = {
    "jpeg 90": lambda image, _: jpeg(image, 90),
    "jpeg 50": lambda image, _: jpeg(image, 50),
    "half the size": lambda image, _: resized(image, 0.5),
    "larger": lambda image, _: resized(image, 1.5),
    "brighter": lambda image, _: brightened(image, 1, 40),
    "darker": lambda image, _: brightened(image, 1, -40),
    "contrast": lambda image, rng: brightened(image, rng.uniform(0.6, 1.4), rng.uniform(-20, 20)),
    "gamma": lambda image, rng: gamma(image, rng.choice([0.6, 1.6])),
    "mirrored": lambda image, _: image[:, ::-1],
    "upside down": lambda image, _: image[::-1],
    "turned by 90": lambda image, _: np.rot90(image),
    "turned by 180": lambda image, _: np.rot90(image, 2),
    "turned by 270": lambda image, _: np.rot90(image, 3),
    "cropped": cropped,
    "cropped all round": lambda image, _: image[6:-6, 6:-6],
    "cropped, mirrored, jpeg": lambda image, rng: jpeg(cropped(image, rng)[:, ::-1], 70),
}

"""Images in one sub-folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from medtransfer.data.base import Dataset, Image, Record
from medtransfer.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Dataset):
    """`root/<class>/**/<image>`; every image is a group of its own.

    Attributes:
        root: The folder with the class folders.
        classes: Their names in order, the last one positive; None takes all, alphabetically.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"class"})

    root: Path
    classes: tuple[str, ...] | None

    @property
    def identity(self) -> str:
        """See `Dataset.identity`: the folder."""
        return str(self.root.resolve())

    def records(self) -> tuple[tuple[str, ...], Sequence[Record]]:
        """See `Dataset.records`; hidden files and folders are passed over."""
        if not self.root.is_dir():
            raise DataError(
                f"folder '{self.root}' does not exist",
                remedy="set MEDTRANSFER_DATA or paths.data to where the data lie, or dataset.root"
                " to the folder itself",
            )
        found = sorted(p.name for p in self.root.iterdir() if p.is_dir() and p.name[0] != ".")
        names = self.classes or tuple(found)
        for name in names:
            if name not in found:
                raise DataError(
                    f"class folder '{name}' is not in '{self.root}'", value=name, choices=found
                )
        if len(names) < 2:
            raise DataError(
                f"'{self.root}' has {len(names)} class folders, and a comparison needs two",
                remedy="put the images of each class into a sub-folder named after it",
            )
        records = []
        for target, name in enumerate(names):
            files = sorted(
                p
                for p in (self.root / name).rglob("*")
                if p.is_file()
                and not any(part[0] == "." for part in p.relative_to(self.root).parts)
            )
            if not files:
                raise DataError(
                    f"class folder '{self.root / name}' is empty",
                    remedy="add images, or name the other classes with dataset.classes=[...]",
                )
            for file in files:
                sample_id = file.relative_to(self.root).as_posix()
                records.append(Record(sample_id, sample_id, sample_id, target))
        return names, records

    def read(self, record: Record) -> Image:
        """See `Dataset.read`."""
        return read_image(self.root / record.sample_id)

    def fingerprint(self, records: Sequence[Record]) -> str:
        """Return path, size and time of change of every file."""
        stats = ((r.sample_id, (self.root / r.sample_id).stat()) for r in records)
        lines = (f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
        return "\n".join([str(self.root.resolve()), *lines])


def read_image(path: Path) -> Image:
    """Decode one file to (H, W) grey or (H, W, 3) colour.

    Grey values of 16 bits lose their lower eight.

    Raises:
        DataError: If the file is no image, is truncated, is a decompression bomb, or has grey
            values without a known range.
    """
    remedy = "repair or remove the file, or leave such files out with dataset.on_error=skip"
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"'{path}' is not an image file", remedy=remedy)
    try:
        with PILImage.open(path) as image:
            # Pillow would cut these off at 255 instead of scaling them
            if image.mode.startswith("I;16"):
                return (np.asarray(image) >> 8).astype(np.uint8)
            if image.mode in {"I", "F"}:
                raise DataError(
                    f"image '{path}' has 32 bits for each pixel, and their range is unknown",
                    remedy="convert it to 8 or 16 bits, or leave such files out with"
                    " dataset.on_error=skip",
                )
            return np.asarray(image.convert("L" if image.mode in {"L", "1", "LA"} else "RGB"))
    except UnidentifiedImageError:
        raise DataError(
            f"'{path}' is not an image, whatever its name says", remedy=remedy
        ) from None
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError) as error:
        raise DataError(f"image '{path}' cannot be decoded: {error}", remedy=remedy) from None

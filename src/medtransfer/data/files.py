"""What datasets share that read files below one folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from medtransfer.data.base import Dataset, Image, Record
from medtransfer.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, kw_only=True)
class FileDataset(Dataset):
    """Images below a folder; a sample's id is its path from there.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def identity(self) -> str:
        """See `Dataset.identity`: the folder."""
        return str(self.root.resolve())

    def read(self, record: Record) -> Image:
        """See `Dataset.read`."""
        return read_image(self.root / record.sample_id)

    def files(self, record: Record) -> tuple[Path, ...]:
        """Return the files behind one sample."""
        return (self.root / record.sample_id,)

    def fingerprint(self, records: Sequence[Record]) -> str:
        """Return path, size and time of change of every file."""
        lines = [str(self.root.resolve())]
        for record in records:
            for file in self.files(record):
                try:
                    stat = file.stat()
                except OSError:  # reading it will tell
                    lines.append(f"{file.relative_to(self.root).as_posix()} -")
                else:
                    name = file.relative_to(self.root).as_posix()
                    lines.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
        return "\n".join(lines)

    def require_root(self) -> None:
        """Refuse a root that is no folder.

        Raises:
            DataError: If it is none.
        """
        if not self.root.is_dir():
            raise DataError(
                f"folder '{self.root}' does not exist",
                remedy="set MEDTRANSFER_DATA or paths.data to where the data lie, or dataset.root"
                " to the folder itself",
            )

    def inside(self, name: str, key: str, *, folder: bool = True) -> Path:
        """Return the folder or file of a name below the root.

        Args:
            name: Its path from the root.
            key: The key that names it, for messages.
            folder: Whether it is one; else it is a file.

        Raises:
            DataError: If the name leads out of the root, or there is nothing.
        """
        self.require_root()
        require_inside(name, f"dataset.{key}")
        path = self.root / name
        if not (path.is_dir() if folder else path.is_file()):
            there = sorted(p.name for p in self.root.iterdir() if p.is_dir() == folder)
            kind = "sub-folder" if folder else "file"
            raise DataError(
                f"{kind} '{name}' is not in '{self.root}'",
                value=name,
                choices=[found for found in there if found[0] != "."],
                remedy=f"name it in dataset.{key}",
            )
        return path


def require_inside(name: str, where: str) -> None:
    """Refuse a path that could lead out of the folder that it is to be below.

    Raises:
        DataError: If it is absolute or climbs.
    """
    parts = PurePath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise DataError(
            f"'{name}' in {where} leads out of the dataset's folder",
            remedy="name files below dataset.root, without '..'",
        )


def visible_files(folder: Path) -> list[Path]:
    """Return the files at any depth below a folder, sorted, without the hidden ones."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(parent, name) for name in files if name[0] != "."]
    return sorted(path for path in found if path.is_file())


def group_of(pattern: re.Pattern[str] | None, sample_id: str) -> str:
    """Return the patient that a file's name tells; without a pattern each image is its own.

    Args:
        pattern: Found in the file's name; its first group, or else all of it, is the patient.
        sample_id: Path of the file.

    Raises:
        DataError: If the name does not tell.
    """
    if pattern is None:
        return sample_id
    name = PurePath(sample_id).name
    match = pattern.search(name)
    found = match and (match[1] if pattern.groups else match[0])
    if not found:
        raise DataError(
            f"the name of image '{sample_id}' tells no patient by the pattern '{pattern.pattern}'",
            remedy="mend dataset.group so that it fits every image, or the name",
        )
    return found


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
    except FileNotFoundError:
        raise DataError(f"image '{path}' does not exist", remedy=remedy) from None
    except UnidentifiedImageError:
        raise DataError(
            f"'{path}' is not an image, whatever its name says", remedy=remedy
        ) from None
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError) as error:
        raise DataError(f"image '{path}' cannot be decoded: {error}", remedy=remedy) from None

"""Images that somebody wants to be judged: files of which nobody says what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medtransfer.data.base import UNKNOWN
from medtransfer.data.files import visible_files
from medtransfer.data.listing import ListedDataset, Listing, Origin
from medtransfer.data.reading import base as reader
from medtransfer.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Unlabelled(ListedDataset):
    """Files, and all images at any depth below folders, under their paths as they were given.

    An image is of the exam that its DICOM header names; else those of a folder are one exam. Its
    view is what the header says, or else its name, where that is one of `views`.

    Attributes:
        paths: Of the files and folders, from the root.
        labels_known: How many labels an image has, all unknown.
        views: Names that views have.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"class", "labels", "exam"})

    paths: tuple[Path, ...]
    labels_known: int = 0
    views: tuple[str, ...] = ()

    def labels(self) -> tuple[str, ...]:
        """See `Dataset.labels`; numbers stand for their names."""
        return tuple(map(str, range(self.labels_known)))

    def _listed(self) -> Listing:
        """See `ListedDataset`; of a folder only what is an image by its name or its content."""
        listing = Listing(("image",))
        by_view = {name.lower(): name for name in self.views}
        for file in self._files():
            name = file.relative_to(self.root).as_posix()
            header = reader.identity(file)
            stem = Path(reader.stem_of(file)).name
            origin = Origin(
                name=name,
                exam="" if header is not None and header.exam else Path(name).parent.as_posix(),
                view=by_view.get(stem.lower(), ""),
            )
            self._add(listing, origin, 0, (UNKNOWN,) * self.labels_known)
        return listing

    def _files(self) -> Sequence[Path]:
        found: dict[Path, None] = {}
        for given in self.paths:
            path = self.root / given
            if path.is_dir():
                below = [file for file in visible_files(path) if _is_image(file)]
                if not below:
                    raise DataError(f"folder '{path}' holds no image")
                found |= dict.fromkeys(below)
            else:
                reader.require_file(path)
                found[path] = None
        return list(found)


def _is_image(file: Path) -> bool:
    if reader.suffix_of(file) in reader.SUFFIXES:
        return True
    try:
        return reader.identity(file) is not None
    except DataError:
        return False

"""Images in one sub-folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from medtransfer.data.base import Record
from medtransfer.data.files import FileDataset, visible_files
from medtransfer.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ImageFolder(FileDataset):
    """`root/<class>/**/<image>`; every image is a group of its own.

    Attributes:
        classes: Their names in order, the last one positive; None takes all, alphabetically.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"class"})

    classes: tuple[str, ...] | None

    def records(self) -> tuple[tuple[str, ...], Sequence[Record]]:
        """See `Dataset.records`; hidden files and folders are passed over."""
        self.require_root()
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
            files = visible_files(self.root / name)
            if not files:
                raise DataError(
                    f"class folder '{self.root / name}' is empty",
                    remedy="add images, or name the other classes with dataset.classes=[...]",
                )
            for file in files:
                sample_id = file.relative_to(self.root).as_posix()
                records.append(Record(sample_id, sample_id, sample_id, target))
        return names, records

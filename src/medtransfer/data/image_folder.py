"""Images in one sub-folder for each class."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from medtransfer.data.files import visible_files
from medtransfer.data.listing import ListedDataset, Listing, Origin
from medtransfer.errors import DataError


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ListedDataset):
    """`root/<class>/**/<image>`.

    Attributes:
        classes: Their names in order, the last one positive; None takes all, alphabetically.
        group: Found in the path below the class folder; its first group, or else all of it, is the
            patient. None takes the patient of a DICOM header, or else the exam.
        exam: Likewise; None takes the exam of a DICOM header, or else the file.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"class", "exam"})

    classes: tuple[str, ...] | None
    group: re.Pattern[str] | None = None
    exam: re.Pattern[str] | None = None

    def _listed(self) -> Listing:
        """See `ListedDataset`; hidden files and folders are passed over."""
        found = sorted(p.name for p in self.root.iterdir() if p.is_dir() and p.name[0] != ".")
        names = self.classes or tuple(found)
        for name in names:
            if name not in found:
                raise DataError(
                    f"class folder '{name}' is not in '{self.root}'",
                    value=name,
                    choices=found,
                    remedy="name sub-folders in dataset.classes",
                )
        if len(names) < 2:
            raise DataError(
                f"'{self.root}' has {len(names)} class folders, and a comparison needs two",
                remedy="put the images of each class into a sub-folder named after it",
            )
        listing = Listing(names)
        for target, name in enumerate(names):
            files = visible_files(self.root / name)
            if not files:
                raise DataError(
                    f"class folder '{self.root / name}' is empty",
                    remedy="add images, or name the other classes with dataset.classes=[...]",
                )
            for file in files:
                self._add(listing, self._origin(file, name), target)
        return listing

    def _origin(self, file: Path, folder: str) -> Origin:
        name = file.relative_to(self.root).as_posix()
        start = len(folder) + 1
        patient = _span(self.group, name, start, "group")
        exam = _span(self.exam, name, start, "exam")
        return Origin(
            name=name, patient=name[slice(*patient)], exam=name[slice(*exam)], spans=(patient, exam)
        )


def _span(pattern: re.Pattern[str] | None, name: str, start: int, key: str) -> tuple[int, int]:
    """Return where a pattern finds something in a path from `start` on; (0, 0) without a pattern.

    Raises:
        DataError: If it finds nothing.
    """
    if pattern is None:
        return 0, 0
    match = pattern.search(name[start:])
    first, last = match.span(min(pattern.groups, 1)) if match else (0, 0)
    if first >= last:
        raise DataError(
            f"the path of image '{name}' tells no {key} by the pattern '{pattern.pattern}'",
            remedy=f"mend dataset.{key} so that it fits every image, or the path",
        )
    return start + first, start + last

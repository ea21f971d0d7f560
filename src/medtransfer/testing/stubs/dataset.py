"""A dataset of your own: images below a folder, with a table that says what they show.

    ROOT/labels.csv     image,label,patient
                        scans/0001.png,benign,p17
    ROOT/scans/0001.png

It works as it is: PNG, JPEG, TIFF, DICOM and NIfTI are read, volumes slice by slice. What to change
is marked by `change:`. Splits by patient, subsets, caching and hashing are the same for all
datasets, and need nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import ClassVar

from medtransfer.data.base import Record
from medtransfer.data.files import FileDataset, require_inside
from medtransfer.data.labels import read_classes
from medtransfer.data.tables import read_table


@dataclass(frozen=True, kw_only=True)
class MyDataset(FileDataset):
    """Images below a folder, and a table with the class and the patient of each.

    Attributes:
        table: Name of the table, below the root: CSV, TSV or Parquet.
        classes: Names of the classes in order, the last one positive; None takes all, sorted.
    """

    # change: name what else there is, and implement it: "labels" with labels(), "mask" and "boxes"
    # with foreground() and mask() or boxes(), "exam" where several images share one exam_id
    provides: ClassVar[frozenset[str]] = frozenset({"class"})
    by_manifest: ClassVar[bool] = True  # the table says what is read: links must not lead out

    # change: the keys of conf/dataset/my_dataset.yaml; their types are checked before a trial
    table: str
    classes: tuple[str, ...] | None

    def records(self) -> tuple[tuple[str, ...], Sequence[Record]]:
        """Return the names of the classes, and the samples in the order of the table."""
        file = self.inside(self.table, "table", folder=False)
        # change: the columns of your table
        table = read_table(file, dict.fromkeys(("image", "label", "patient"), "my_dataset.py"))
        names, targets = read_classes(table, "label", self.classes)
        patients = table.require("patient")
        records: list[Record] = []
        for i, image in enumerate(table.require("image")):
            require_inside(image, f"row {table.rows[i]} of '{file}'")
            path = PurePosixPath(image).as_posix()
            # what is kept names patients by a hash, unless dataset.identifiers=plain
            patient = self.pseudonyms.of(patients[i])
            # names of files are kept as they are: let none of them name a patient
            samples = self.frame_ids(self.root / path)  # a volume has one for each slice
            records += [Record(sample, patient, path, targets[i]) for sample in samples]
        return names, records

    # change: read() gives the pixels of a record, (H, W) or (H, W, 3), uint8 or uint16; override it
    # for a format of your own, and fingerprint() if pixels depend on more than the files.

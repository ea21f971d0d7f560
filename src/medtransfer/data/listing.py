"""Samples of files whose patients and exams are known, under names that tell nothing of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from medtransfer.data.base import Image, Record
from medtransfer.data.files import FileDataset
from medtransfer.data.reading import base as reader
from medtransfer.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Origin:
    """One file, and what is known of it before its own header is asked.

    Attributes:
        name: Its path from the root.
        patient: The patient's identifier; empty where nobody says.
        exam: The exam's.
        view: Which of the exam's views it is.
        spans: Where in the path patterns have found the two, start and end.
        row: The exam, where that is whatever stands in one row and has no identifier: empty for the
            first file, and then what that one's samples say. None elsewhere.
    """

    name: str
    patient: str = ""
    exam: str = ""
    view: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    row: str | None = None


@dataclass
class Listing:
    """What a dataset lists.

    Attributes:
        names: Of the classes.
        records: The samples.
        places: Path from the root and frame of those whose ids do not say them.
        groups: The patient of each exam, and the file that said so.
        labels: Names of what may hold at once.
        errors: What is wrong with samples that can be listed and not read, by id.
        lists: Sample ids of each split, where the dataset says them.
    """

    names: tuple[str, ...]
    records: list[Record] = field(default_factory=list)
    places: dict[str, tuple[str, int | None]] = field(default_factory=dict)
    groups: dict[str, tuple[str, str]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    errors: dict[str, DataError] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)


class ListedDataset(FileDataset):
    """Files of which it is known, or found in their DICOM headers, whose they are.

    A file of which nobody says it is an exam of its own, and an exam without a patient a patient.
    All slices of a volume and all frames of a file are of one exam.
    """

    def records(self) -> tuple[tuple[str, ...], Sequence[Record]]:
        """See `Dataset.records`."""
        return self._listing.names, self._listing.records

    def where(self, sample_id: str) -> tuple[Path, int | None]:
        """See `FileDataset.where`."""
        place = self._listing.places.get(sample_id)
        return super().where(sample_id) if place is None else (self.root / place[0], place[1])

    def read(self, record: Record) -> Image:
        """See `Dataset.read`; what is left out is told without a word of its patient.

        Such messages are kept and reported. One that ends the trial names the file as it is, so
        that it can be found.
        """
        try:
            if record.sample_id in self._listing.errors:
                raise self._listing.errors[record.sample_id]
            return super().read(record)
        except DataError as error:
            place = self._listing.places.get(record.sample_id)
            if place is None or self.on_error == "raise":
                raise
            plain, frame = place
            hidden = record.sample_id if frame is None else record.sample_id.rpartition("#")[0]
            problem = error.problem.replace(plain, hidden)
            raise DataError(problem, remedy=error.remedy) from None

    @cached_property
    def _listing(self) -> Listing:
        self.require_root()
        return self._listed()

    @abstractmethod
    def _listed(self) -> Listing:
        """Look through the folder, of which it is known that it is there."""

    def _add(
        self,
        listing: Listing,
        origin: Origin,
        target: int,
        labels: tuple[int, ...] = (),
        attributes: Mapping[str, str] | None = None,
    ) -> list[Record]:
        """List the samples of a file, and return them.

        Raises:
            DataError: If its exam is another patient's.
        """
        patient, exam, view = origin.patient, origin.exam, origin.view
        # ids are written and hashed as UTF-8, and names of files can be any bytes
        name = origin.name.encode("utf-8", "backslashreplace").decode()
        file = self.root / name
        exam_known = bool(exam) or origin.row is not None
        if not (patient and exam_known):
            header = reader.identity(file)
            if header is not None:
                patient = patient or header.patient
                exam = exam if exam_known else header.exam
                view = view or header.view
        hidden = self.pseudonyms.hide(name, (patient, exam), origin.spans)
        exam_id = self.pseudonyms.of(exam) if exam else origin.row or hidden
        group_id = self.pseudonyms.of(patient) if patient else exam_id
        group, first = listing.groups.setdefault(exam_id, (group_id, name))
        if group != group_id:
            raise DataError(
                f"files '{first}' and '{name}' in '{self.root}' are of one exam and of two"
                " patients",
                remedy="correct what says so, or tell exams apart by dataset.exam",
            )
        known = {} if attributes is None else {"attributes": attributes}
        records = []
        for plain in self.frame_ids(file):
            frame = plain[len(name) :]
            sample_id = hidden + frame
            if sample_id != plain:
                listing.places[sample_id] = name, int(frame[1:]) if frame else None
            if name != origin.name:
                listing.errors[sample_id] = DataError(
                    f"the name of image '{file}' is not text in UTF-8",
                    remedy="rename it, or leave such files out with dataset.on_error=skip",
                )
            records.append(Record(sample_id, group_id, exam_id, target, labels, view, **known))
        listing.records += records
        return records

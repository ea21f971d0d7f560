"""Images, classes or labels, patients, exams and splits as a table lists them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from medtransfer.data.files import require_inside
from medtransfer.data.given import WORDS
from medtransfer.data.labels import read_classes, read_labels
from medtransfer.data.listing import ListedDataset, Listing, Origin
from medtransfer.data.tables import Table, read_table
from medtransfer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CsvManifest(ListedDataset):
    """A table with a row for each image, or with a row for each exam and a column for each view.

    Attributes:
        file: The CSV, TSV or Parquet file, below the root or absolute.
        image: Column with paths of images from the root; or several, of which each is a view of the
            exam in its row, missing where the cell is empty. A volume is an exam of its slices.
        label: Column with the class.
        label_columns: Columns with 1, 0, or else -1 or nothing for unknown; each is a label, and
            several may hold. In place of `label`.
        separator: What stands between names of labels, where one column holds those that apply.
        classes: Their names in order, the last one positive; None takes all, sorted.
        patient: Column with the patient. None takes the exam, or else each image, for one.
        exam: Column with the exam. None takes the row for one.
        view: Column with the view, where `image` is a single column.
        split_column: Column with `train`, `val` or `test`, for split.kind=own.
        attributes: Columns that are kept, for a split by site or year and for subgroups.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"class", "exam"})
    by_manifest: ClassVar[bool] = True

    file: Path
    image: str | tuple[str, ...]
    label: str | None
    label_columns: str | tuple[str, ...] | None
    separator: str | None
    classes: tuple[str, ...] | None
    patient: str | None
    exam: str | None
    view: str | None
    split_column: str | None
    attributes: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        several = _names(self.label_columns)
        fewest = 1 if several else 2
        wrong = ""
        if (self.label is None) == (not several):
            wrong = "name one of dataset.label, a column with the class, and dataset.label_columns"
        elif not self._views:
            wrong = "name the column with the images in dataset.image"
        elif self.separator is not None and len(several) != 1:
            wrong = (
                "dataset.separator parts the names in the single column of dataset.label_columns"
            )
        elif self.classes is not None and several and self.separator is None:
            wrong = "dataset.label_columns are columns, and name what dataset.classes would"
        elif self.view is not None and len(self._views) > 1:
            wrong = "each column of dataset.image is a view: leave dataset.view out"
        elif self.classes is not None and len(set(self.classes)) < max(fewest, len(self.classes)):
            wrong = f"dataset.classes has {fewest} names at least, each once"
        if wrong:
            raise ConfigError("the keys of the manifest do not fit together", remedy=wrong)
        if several:
            object.__setattr__(self, "provides", frozenset({"labels"}))

    def labels(self) -> tuple[str, ...]:
        """See `Dataset.labels`."""
        return self._listing.labels

    def lists(self) -> Mapping[str, Sequence[str]] | None:
        """See `Dataset.lists`: what `split_column` says."""
        return None if self.split_column is None else self._listing.lists

    @property
    def _views(self) -> tuple[str, ...]:
        return _names(self.image)

    @property
    def _kept(self) -> tuple[str, ...]:
        """Columns that are kept, with the one that the split goes by."""
        column = self.split.column
        return tuple(sorted({*self.attributes, *([] if column is None else [column])}))

    def _listed(self) -> Listing:
        """See `ListedDataset`; samples come in the order of the rows."""
        table = self._table()
        if self.label is not None:
            names, targets = read_classes(table, self.label, self.classes)
            labels: Sequence[tuple[int, ...]] = [()] * len(targets)
            listing = Listing(names)
        else:
            columns = _names(self.label_columns)
            names, labels = read_labels(table, columns, self.separator, self.classes)
            targets = [0] * len(labels)
            listing = Listing(("image",), labels=names)
        patients = self._cells(table, self.patient, required=True)
        exams = self._cells(table, self.exam, required=True)
        views = self._cells(table, self.view)
        sides = self._sides(table)
        attributes = self._attributes(table)
        if self.exam is not None:
            self._require_one(table, exams, patients, self.patient, "patient")
            self._require_one(table, exams, targets, self.label, "class")
        row, exam = -1, ""
        for i, column, path in self._paths(table):
            row, exam = i, exam if i == row else ""
            whole = len(self._views) > 1
            origin = Origin(
                name=path,
                patient=patients[i],
                exam=exams[i],
                view=column if whole else views[i],
                row=exam if whole and not exams[i] else None,
            )
            records = self._add(listing, origin, targets[i], labels[i], attributes[i])
            exam = records[0].exam_id
            if self.split_column is not None:
                listing.lists.setdefault(sides[i], []).extend(r.sample_id for r in records)
        return listing

    def _table(self) -> Table:
        keys = {
            **dict.fromkeys(self._views, "dataset.image"),
            **dict.fromkeys(_names(self.label_columns), "dataset.label_columns"),
            **dict.fromkeys(self.attributes, "dataset.attributes"),
        }
        single = {
            "split.column": self.split.column,
            **{key: getattr(self, key) for key in ("label", "patient", "exam", "view")},
            "split_column": self.split_column,
        }
        keys |= {column: f"dataset.{key}" for key, column in single.items() if column is not None}
        if self.file.is_absolute():
            return read_table(self.file, keys)
        return read_table(self.inside(str(self.file), "file", folder=False), keys)

    def _cells(self, table: Table, column: str | None, *, required: bool = False) -> Sequence[str]:
        if column is None:
            return [""] * len(table.rows)
        return table.require(column) if required else table.columns[column]

    def _sides(self, table: Table) -> list[str]:
        """Return the split of each row."""
        if self.split_column is None:
            return [""] * len(table.rows)
        cells = table.require(self.split_column)
        for i, cell in enumerate(cells):
            if cell.lower() not in WORDS:
                raise table.error(
                    i,
                    self.split_column,
                    f"'{cell}' names no split",
                    f"write one of {', '.join(WORDS)}",
                )
        return [WORDS[cell.lower()] for cell in cells]

    def _attributes(self, table: Table) -> list[Mapping[str, str]]:
        """Return what is kept of each row; rows that are alike share it."""
        known: dict[tuple[str, ...], Mapping[str, str]] = {}
        names = self._kept
        columns = [
            [self.pseudonyms.of(cell) for cell in table.columns[name]]
            if name in {self.patient, self.exam}
            else table.columns[name]
            for name in names
        ]
        rows = zip(*columns, strict=True) if columns else [()] * len(table.rows)
        return [known.setdefault(r, dict(zip(names, r, strict=True))) for r in rows]

    def _require_one(
        self,
        table: Table,
        exams: Sequence[str],
        values: Sequence[str] | Sequence[int],
        column: str | None,
        what: str,
    ) -> None:
        """Refuse an exam of which rows say two things.

        Raises:
            DataError: If there is one; it names the rows, and not the exam.
        """
        first: dict[str, int] = {}
        for i, exam in enumerate(exams):
            j = first.setdefault(exam, i)
            if values[i] != values[j]:
                raise table.error(
                    i,
                    column or "",
                    f"another {what} than in row {table.rows[j]}, and both are of one exam",
                    f"correct the cells, or name in dataset.exam a column in which an exam has one"
                    f" {what}",
                )

    def _paths(self, table: Table) -> Iterator[tuple[int, str, str]]:
        """Yield index of the row, column and path of each image; all are checked first."""
        found: list[tuple[int, str, str]] = []
        first: dict[str, int] = {}
        for i, cells in enumerate(zip(*(table.columns[c] for c in self._views), strict=True)):
            if not any(cells):
                raise table.error(
                    i, self._views[0], "names no image", "name one, or remove the row"
                )
            for column, cell in zip(self._views, cells, strict=True):
                if not cell:
                    continue
                require_inside(cell, f"row {table.rows[i]}, column '{column}' of '{table.path}'")
                path = PurePosixPath(cell).as_posix()
                if path in first:
                    raise table.error(
                        i,
                        column,
                        f"image '{path}' is in row {table.rows[first[path]]} too",
                        "list every image once",
                    )
                first[path] = i
                found.append((i, column, path))
        if self.on_error == "raise":
            self._require_there(table, found)
        return iter(found)

    def _require_there(self, table: Table, found: Sequence[tuple[int, str, str]]) -> None:
        folders: dict[str, frozenset[str] | None] = {}
        missing = []
        for place in found:
            folder, _, name = place[2].rpartition("/")
            if folder not in folders:
                folders[folder] = _names_in(self.root / folder)
            names = folders[folder]
            if names is not None and name not in names:
                missing.append(place)
        if missing:
            i, column, path = missing[0]
            more = f" ({len(missing) - 1} more such)" if len(missing) > 1 else ""
            raise table.error(
                i,
                column,
                f"image '{path}' is not in '{self.root}'{more}",
                "write paths from dataset.root, or leave such rows out with dataset.on_error=skip",
            )


def _names(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns or ())


def _names_in(folder: Path) -> frozenset[str] | None:
    """Return the names of the files in a folder; None where that cannot be known."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError:  # reading the images will tell
        return None

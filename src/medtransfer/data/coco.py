"""Boxes in the JSON file of COCO."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from medtransfer.data.base import Boxes, Record
from medtransfer.data.files import FileDataset, require_inside
from medtransfer.errors import ConfigError, DataError


@dataclass(frozen=True)
class _Instances:
    """What a file holds, checked: rows x0, y0, x1, y1, label and size of each image, by id."""

    rows: dict[str, list[tuple[float, float, float, float, int]]]
    sizes: dict[str, tuple[int, int] | None]
    crowds: int


@dataclass(frozen=True, kw_only=True)
class Coco(FileDataset):
    """`root/<images>/<file_name>` with the instances of one JSON file.

    An image without instances shows none of the classes. Crowds, which are several objects in one
    box, are left out and counted.

    Attributes:
        images: The images' folder.
        annotations: The JSON file.
        classes: Names of categories, in the order of their labels; None takes all by their number.
        group: Regular expression that finds the patient in an image's name; None takes each image
            for a patient of its own.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"boxes"})
    by_manifest: ClassVar[bool] = True

    images: str
    annotations: str
    classes: tuple[str, ...] | None
    group: re.Pattern[str] | None

    def records(self) -> tuple[tuple[str, ...], Sequence[Record]]:
        """See `Dataset.records`."""
        self.inside(self.images, "images")
        ids = sorted(self._instances.rows)
        return ("image",), [Record(i, self.patient_of(self.group, i), i, 0) for i in ids]

    def foreground(self) -> tuple[str, ...]:
        """See `Dataset.foreground`."""
        return self.classes or tuple(self._categories.values())

    def boxes(self, record: Record) -> Boxes:
        """See `Dataset.boxes`."""
        found = self._instances
        return Boxes.of(found.rows[record.sample_id], found.sizes[record.sample_id])

    def annotated_in(self, record: Record) -> str:
        """See `Dataset.annotated_in`; the file is one for all, so the image is named too."""
        return f"{self.root / self.annotations}: {record.sample_id}"

    def fingerprint(self, records: Sequence[Record]) -> str:
        """Return path, size and time of change of every image, and a hash of the JSON file."""
        content = hashlib.sha256((self.root / self.annotations).read_bytes()).hexdigest()
        return f"{super().fingerprint(records)}\n{content} {self.classes}"

    def notes(self) -> tuple[str, ...]:
        """See `Dataset.notes`."""
        crowds = self._instances.crowds
        file = self.root / self.annotations
        return (f"{crowds} crowds of '{file}' are left out",) if crowds else ()

    @cached_property
    def _content(self) -> Mapping[str, Any]:
        file = self.inside(self.annotations, "annotations", folder=False)
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"'{file}' is not JSON: {error}", remedy="write it anew") from None
        for name in ("images", "annotations", "categories"):
            rows = content.get(name) if isinstance(content, dict) else None
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise self._error(f"has no list '{name}' of objects")
        return content  # type: ignore[no-any-return]

    @cached_property
    def _categories(self) -> dict[int, str]:
        """Names by number, sorted by number."""
        names = self._by_id("categories", "name")
        if not names:
            raise self._error("has no categories")
        if len(set(names.values())) < len(names):
            raise self._error("has two categories of one name")
        return dict(sorted(names.items()))

    @cached_property
    def _instances(self) -> _Instances:
        files = self._by_id("images", "file_name")
        for name in files.values():
            require_inside(name, f"'{self.root / self.annotations}'")
        ids = {number: f"{self.images}/{name}" for number, name in files.items()}
        if not ids:
            raise self._error("lists no image")
        if len(set(ids.values())) < len(ids):
            raise self._error("lists one image under two ids")
        labels = self._labels()
        found = _Instances({name: [] for name in ids.values()}, defaultdict(lambda: None), 0)
        for row in self._content["images"]:
            size = (row.get("height"), row.get("width"))
            if all(isinstance(side, int) and side > 0 for side in size):
                found.sizes[ids[row["id"]]] = size
        crowds = 0
        for row in self._content["annotations"]:
            what = f"annotation {row.get('id')}"
            for key, known in (("image_id", ids), ("category_id", labels)):
                if not isinstance(row.get(key), int) or row[key] not in known:
                    raise self._error(
                        f"{what} has {key}={row.get(key)!r}, which is not in the file"
                    )
            if row.get("iscrowd"):
                crowds += 1
                continue
            x, y, width, height = self._box(row, what)
            label = labels[row["category_id"]]
            found.rows[ids[row["image_id"]]].append((x, y, x + width, y + height, label))
        return _Instances(found.rows, found.sizes, crowds)

    def _labels(self) -> dict[int, int]:
        """Return the label of each category.

        Raises:
            ConfigError: If `classes` does not name just those that are there.
        """
        names, chosen = self._categories, self.foreground()
        used = [row.get("category_id") for row in self._content["annotations"]]
        for name in chosen:
            if name not in names.values():
                raise ConfigError(
                    f"category '{name}' of dataset.classes is not in"
                    f" '{self.root / self.annotations}'",
                    value=name,
                    choices=names.values(),
                )
        for number, name in names.items():
            if name not in chosen and number in used:
                raise ConfigError(
                    f"'{self.root / self.annotations}' has boxes of category '{name}'",
                    value=name,
                    choices=chosen,
                    remedy="add it to dataset.classes, or remove its boxes from the file",
                )
        return {number: chosen.index(name) for number, name in names.items() if name in chosen}

    def _by_id(self, kind: str, key: str) -> dict[int, str]:
        found: dict[int, str] = {}
        for row in self._content[kind]:
            number, name = row.get("id"), row.get(key)
            if not isinstance(number, int) or not isinstance(name, str) or not name:
                raise self._error(f"has an entry in '{kind}' without a number 'id' or a '{key}'")
            if number in found:
                raise self._error(f"has two entries in '{kind}' with id {number}")
            found[number] = name
        return found

    def _box(self, row: Mapping[str, Any], what: str) -> tuple[float, float, float, float]:
        try:
            x, y, width, height = map(float, row["bbox"])
        except (KeyError, TypeError, ValueError, OverflowError):
            x, y, width, height = [math.nan] * 4
        if not all(map(math.isfinite, (x, y, width, height))):
            raise self._error(f"{what} has bbox={row.get('bbox')!r}, not [x, y, width, height]")
        return x, y, width, height

    def _error(self, problem: str) -> DataError:
        file = self.root / self.annotations
        return DataError(
            f"'{file}' {problem}"
            if problem.startswith(("has", "lists"))
            else f"'{file}': {problem}",
            remedy="correct the file, or remove the entry",
        )

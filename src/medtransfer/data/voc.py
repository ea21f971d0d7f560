"""Boxes in the XML files of Pascal VOC."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, Literal
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from pydantic import Field

from medtransfer.data.annotations import REMEDY
from medtransfer.data.base import Boxes, Record
from medtransfer.data.files import FileDataset, require_inside, visible_files
from medtransfer.data.reading.base import require_file
from medtransfer.data.splits import SPLITS
from medtransfer.errors import ConfigError, DataError

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, kw_only=True)
class Voc(FileDataset):
    """`root/<images>/<name>.<any>` with `root/<annotations>/<name>.xml`.

    Attributes:
        images: The images' folder.
        annotations: The XML files' folder. An image without one, or with an empty one, shows none
            of the classes.
        sets: Folder with `train.txt`, `val.txt` and `test.txt`, a name each line: they are the
            dataset's own division, and other images are passed over. None takes all images.
        classes: Names of the objects, in the order of their labels.
        first_pixel: 1 where pixels are counted from one and a box ends with its last pixel, as in
            Pascal VOC; 0 where corners are distances from the image's corner.
        group: Regular expression that finds the patient in an image's name; None takes each image
            for a patient of its own.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"boxes"})
    by_manifest: ClassVar[bool] = True

    images: str
    annotations: str
    sets: str | None
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    first_pixel: Literal[0, 1]
    group: re.Pattern[str] | None

    def records(self) -> tuple[tuple[str, ...], Sequence[Record]]:
        """See `Dataset.records`."""
        self.inside(self.annotations, "annotations")
        if self._lists is None:
            ids = list(self._ids.values())
        else:
            ids = sorted({i for listed in self._lists.values() for i in listed})
        if not ids:
            raise DataError(
                f"folder '{self.root / self.images}' is empty", remedy="add images to it"
            )
        return ("image",), [Record(i, self.patient_of(self.group, i), i, 0) for i in ids]

    def foreground(self) -> tuple[str, ...]:
        """See `Dataset.foreground`."""
        return self.classes

    def boxes(self, record: Record) -> Boxes:
        """See `Dataset.boxes`.

        Raises:
            DataError: If the file is no XML, has entities that it defines itself, or lacks a part.
            ConfigError: If it names a class that is not among `classes`.
        """
        file = self._xml(record)
        if file.exists():
            self.require_below(file)
            require_file(file, "annotation")
        try:
            root: Element = fromstring(file.read_bytes())
            return Boxes.of([self._row(found) for found in root.findall("object")], _size(root))
        except FileNotFoundError:
            return Boxes.of([], None)
        except DefusedXmlException as error:
            raise DataError(
                f"'{file}' defines entities ({type(error).__name__}), which could fill the memory"
                " or read other files",
                remedy=REMEDY,
            ) from None
        except ParseError as error:
            raise DataError(f"'{file}' is not XML: {error}", remedy=REMEDY) from None
        except (OSError, ValueError) as error:
            raise DataError(f"'{file}' cannot be used: {error}", remedy=REMEDY) from None
        except _UnknownClassError as error:
            raise ConfigError(
                f"'{file}' names class '{error.name}'",
                value=error.name,
                choices=self.classes,
                remedy="add it to dataset.classes, or correct the file",
            ) from None

    def annotated_in(self, record: Record) -> str:
        """See `Dataset.annotated_in`."""
        return str(self._xml(record))

    def files(self, record: Record) -> tuple[Path, ...]:
        """Return the image and its annotation."""
        return (*super().files(record), self._xml(record))

    def fingerprint(self, records: Sequence[Record]) -> str:
        """Return path, size and time of change of every file, and what boxes are taken for."""
        return f"{super().fingerprint(records)}\n{self.classes} {self.first_pixel}"

    def lists(self) -> Mapping[str, Sequence[str]] | None:
        """See `Dataset.lists`."""
        return self._lists

    def _xml(self, record: Record) -> Path:
        name = Path(record.sample_id).relative_to(self.images).with_suffix(".xml")
        return self.root / self.annotations / name

    def _row(self, found: Element) -> tuple[float, float, float, float, int]:
        name = _text(found, "name")
        if name not in self.classes:
            raise _UnknownClassError(name)
        x0, y0, x1, y1 = (_number(found, f"bndbox/{corner}") for corner in CORNERS)
        return x0 - self.first_pixel, y0 - self.first_pixel, x1, y1, self.classes.index(name)

    @cached_property
    def _ids(self) -> dict[str, str]:
        """Sample ids by the names that lists have for them."""
        folder = self.inside(self.images, "images")
        ids: dict[str, str] = {}
        for file in visible_files(folder):
            name = file.relative_to(folder).with_suffix("").as_posix()
            if name in ids:
                raise DataError(
                    f"'{self.root / ids[name]}' and '{file}' have one name, and so one annotation",
                    remedy="remove or rename one of them",
                )
            ids[name] = file.relative_to(self.root).as_posix()
        return ids

    @cached_property
    def _lists(self) -> dict[str, list[str]] | None:
        if self.sets is None:
            return None
        folder = self.inside(self.sets, "sets")
        return {name: self._list(folder / f"{name}.txt") for name in SPLITS}

    def _list(self, file: Path) -> list[str]:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"list '{file}' cannot be read: {error}",
                remedy="write one, a name each line, or take all images with dataset.sets=null and"
                " dataset.split.kind=holdout",
            ) from None
        ids: dict[str, None] = {}
        for name in (line.strip() for line in lines):
            if not name:
                continue
            require_inside(name, f"'{file}'")
            if name not in self._ids:
                raise DataError(
                    f"'{file}' lists '{name}', and '{self.root / self.images}' has no such image",
                    value=name,
                    remedy="add the image, or remove the line",
                )
            ids[self._ids[name]] = None
        return list(ids)


class _UnknownClassError(Exception):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def _text(node: Element, path: str) -> str:
    text = (node.findtext(path) or "").strip()
    if not text:
        msg = f"an <{node.tag}> has no {path}"
        raise ValueError(msg)
    return text


def _number(node: Element, path: str) -> float:
    text = _text(node, path)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        msg = f"{path} is '{text}' and not a number"
        raise ValueError(msg)
    return number


def _size(root: Element) -> tuple[int, int] | None:
    if root.find("size") is None:
        return None
    width, height = (round(_number(root, f"size/{side}")) for side in ("width", "height"))
    return (height, width) if width and height else None  # some programs write zeros

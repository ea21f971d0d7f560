"""Images in one folder, their masks in another."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from pydantic import Field
from scipy import ndimage

from medtransfer.data.annotations import REMEDY
from medtransfer.data.base import IGNORED, Boxes, Mask, Record
from medtransfer.data.files import FileDataset, visible_files
from medtransfer.data.reading.base import (
    NIFTI,
    SUFFIXES,
    Reading,
    require_file,
    stem_of,
    suffix_of,
)
from medtransfer.errors import ConfigError, DataError

Value = Annotated[int, Field(ge=0, le=65535)]


@dataclass(frozen=True, kw_only=True)
class MaskFolder(FileDataset):
    """`root/<images>/**/<name>.<any>` with `root/<masks>/**/<name>.<any>`.

    Of volumes and files of several pages, each slice or page is a sample of one exam and one
    patient; its mask is the one of the same number.

    Attributes:
        images: The images' folder.
        masks: The masks' folder.
        values: The pixel value of each foreground class in the masks.
        background: The pixel value of what is none of them; None if there is none.
        ignored: The pixel value of what is unknown; None if there is none.
        group: Regular expression that finds the patient in an image's name; None takes each image
            for a patient of its own.
        boxes_from_masks: Whether each connected region is an object with a box.
        min_area: Pixels of the smallest region that is an object.
        note: What whoever reads results on these data must know.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"mask"})

    images: str
    masks: str
    values: Mapping[str, Value]
    background: Value | None
    ignored: Value | None
    group: re.Pattern[str] | None
    boxes_from_masks: bool
    min_area: Annotated[int, Field(ge=1)]
    note: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        named = [*self.values.values(), self.background, self.ignored]
        known = [value for value in named if value is not None]
        if not self.values or len(self.values) >= IGNORED or len(set(known)) < len(known):
            raise ConfigError(
                f"dataset.values={dict(self.values)} with background={self.background} and"
                f" ignored={self.ignored} does not tell classes apart",
                remedy="give every class a pixel value of its own, as in {lesion: 255}",
            )
        if self.boxes_from_masks:
            object.__setattr__(self, "provides", self.provides | {"boxes"})

    def records(self) -> tuple[tuple[str, ...], Sequence[Record]]:
        """See `Dataset.records`; hidden files are passed over."""
        files = visible_files(self.inside(self.images, "images"))
        if not files:
            raise DataError(
                f"folder '{self.root / self.images}' is empty", remedy="add images to it"
            )
        self.inside(self.masks, "masks")
        records = []
        for file in files:
            name = file.relative_to(self.root).as_posix()
            patient = self.patient_of(self.group, name)
            records += [Record(i, patient, name, 0) for i in self.frame_ids(file)]
        return ("image",), records

    def foreground(self) -> tuple[str, ...]:
        """See `Dataset.foreground`."""
        return tuple(self.values)

    def mask(self, record: Record) -> Mask:
        """See `Dataset.mask`."""
        file = self._file(record)
        if file is None:
            raise DataError(
                f"image '{self.root / record.sample_id}' has no mask: '{self.masks}' holds no file"
                f" '{self._stem(record)}.*'",
                remedy=REMEDY,
            )
        raw = read_mask(file, self.where(record.sample_id)[1], self.reading)
        mask = np.zeros(raw.shape, dtype=np.uint8)
        known = np.zeros(raw.shape, dtype=np.bool_)
        codes = [(self.background, 0), (self.ignored, IGNORED)]
        for value, code in [*codes, *((v, k + 1) for k, v in enumerate(self.values.values()))]:
            if value is not None:
                here = raw == value
                mask[here] = code
                known |= here
        if not known.all():
            unknown = raw[~known]
            raise DataError(
                f"mask '{file}' has the value {unknown[0]} in {len(unknown)} pixels, and no class"
                " has it",
                choices=[f"{name}={value}" for name, value in self.values.items()],
                remedy="name its class in dataset.values, or set dataset.background or"
                " dataset.ignored to it; a lossy format such as JPEG invents values",
            )
        return mask

    def boxes(self, record: Record) -> Boxes:
        """See `Dataset.boxes`: one around each connected region of a class, corners connecting."""
        mask = self.mask(record)
        rows = []
        for label in range(len(self.values)):
            regions, _ = ndimage.label(mask == label + 1, structure=np.ones((3, 3)))
            areas = np.bincount(regions.ravel())
            for number, (down, across) in enumerate(ndimage.find_objects(regions), start=1):
                if areas[number] >= self.min_area:
                    rows.append((across.start, down.start, across.stop, down.stop, label))
        height, width = mask.shape
        return Boxes.of(rows, (height, width))

    def annotated_in(self, record: Record) -> str:
        """See `Dataset.annotated_in`."""
        return str(self._file(record) or record.sample_id)

    def files(self, record: Record) -> tuple[Path, ...]:
        """Return the image and its mask."""
        mask = self._file(record)
        return (*super().files(record), *([mask] if mask else []))

    def fingerprint(self, records: Sequence[Record]) -> str:
        """Return path, size and time of change of every file, and what masks are taken for."""
        keys = [[*self.values.items()], self.background, self.ignored]
        made = [self.boxes_from_masks, self.min_area]
        return f"{super().fingerprint(records)}\n{keys} {made}"

    def notes(self) -> tuple[str, ...]:
        """See `Dataset.notes`."""
        return () if self.note is None else (self.note,)

    def _stem(self, record: Record) -> str:
        image, _ = self.where(record.sample_id)
        return stem_of(image.relative_to(self.root / self.images))

    def _file(self, record: Record) -> Path | None:
        return self._masks.get(self._stem(record))

    @cached_property
    def _masks(self) -> dict[str, Path]:
        folder = self.inside(self.masks, "masks")
        found: dict[str, Path] = {}
        for file in visible_files(folder):
            if suffix_of(file) not in SUFFIXES:
                continue
            stem = stem_of(file.relative_to(folder))
            if stem in found:
                raise DataError(
                    f"masks '{found[stem]}' and '{file}' are of one image",
                    remedy="remove one of them",
                )
            found[stem] = file
        return found


def read_mask(
    path: Path, frame: int | None = None, reading: Reading | None = None
) -> NDArray[np.int64]:
    """Read the values of a mask, (H, W); those of a palette are its indices.

    Args:
        path: The file.
        frame: Number of the slice or page; None for a file of one mask.
        reading: How volumes are cut.

    Raises:
        DataError: If the file cannot be read or is in colour.
    """
    if suffix_of(path) in NIFTI:
        from medtransfer.data.reading import nifti

        values = nifti.values(path, frame, reading or Reading())
        if (np.rint(values) == values).all():  # programs save classes as fractions too
            values = values.astype(np.int64)
    else:
        values = _picture(path, frame)
    if values.ndim == 3:
        # an opacity is no class
        values = values[..., : 1 if values.shape[2] == 2 else 3]
        if (values != values[..., :1]).any():
            raise DataError(
                f"mask '{path}' is in colour, and classes are told by one value",
                remedy="save it as grey values or with a palette",
            )
        values = values[..., 0]
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"mask '{path}' has values that are no whole numbers", remedy=REMEDY)
    return values.astype(np.int64)


def _picture(path: Path, frame: int | None) -> NDArray[Any]:
    """Return the values of one page as they are stored, (H, W) or (H, W, C)."""
    require_file(path, "mask")
    try:
        with PILImage.open(path) as image:
            if frame is not None:
                image.seek(frame)
            return np.asarray(image.convert("L") if image.mode == "1" else image)
    except UnidentifiedImageError:
        raise DataError(f"mask '{path}' is not an image", remedy=REMEDY) from None
    except EOFError:
        raise DataError(f"mask '{path}' has no page {frame}", remedy=REMEDY) from None
    except (OSError, ValueError, SyntaxError, PILImage.DecompressionBombError) as error:
        raise DataError(f"mask '{path}' cannot be decoded: {error}", remedy=REMEDY) from None

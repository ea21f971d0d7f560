"""The embedded dataset: generated ultrasound-like images with lesions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from medtransfer.data import scenes
from medtransfer.data.base import Boxes, Dataset, Image, Mask, Record


@dataclass(frozen=True, kw_only=True)
class Phantom(Dataset):
    """Patients with one generated exam each, in equal numbers normal, benign and malignant.

    Attributes:
        patients: How many exams there are.
        images: Views of each patient.
        lesion_views: In how many views the lesion shows; None for all of them.
        size: Height and width in pixels at which scenes are rendered.
        difficulty: From 0, trivial, to 1, near chance.
        data_seed: Seed of the scenes, apart from the split's and the trial's.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"class", "labels", "exam", "mask", "boxes"})

    patients: Annotated[int, Field(ge=9)]
    images: Annotated[int, Field(ge=1)]
    lesion_views: Annotated[int, Field(ge=1)] | None
    size: Annotated[int, Field(ge=32)]
    difficulty: Annotated[float, Field(ge=0, le=1)]
    data_seed: Annotated[int, Field(ge=0)]

    @property
    def identity(self) -> str:
        """See `Dataset.identity`: patients are drawn from the seed."""
        return f"{type(self).__qualname__} {self.data_seed}"

    def records(self) -> tuple[tuple[str, ...], Sequence[Record]]:
        """See `Dataset.records`; the class of a patient follows from its number."""
        names = scenes.CLASS_NAMES
        return names, [
            Record(
                *(f"{name}_view{v}", name, name, p % len(names)),
                labels=(int(p % len(names) > 0), int(p % len(names) > 1)),
                view=f"view{v}",
            )
            for p, name in ((p, f"patient{p:05d}") for p in range(self.patients))
            for v in range(self.images)
        ]

    def read(self, record: Record) -> Image:
        """See `Dataset.read`."""
        return self._scene(record).image

    def labels(self) -> tuple[str, ...]:
        """See `Dataset.labels`: whether there is a lesion, and whether it is malignant."""
        return ("lesion", "malignant")

    def foreground(self) -> tuple[str, ...]:
        """See `Dataset.foreground`: a lesion is of its patient's class."""
        return scenes.CLASS_NAMES[1:]

    def mask(self, record: Record) -> Mask:
        """See `Dataset.mask`."""
        return self._scene(record).mask  # the first class is the normal one, which is background

    def boxes(self, record: Record) -> Boxes:
        """See `Dataset.boxes`: one around each lesion that the view shows."""
        scene = self._scene(record)
        labels = np.full(len(scene.boxes), scene.label - 1, dtype=np.int64)
        return Boxes(scene.boxes, labels, (self.size, self.size))

    def exam(self, record: Record) -> list[scenes.Scene]:
        """Return all views of the patient of a record, with their masks and boxes."""
        return _exam(
            self.data_seed,
            int(record.exam_id.removeprefix("patient")),
            record.target,
            images=self.images,
            size=self.size,
            difficulty=self.difficulty,
            lesion_views=self.lesion_views,
        )

    def fingerprint(self, records: Sequence[Record]) -> str:
        """Return the arguments of the generator and a hash of its code."""
        code = hashlib.sha256(Path(scenes.__file__).read_bytes()).hexdigest()
        arguments = {
            k: v for k, v in asdict(self).items() if k not in {"fraction", "shots", "split"}
        }
        return f"{code} {len(records)} {sorted(arguments.items())}"

    def _scene(self, record: Record) -> scenes.Scene:
        return self.exam(record)[int(record.sample_id.rpartition("view")[2])]


# a patient's views, their masks and boxes are asked for one after the other
_exam = lru_cache(maxsize=1)(scenes.render_exam)

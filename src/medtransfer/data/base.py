"""What a dataset is: samples with their targets, and the pixels behind them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medtransfer.data.splits import Split

Image = NDArray[np.uint8] | NDArray[np.uint16]
"""One decoded image: (H, W) grey or (H, W, 3) colour. Zero is black and the type's largest value
white; 16 bits where the source has more than eight."""

Mask = NDArray[np.uint8]
"""What each pixel shows, (H, W): 0 background, k + 1 foreground class k, `IGNORED` unknown."""

IGNORED = 255

Annotation = Literal["class", "labels", "exam", "mask", "boxes"]
"""What a trial learns from: one class for an image, several labels for it, one class for the images
of an exam, one class for each pixel, or boxes with classes."""

_NOTHING: Mapping[str, str] = {}  # shared by the many records without attributes

UNKNOWN = -1
"""The value of a label of which nobody has said whether it holds."""


@dataclass(frozen=True)
class Boxes:
    """What is annotated in one image.

    Attributes:
        boxes: (n, 4) float32, a row x0, y0, x1, y1 in pixels, end exclusive.
        labels: (n,) int64, indices of foreground classes.
        size: Height and width of the image, where the annotation states them.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    size: tuple[int, int] | None = None

    @classmethod
    def of(
        cls, rows: Sequence[tuple[float, float, float, float, int]], size: tuple[int, int] | None
    ) -> Boxes:
        """Return the boxes of rows x0, y0, x1, y1, label."""
        table = np.asarray(rows, dtype=np.float64).reshape(len(rows), 5)
        return cls(table[:, :4].astype(np.float32), table[:, 4].astype(np.int64), size)


@dataclass(frozen=True, slots=True)
class Record:
    """One sample before its pixels are read.

    Attributes:
        sample_id: Unique within the dataset; names the file where there is one.
        group_id: The patient; samples of one group never lie on two sides of a split.
        exam_id: The exam that the image belongs to.
        target: Index of the class; 0 where images have none.
        labels: Of several that may hold at once: 1 holds, 0 does not, `UNKNOWN`.
        view: Which of the exam's views it is, such as `CC`; empty where nobody says.
        attributes: What else is known, by name, such as a site or a year.
    """

    sample_id: str
    group_id: str
    exam_id: str
    target: int
    labels: tuple[int, ...] = ()
    view: str = ""
    attributes: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True)
class DataSpec:
    """What a task may know of its data.

    Attributes:
        class_names: In the order of the scores; for two classes the last one is positive. Those of
            the foreground, where the annotation is masks or boxes; or of the labels.
        channels: Channels of an image, 1 or 3.
        image_size: Height and width of an image in pixels.
        train_counts: Samples of each class in the training subset, or that show it.
        data_hash: Hash of every sample's pixels, target, group, and mask or boxes.
        split_hash: Hash of which sample lies in which split, the training subset aside.
        annotation: What the trial learns from.
        views: Names of the views that exams of the training split have.
    """

    class_names: tuple[str, ...]
    channels: int
    image_size: int
    train_counts: tuple[int, ...]
    data_hash: str
    split_hash: str
    annotation: Annotation = "class"
    views: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """Where samples come from. Knows no model and no task.

    A dataset derives from this class, declares what annotation it provides and implements
    `records`, `read` and `fingerprint`, and `foreground` with `mask` or `boxes` if it provides
    those; its arguments are the keys of its YAML.

    Attributes:
        image_size: Height and width in pixels to which images are brought, padded to a square.
        channels: 1 for grey, 3 for colour; images of the other kind are converted.
        bits: How many bits of each value are kept.
        fraction: How much of the training split is seen, in (0, 1]; nested for one seed.
        shots: How many groups of each training class are seen, instead of a fraction.
        on_error: Whether an unreadable image, or a box that cannot be, ends the trial or is left
            out and counted.
        split: How samples are divided.
    """

    provides: ClassVar[frozenset[str]]
    """Which kinds of `Annotation` there are."""

    image_size: Annotated[int, Field(ge=8)]
    channels: Literal[1, 3]
    bits: Literal[8, 16] = 8
    fraction: Annotated[float, Field(gt=0, le=1)]
    shots: Annotated[int, Field(ge=1)] | None
    on_error: Literal["raise", "skip"]
    split: Split

    @property
    def identity(self) -> str:
        """What tells collections apart: in one, a group id always means the same patient."""
        return type(self).__qualname__

    @abstractmethod
    def records(self) -> tuple[tuple[str, ...], Sequence[Record]]:
        """Return the class names and the samples, in a stable order.

        Where images have no class, there is one name, `image`, for all of them.

        Raises:
            DataError: If there is nothing to read or an annotation is wrong.
        """

    @abstractmethod
    def read(self, record: Record) -> Image:
        """Return the pixels of one sample.

        Raises:
            DataError: If the image cannot be read; the message names it.
        """

    @abstractmethod
    def fingerprint(self, records: Sequence[Record]) -> str:
        """Return a text that changes whenever the pixels behind `records` might."""

    def spacing(self, record: Record) -> tuple[float, float] | None:  # noqa: ARG002
        """Return the distance in mm between rows and between columns of an image, if known."""
        return None

    def labels(self) -> tuple[str, ...]:
        """Return the names of the labels that records carry, of which several may hold."""
        return ()

    def foreground(self) -> tuple[str, ...]:
        """Return the names of what masks and boxes mark."""
        return ()

    def mask(self, record: Record) -> Mask:
        """Return the mask of one sample, of the size of its image.

        Raises:
            DataError: If it is missing or cannot be read; the message names it.
        """
        raise NotImplementedError

    def boxes(self, record: Record) -> Boxes:
        """Return the boxes of one sample as they are annotated; none is a negative.

        Raises:
            DataError: If the annotation cannot be read; the message names it.
        """
        raise NotImplementedError

    def annotated_in(self, record: Record) -> str:
        """Return the file that annotates a sample, for messages."""
        return record.sample_id

    def lists(self) -> Mapping[str, Sequence[str]] | None:
        """Return the dataset's own division: sample ids under `train`, `val` and `test`."""
        return None

    def notes(self) -> tuple[str, ...]:
        """Return what whoever reads results on these data must know."""
        return ()

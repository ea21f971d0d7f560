"""What the labels of a dataset say, one question at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.base import UNKNOWN, Record


class Question(NamedTuple):
    """Whether samples are of one class, or have one label.

    Attributes:
        name: Of the class or the label.
        known: (n,) for which samples there is an answer.
        holds: (n,) for which it is yes.
    """

    name: str
    known: NDArray[np.bool_]
    holds: NDArray[np.bool_]


def questions(records: Sequence[Record], class_names: Sequence[str]) -> list[Question]:
    """Return one for each class or label, of two classes the second only, of one class none."""
    if records and records[0].labels:
        labels = np.asarray([record.labels for record in records])
        return [
            Question(name, labels[:, k] != UNKNOWN, labels[:, k] == 1)
            for k, name in enumerate(class_names)
        ]
    targets = np.asarray([record.target for record in records])
    every = np.ones(len(records), np.bool_)
    first = 1 if len(class_names) <= 2 else 0
    return [Question(name, every, targets == k) for k, name in list(enumerate(class_names))[first:]]


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number.

    By the procedure of Holm ("A simple sequentially rejective multiple test procedure", 1979).
    """
    order = np.argsort(values, kind="stable")
    factors = len(values) - np.arange(len(values))
    adjusted = np.maximum.accumulate(np.asarray(values, dtype=np.float64)[order] * factors)
    result = np.empty(len(values))
    result[order] = adjusted.clip(max=1)
    return [float(value) for value in result]

"""Cases of a test that are worth a look: which they are, and what is shown of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.base import Boxes, Mask

MOST = 3
"""Cases in each group of `extremes`."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One view of a case: its image with what is marked in it.

    Attributes:
        heading: What is marked.
        mask: Classes of the pixels.
        boxes: Objects, in pixels of the image.
        scores: Of the boxes, (n,), where they were found by a network.
        heat: How much each place matters, (h, w) in [0, 1], of the whole image at any resolution.
        index: Position of the image's record, where it is not that of the case.
    """

    heading: str = ""
    mask: Mask | None = None
    boxes: Boxes | None = None
    scores: NDArray[np.float32] | None = None
    heat: NDArray[np.float32] | None = None
    index: int | None = None


@dataclass(frozen=True, eq=False)
class Case:
    """One case.

    Attributes:
        index: Position of its record, or of the first one of its exam.
        words: Lines that say how it went.
        panels: Side by side, as many as there is room for.
    """

    index: int
    words: tuple[str, ...]
    panels: tuple[Panel, ...] = (Panel(),)


@dataclass(frozen=True, eq=False)
class Examples:
    """What a task shows of a test.

    Attributes:
        title: What the cases were chosen by.
        note: How to read them.
        names: Of the classes that masks and boxes mark.
        heat: What heat maps show.
        groups: Cases under their headings.
    """

    title: str
    note: str = ""
    names: tuple[str, ...] = ()
    heat: str = ""
    groups: Mapping[str, Sequence[Case]] = field(default_factory=dict)


def extremes(values: NDArray[np.floating]) -> dict[str, list[int]]:
    """Return the rows of the best, the median and the worst values, best first; no row twice.

    Each group has three rows, or about a third of them where there are fewer than nine.

    Args:
        values: More is better, (n,); NaN has no place.
    """
    order = np.argsort(-values, kind="stable")[: int(np.isfinite(values).sum())].tolist()
    best, worst = min(MOST, (len(order) + 2) // 3), min(MOST, (len(order) + 1) // 3)
    rest = order[best : len(order) - worst]
    start = max(0, len(rest) - MOST) // 2
    groups = {
        "best": order[:best],
        "median": rest[start : start + MOST],
        "worst": order[len(order) - worst :],
    }
    return {heading: rows for heading, rows in groups.items() if rows}

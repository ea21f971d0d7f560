"""Average precision from matched detections, for any multiset of images: what a bootstrap draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""The overlaps at which COCO asks whether a detection marks an object."""

RECALLS = tuple(np.linspace(0, 1, 101).tolist())
"""The recalls at which it reads precision."""

LIMIT = 100  # detections of an image and class that it looks at
_CELLS = 4_000_000  # numbers held at once for a class


def match_column(iou: float) -> str:
    """Return the column that holds the index of the matched truth, or -1: `match_50` and so on."""
    return f"match_{100 * iou:.0f}"


def truth_column(name: str) -> str:
    """Return the column that counts an image's truths of a class."""
    return f"truths_{name}"


@dataclass(frozen=True)
class Matched:
    """Detections and what they hit, over all images.

    Attributes:
        image: Index of the image of each detection, shape (d,).
        label: Index of its class, shape (d,).
        score: Its score, shape (d,).
        hit: Whether it marks a truth at each of `IOUS`, shape (d, 10).
        truths: Truths of each image and class, shape (images, classes).
    """

    image: Ints
    label: Ints
    score: Floats
    hit: NDArray[np.bool_]
    truths: Ints

    @classmethod
    def from_frames(
        cls, detections: pd.DataFrame, images: pd.DataFrame, classes: Sequence[str]
    ) -> Matched:
        """Read what a trial wrote.

        Args:
            detections: One row a detection: `sample_id`, `class`, `score` and, for each of `IOUS`,
                `match_column`.
            images: One row an image, those without detections too: `sample_id` and, for each
                class, `truth_column`.
            classes: Names of the classes.
        """
        matches = detections[[match_column(iou) for iou in IOUS]].to_numpy(dtype=np.int64)
        return cls(
            image=_places(detections["sample_id"], images["sample_id"]),
            label=_places(detections["class"], classes),
            score=detections["score"].to_numpy(dtype=np.float64),
            hit=matches >= 0,
            truths=images[[truth_column(name) for name in classes]].to_numpy(dtype=np.int64),
        )


def average_precision(matched: Matched, draws: Ints | None = None) -> Floats:
    """Return COCO's average precision of each draw, IoU and class.

    Precision is interpolated at 101 recalls and at most `LIMIT` detections of an image and class
    count, as in Lin et al. (2014, arXiv 1405.0312). Detections of the same score keep the order of
    their images; those of an image that was drawn twice count together.

    Args:
        matched: Detections and truths.
        draws: How often each image is in each draw, shape (draws, images); None for each once.

    Returns:
        Shape (draws, 10, classes), in [0, 1]; NaN for a class without truth in the draw.
    """
    images, classes = matched.truths.shape
    times = np.ones((1, images), np.int64) if draws is None else draws
    result = np.full((len(times), len(IOUS), classes), np.nan)
    for label in range(classes):
        rows = _ranked(matched, label)
        step = max(1, _CELLS // max(1, len(rows)))
        for start in range(0, len(times), step):
            part = slice(start, start + step)
            count = times[part] @ matched.truths[:, label]
            weight = times[part][:, matched.image[rows]]
            seen = weight.cumsum(axis=1)
            for at in range(len(IOUS)):
                hits = matched.hit[rows, at]
                found = weight[:, hits].cumsum(axis=1)
                result[part, at, label] = _area(found, seen[:, hits], count)
    return result


def ap50(matched: Matched, draws: Ints | None = None) -> Floats:
    """Return the mean over classes at IoU 0.5, shape (draws,); see `average_precision`."""
    return _mean(average_precision(matched, draws)[:, :1])


def mean_average_precision(matched: Matched, draws: Ints | None = None) -> Floats:
    """Return the mean over classes and `IOUS`, shape (draws,); see `average_precision`."""
    return _mean(average_precision(matched, draws))


def _area(found: Ints, seen: Ints, count: Ints) -> Floats:
    """Return the mean interpolated precision.

    Only detections that hit matter: between them recall stays and precision falls.

    Args:
        found: Truths found up to each of these, shape (draws, hits).
        seen: Detections up to each of these, shape (draws, hits).
        count: Truths, shape (draws,).
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = found / count[:, None]
        precision = np.where(seen > 0, found / seen, 0.0)
    # the best precision at this recall or a higher one
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALLS, recall, side="right")
    gained = np.diff(reached, axis=1, prepend=0)
    return np.where(count > 0, (gained * envelope).sum(axis=1) / len(RECALLS), np.nan)


def _ranked(matched: Matched, label: int) -> Ints:
    """Return the rows of a class that count, by descending score, ties by image."""
    rows = np.flatnonzero(matched.label == label)
    rows = rows[np.lexsort((-matched.score[rows], matched.image[rows]))]
    starts = np.searchsorted(matched.image[rows], matched.image[rows], side="left")
    rows = rows[np.arange(len(rows)) - starts < LIMIT]
    return rows[np.argsort(-matched.score[rows], kind="stable")]


def _places(values: Sequence[str] | pd.Series, among: Sequence[str] | pd.Series) -> Ints:
    place = {name: index for index, name in enumerate(among)}
    return np.array([place[value] for value in values], dtype=np.int64)


def _mean(values: Floats) -> Floats:
    """Return the mean of what is defined, shape (draws,); NaN where nothing is."""
    defined = np.isfinite(values)
    total = np.where(defined, values, 0.0).sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        return np.asarray(total / defined.sum(axis=(1, 2)))


def case_values(matched: Matched) -> dict[str, Floats]:
    """Return, for `map` and `ap50`, one value per image whose mean is the metric, shape (images,).

    Average precision is no mean over images. These are the jackknife's pseudo-values (Efron &
    Stein 1981), moved so that their mean is the metric itself: how far each image pulls it.
    """
    images = len(matched.truths)
    left_out = np.ones((images, images), np.int64) - np.eye(images, dtype=np.int64)
    precision = average_precision(matched, np.vstack([np.ones((1, images), np.int64), left_out]))
    found = {}
    for name, values in (("map", _mean(precision)), ("ap50", _mean(precision[:, :1]))):
        pulled = -(images - 1) * values[1:]
        found[name] = values[0] + pulled - pulled.mean()
    return found

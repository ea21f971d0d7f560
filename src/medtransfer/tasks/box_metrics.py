"""Metrics of detection over all images of a split.

Every function takes the detections of each image and its `Truth`, in the same order.
Boxes are x0, y0, x1, y1 in pixels, end-exclusive; a detection can mark only a truth of its class.
What has no value, as precision without any truth has none, is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from medtransfer.analysis.statistics.average_precision import IOUS, LIMIT, RECALLS
from medtransfer.errors import DataError
from medtransfer.heads.suppression import Detections

FROC_RATES = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which sensitivity is read."""

NO_CHOICE = 0.5  # the score threshold where none is better than another
_ALMOST = 1 - 1e-10  # COCO's way to let a box that fits exactly pass an IoU of one


class Truth(NamedTuple):
    """What there is to find in one image.

    Attributes:
        boxes: Shape (n, 4).
        labels: Indices of the foreground classes, shape (n,).
    """

    boxes: Tensor
    labels: Tensor


def match(found: Detections, truth: Truth, ious: Sequence[float] = IOUS) -> Tensor:
    """Return the index of the truth that each detection marks, or -1.

    By descending score each detection takes, of the truths of its class that are free and that it
    overlaps by at least the IoU, the one that it overlaps most; COCO's rule.

    Args:
        found: The m detections of an image.
        truth: Its truths.
        ious: The overlaps that are asked for, t of them, in (0, 1].

    Returns:
        Shape (m, t), int64.
    """
    matches = np.full((len(found.scores), len(ious)), -1, dtype=np.int64)
    overlap = _overlap(found.boxes, truth.boxes)
    overlap[found.labels.cpu().numpy()[:, None] != truth.labels.cpu().numpy()] = 0
    needed = np.minimum(np.asarray(ious, dtype=np.float64), _ALMOST)
    free = np.ones((len(ious), len(truth.labels)), dtype=bool)
    order = np.argsort(-_numbers(found.scores), kind="stable")
    for row in order[(overlap >= needed.min()).any(axis=1)[order]]:
        fits = np.where(free & (overlap[row] >= needed[:, None]), overlap[row], -1.0)
        # of equal overlaps the last, as COCO does
        best = fits.shape[1] - 1 - fits[:, ::-1].argmax(axis=1)
        hit = fits[np.arange(len(best)), best] >= 0
        matches[row, hit] = best[hit]
        free[hit, best[hit]] = False
    return torch.from_numpy(matches)


def coco_metrics(
    found: Sequence[Detections], truths: Sequence[Truth], class_names: Sequence[str]
) -> dict[str, float]:
    """Return `map`, `ap50`, `ap75` and, for each class, `ap50_<class>`, all in [0, 1].

    Average precision as COCO defines it, over at most 100 detections of an image and class; `map`
    is its mean over IoUs from 0.50 to 0.95. A class without truth has no say in the means.
    """
    metric = MeanAveragePrecision(
        backend="faster_coco_eval",
        extended_summary=True,
        # the defaults are rounded to single precision, and differ from COCO where boxes just fit
        iou_thresholds=list(IOUS),
        rec_thresholds=list(RECALLS),
        max_detection_thresholds=[1, 10, LIMIT],
    )
    metric.warn_on_many_detections = False  # that the limit holds is said above
    metric.update(
        [{"boxes": _float(f.boxes), "labels": f.labels.cpu(), "scores": _float(f.scores)}
         for f in found],
        [{"boxes": _float(t.boxes), "labels": t.labels.cpu()} for t in truths],
    )  # fmt: skip
    values = metric.compute()
    named = {"map": "map", "ap50": "map_50", "ap75": "map_75"}
    result = {ours: _defined(float(values[theirs])) for ours, theirs in named.items()}
    result |= {f"ap50_{name}": math.nan for name in class_names}
    # precision has an axis each for IoU, recall, class, size of object and number of detections
    by_class = values["precision"][0, :, :, 0, -1].mean(0)
    for label, value in zip(values["classes"].reshape(-1).tolist(), by_class, strict=True):
        result[f"ap50_{class_names[label]}"] = _defined(float(value))
    return result


def froc(
    found: Sequence[Detections], truths: Sequence[Truth], iou: float = 0.5
) -> dict[str, float]:
    """Return the sensitivity at each of `FROC_RATES` and `froc`, their mean, all in [0, 1].

    Sensitivity is the share of all truths, of all classes, that are marked. At each rate it is the
    highest that a score threshold reaches with at most so many false positives per image: a step,
    not interpolated. Rates and mean are those of LUNA16 (Setio et al. 2017, arXiv 1612.08012).

    Args:
        found: Detections of each image.
        truths: Truths of each image.
        iou: The overlap at which a detection marks a truth.
    """
    scores, hits, total = _pooled(found, truths, iou)
    _, marked = _by_threshold(scores, hits)
    kept = _by_threshold(scores, np.ones_like(hits))[1]
    wrong = kept - marked
    values = {}
    for rate in FROC_RATES:
        best = int(marked[wrong <= rate * len(found)].max(initial=0))
        values[f"sensitivity_{rate:g}"] = best / total if total else math.nan
    return values | {"froc": float(np.mean(list(values.values())))}


def count_error(found: Sequence[Detections], truths: Sequence[Truth], score: float) -> float:
    """Return the mean over images of how many objects were found too many or too few.

    Args:
        found: Detections of each image.
        truths: Truths of each image.
        score: Detections with less do not count.
    """
    errors = [
        abs(int((f.scores >= score).sum()) - len(t.labels))
        for f, t in zip(found, truths, strict=True)
    ]
    return float(np.mean(errors)) if errors else math.nan


def best_score_threshold(
    found: Sequence[Detections], truths: Sequence[Truth], iou: float = 0.5
) -> float:
    """Return the score from which on detections give the best F1, over all images and classes.

    Args:
        found: Detections of each image.
        truths: Truths of each image.
        iou: The overlap at which a detection marks a truth.

    Returns:
        The lowest score that counts as found; of equally good thresholds the highest, and 0.5
        where no detection marks anything.
    """
    scores, hits, total = _pooled(found, truths, iou)
    thresholds, marked = _by_threshold(scores, hits)
    kept = _by_threshold(scores, np.ones_like(hits))[1]
    f1 = 2 * marked / np.maximum(kept + total, 1)
    return float(thresholds[f1.argmax()]) if f1.any() else NO_CHOICE


def _pooled(
    found: Sequence[Detections], truths: Sequence[Truth], iou: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """Return the scores of all detections, whether each marks a truth, and the number of truths."""
    if len(found) != len(truths):
        raise DataError(f"there are detections of {len(found)} images and truths of {len(truths)}")
    pairs = list(zip(found, truths, strict=True))
    hits = [match(f, t, [iou])[:, 0].numpy() >= 0 for f, t in pairs]
    scores = [_numbers(f.scores) for f in found]
    total = sum(len(t.labels) for t in truths)
    return np.concatenate([[], *scores]), np.concatenate([np.empty(0, bool), *hits]), total


def _by_threshold(
    scores: NDArray[np.float64], counted: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return each score, descending, and how many of what counts have it or a higher one."""
    thresholds, place = np.unique(-scores, return_inverse=True)
    counts = np.bincount(place[counted], minlength=len(thresholds)).cumsum()
    return -thresholds, counts.astype(np.int64)


def _overlap(ours: Tensor, theirs: Tensor) -> NDArray[np.float64]:
    """Return the IoU of every pair, in double precision as COCO has it, shape (m, n)."""
    a, b = _numbers(ours)[:, None], _numbers(theirs)[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    areas = [(each[..., 2:] - each[..., :2]).prod(axis=-1) for each in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(union), where=union > 0))


def _numbers(values: Tensor) -> NDArray[np.float64]:
    return values.detach().cpu().double().numpy()


def _float(values: Tensor) -> Tensor:
    return values.detach().cpu().float()


def _defined(value: float) -> float:
    """Return NaN for -1, COCO's sign of no truth."""
    return math.nan if value < 0 else value

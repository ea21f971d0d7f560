"""Suppression of boxes that mark an object twice: pure functions on the boxes of one image."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

Floats = NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]


class Detections(NamedTuple):
    """What was found in one image.

    Attributes:
        boxes: x0, y0, x1, y1 in pixels, end-exclusive, shape (m, 4).
        labels: Indices of the foreground classes, shape (m,).
        scores: In [0, 1], shape (m,).
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor

    def take(self, rows: Tensor) -> Detections:
        """Return some of them: a mask or indices, shape (m,) or (k,)."""
        return Detections(self.boxes[rows], self.labels[rows], self.scores[rows])

    def above(self, score: float) -> Detections:
        """Return those with at least this score."""
        return self.take(self.scores >= score)


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Suppression:
    """How double detections go, and which scores count as found.

    Attributes:
        kind: `hard` keeps the best of the boxes of a class that overlap; `agnostic` does so over
            all classes; `soft` lowers the scores of the others; `weighted_fusion` averages them.
        iou: Boxes that overlap by more mark the same object; not used by `soft`.
        sigma: How far from an overlap of one `soft` still lowers scores; used by it alone.
        score: Detections with less are not reported; `auto` is tuned on the validation data.
            Average precision looks at all detections.
    """

    kind: Literal["hard", "agnostic", "soft", "weighted_fusion"]
    iou: Share
    sigma: Annotated[float, Field(gt=0)]
    score: Share | Literal["auto"]

    def __call__(self, found: Detections, *, limit: int, floor: float) -> Detections:
        """Return at most `limit` detections of at least `floor`, by descending score."""
        if self.kind == "hard":
            kept = hard(found, self.iou)
        elif self.kind == "agnostic":
            kept = agnostic(found, self.iou)
        elif self.kind == "soft":
            kept = soft(found, self.sigma, limit)
        else:
            kept = weighted_fusion(found, self.iou)
        return Detections(*(each[:limit] for each in kept)).above(floor)


def hard(found: Detections, iou: float) -> Detections:
    """Keep boxes that no better box of their class overlaps by more than `iou`; best first."""
    return found.take(batched_nms(*_columns(found), iou))


def agnostic(found: Detections, iou: float) -> Detections:
    """Keep boxes that no better box of any class overlaps by more than `iou`; best first."""
    boxes, scores, _ = _columns(found)
    return found.take(nms(boxes, scores, iou))


def soft(found: Detections, sigma: float, limit: int) -> Detections:
    """Lower scores by a Gaussian of the overlap with every better box of the class.

    Soft-NMS of Bodla et al. (2017, arXiv 1704.04503): the best box is taken, the scores of the
    others are multiplied by exp(-IoU² / sigma), and so on.

    Args:
        found: Detections in any order.
        sigma: Of the Gaussian; positive.
        limit: How many to take; those after them have lower scores.

    Returns:
        At most `limit` detections with their lowered scores, which descend.
    """
    boxes, scores, labels = _columns(found)
    gone = torch.zeros_like(scores, dtype=torch.bool)
    taken = labels.new_empty(min(limit, len(scores)))
    final = scores.new_empty(len(taken))
    for rank in range(len(taken)):
        best = scores.masked_fill(gone, -1).argmax()  # below every score
        taken[rank], final[rank], gone[best] = best, scores[best], True
        overlap = box_iou(boxes[best][None], boxes)[0] * (labels == labels[best])
        scores = scores * torch.exp(-(overlap**2) / sigma)
    return Detections(found.boxes[taken], labels[taken], final)


def weighted_fusion(found: Detections, iou: float) -> Detections:
    """Fuse boxes of a class that overlap into their mean, weighted by score.

    Weighted boxes fusion of Solovyev et al. (2021, arXiv 1910.13302) on the boxes of one model. By
    descending score each box joins the fused box that it overlaps most, if by more than `iou`, or
    founds one. A fused box has the best score of its members: their mean, which is right among
    several models, would punish objects for which one model has many boxes.

    Returns:
        The fused boxes, by descending score.
    """
    order = found.scores.argsort(descending=True, stable=True)
    boxes, labels, scores = (each[order].detach().cpu().double().numpy() for each in found)
    fused = np.zeros((len(boxes), 4))
    weights = np.zeros(len(boxes))
    founders: list[int] = []
    for row, box in enumerate(boxes):
        overlap = _overlaps(box, fused[: len(founders)])
        overlap[labels[founders] != labels[row]] = 0
        place = int(overlap.argmax()) if founders else 0
        if not founders or overlap[place] <= iou:
            place = len(founders)
            founders.append(row)
        # a box of score zero may found a fused box, which needs some weight
        weight = max(scores[row], np.finfo(np.float64).tiny)
        weights[place] += weight
        fused[place] += (box - fused[place]) * (weight / weights[place])
    kept = found.take(order[torch.tensor(founders, dtype=torch.long, device=order.device)])
    return kept._replace(boxes=torch.from_numpy(fused[: len(founders)]).to(found.boxes))


def _columns(found: Detections) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes, scores and labels; what torchvision wants, in full precision."""
    return found.boxes.float(), found.scores.float(), found.labels


def _overlaps(box: Floats, others: Floats) -> Floats:
    """Return the IoU of a box (4,) with others (n, 4)."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(box[2:] - box[:2])
    return np.asarray(shared / np.maximum(areas - shared, np.finfo(np.float64).tiny))

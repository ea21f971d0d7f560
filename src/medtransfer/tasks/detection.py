"""Object detection: boxes with classes and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from medtransfer.analysis.statistics.average_precision import IOUS, match_column, truth_column
from medtransfer.backbones.base import Backbone
from medtransfer.data.base import Annotation, Boxes
from medtransfer.data.loading import Batch, Data
from medtransfer.heads.base import Head
from medtransfer.heads.detection import DetectionHead
from medtransfer.heads.suppression import Detections
from medtransfer.tasks import box_metrics
from medtransfer.tasks.base import Direction, Stage, Task
from medtransfer.tasks.box_metrics import Truth
from medtransfer.tasks.examples import Case, Examples, Panel, extremes
from medtransfer.tasks.judgement import Judgement

METRICS = (
    *("map", "ap50", "ap75", "froc", "count_error"),
    *(f"sensitivity_{rate:g}" for rate in box_metrics.FROC_RATES),
)


class Detection(Task):
    """Boxes with classes and scores; metrics over all images of a split.

    `map` is COCO's mean average precision over overlaps from 0.50 to 0.95, `ap50` that at 0.50, for
    each class too; `froc` the mean sensitivity at 1/8 to 8 false positives per image; `count_error`
    how many objects too many or too few are reported in an image, with the head's score threshold,
    which is chosen on validation where it is `auto`.

    Args:
        iou: Overlap at which a box marks an object, for FROC and the score threshold.
        **parts: See `Task`.
    """

    requires: ClassVar[Annotation] = "boxes"
    headline: ClassVar[str] = "map"
    represents: ClassVar[Literal["embedding", "pyramid"]] = "pyramid"
    head_base: ClassVar[type[Head]] = DetectionHead
    loss_base: ClassVar[type[nn.Module] | None] = None

    def __init__(self, *, iou: Annotated[float, Field(gt=0, le=1)], **parts: Any) -> None:
        super().__init__(**parts)
        self.iou = iou
        # chosen on validation data, part of the model from then on
        fixed = self.detector.nms.score
        start = box_metrics.NO_CHOICE if fixed == "auto" else fixed
        self.register_buffer("threshold", torch.tensor(float(start)))

    @property
    def detector(self) -> DetectionHead:
        """The head."""
        return cast("DetectionHead", self.head)

    @classmethod
    def direction(cls, metric: str) -> Direction:
        """See `Task.direction`; a class's own metric, such as `ap50_cell`, goes like all's."""
        if not metric.startswith("ap50_"):
            cls.known(metric, METRICS)
        return "min" if metric == "count_error" else "max"

    @classmethod
    def head_arguments(cls, backbone: Backbone, data: Data) -> dict[str, Any]:
        """See `Task.head_arguments`; anchors may follow the boxes of the training images."""
        foreground = data.decoded.foreground
        assert foreground is not None
        assert foreground.boxes is not None
        seen = [foreground.boxes[i].boxes for i in data.train]
        return {
            "channels": backbone.channels,
            "strides": backbone.strides,
            "image_size": data.spec.image_size,
            "outputs": len(data.spec.class_names),
            "boxes_seen": np.concatenate(seen),
        }

    def forward(self, images: Tensor) -> list[Detections]:
        """Return what is found in images (N, C, H, W) in [0, 1]."""
        return self.detector.detect(self.backbone.pyramid(images), self._size)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """See `Task.outputs`: every candidate, see `DetectionHead.everything`."""
        boxes, scores = self.detector.everything(self.backbone.pyramid(images), self._size)
        return {"boxes": boxes, "scores": scores}

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.step`; keeps what is found and what there is to find, each with its image."""
        levels = self.levels(batch)
        boxes, labels = batch["boxes"], batch["labels"]
        if self.training:
            losses = self.detector.losses(levels, self._size, boxes, labels)
            return torch.stack(list(losses.values())).sum(), {}
        found = self.detector.detect(levels, self._size)
        index = batch["index"]
        kept = {
            "index": index,
            "boxes": torch.cat([each.boxes for each in found]),
            "labels": torch.cat([each.labels for each in found]),
            "scores": torch.cat([each.scores for each in found]),
            "image": _repeat(index, [len(each.scores) for each in found]),
            "true_boxes": torch.cat(boxes),
            "true_labels": torch.cat(labels),
            "true_image": _repeat(index, [len(each) for each in labels]),
        }
        return index.new_zeros((), dtype=torch.float32), kept  # it has a loss in training alone

    def evidence(self, images: Tensor) -> Tensor:
        """See `Task.evidence`: the sum of the scores that are reported, before suppression."""
        threshold = float(self.get_buffer("threshold"))
        each = [self.outputs(image[None])["scores"][0] for image in images]
        return torch.stack([(scores * (scores >= threshold)).sum(0) for scores in each])

    def judge(self, batch: Batch) -> list[Judgement]:
        """See `Task.judge`: what is found with a score of `threshold` or more, and its number."""
        threshold = float(self.get_buffer("threshold"))
        return [
            self._said(index, each.above(threshold))
            for index, each in zip(batch["index"].tolist(), self(batch["image"]), strict=True)
        ]

    def _said(self, index: int, found: Detections) -> Judgement:
        boxes, labels, scores = (each.cpu().numpy() for each in found)
        counts = np.bincount(labels, minlength=len(self.spec.class_names)).tolist()
        values = {f"found_{n}": c for n, c in zip(self.spec.class_names, counts, strict=True)}
        return Judgement(index, values, boxes=Boxes(boxes, labels), scores=scores)

    def evaluate(self, stage: Stage, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """See `Task.evaluate`."""
        found, truths = _by_image(kept)
        threshold = self.get_buffer("threshold")
        if stage == "val" and self.detector.nms.score == "auto":
            threshold.fill_(box_metrics.best_score_threshold(found, truths, self.iou))
        return {
            **box_metrics.coco_metrics(found, truths, self.spec.class_names),
            **box_metrics.froc(found, truths, self.iou),
            "count_error": box_metrics.count_error(found, truths, float(threshold)),
        }

    def columns(self, kept: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """See `Task.columns`: how many objects of each class there are, and are reported."""
        found, truths = _by_image(kept)
        threshold = float(self.get_buffer("threshold"))
        columns = {}
        for k, name in enumerate(self.spec.class_names):
            columns[truth_column(name)] = np.array([int((t.labels == k).sum()) for t in truths])
            columns[f"found_{name}"] = np.array(
                [int(((f.labels == k) & (f.scores >= threshold)).sum()) for f in found]
            )
        return columns

    def tables(self, kept: Mapping[str, Tensor]) -> dict[str, dict[str, NDArray[Any]]]:
        """See `Task.tables`: `detections`, and which object each marks at which overlap."""
        found, truths = _by_image(kept)
        matches = torch.cat([box_metrics.match(f, t) for f, t in zip(found, truths, strict=True)])
        names = np.array(self.spec.class_names, dtype=object)
        boxes = torch.cat([each.boxes for each in found]).numpy()
        counts = [len(each.scores) for each in found]
        return {
            "detections": {
                "index": _repeat(kept["index"], counts).numpy(),
                "class": names[torch.cat([each.labels for each in found]).numpy()],
                "score": torch.cat([each.scores for each in found]).numpy(),
                **{key: boxes[:, i] for i, key in enumerate(("x0", "y0", "x1", "y1"))},
                **{match_column(iou): matches[:, i].numpy() for i, iou in enumerate(IOUS)},
            }
        }

    def examples(self, data: Data, kept: Mapping[str, Tensor]) -> Examples:  # noqa: ARG002
        """See `Task.examples`: the best, the median and the worst by F1 of the image."""
        threshold = float(self.get_buffer("threshold"))
        everything, truths = _by_image(kept)
        found = [each.above(threshold) for each in everything]
        f1 = np.array([_f1(f, t, self.iou) for f, t in zip(found, truths, strict=True)])

        def case(row: int) -> Case:
            theirs, ours = truths[row], found[row]
            panels = (
                Panel("truth", boxes=Boxes(theirs.boxes.numpy(), theirs.labels.numpy())),
                Panel(
                    "detections",
                    boxes=Boxes(ours.boxes.numpy(), ours.labels.numpy()),
                    scores=ours.scores.numpy(),
                ),
            )
            words = f"F1 {f1[row]:.2f} ({len(theirs.labels)} true, {len(ours.labels)} found)"
            return Case(int(kept["index"][row]), (words,), panels)

        groups = {name: [case(row) for row in rows] for name, rows in extremes(f1).items()}
        return Examples(
            title=f"Best, median and worst of {len(f1)} test images by F1 at IoU {self.iou:g}",
            note=f"detections with a score of at least {threshold:.2f}; F1 of each image,"
            " over all classes",
            names=self.spec.class_names,
            groups=groups,
        )

    @property
    def _size(self) -> tuple[int, int]:
        return (self.spec.image_size, self.spec.image_size)


def _repeat(index: Tensor, counts: list[int]) -> Tensor:
    return index.repeat_interleave(torch.tensor(counts, device=index.device))


def _by_image(kept: Mapping[str, Tensor]) -> tuple[list[Detections], list[Truth]]:
    """Return what was found and what there is, image by image."""
    found, truths = [], []
    for index in kept["index"]:
        ours, theirs = kept["image"] == index, kept["true_image"] == index
        found.append(Detections(kept["boxes"][ours], kept["labels"][ours], kept["scores"][ours]))
        truths.append(Truth(kept["true_boxes"][theirs], kept["true_labels"][theirs]))
    return found, truths


def _f1(found: Detections, truth: Truth, iou: float) -> float:
    """Return the F1 of one image, in [0, 1]; NaN where there is nothing, and nothing is found."""
    hits = int((box_metrics.match(found, truth, [iou]) >= 0).sum())
    everything = len(found.labels) + len(truth.labels)
    return 2 * hits / everything if everything else math.nan

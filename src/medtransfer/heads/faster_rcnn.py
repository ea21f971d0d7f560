"""Faster R-CNN: one part proposes regions, another looks at each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn
from torchvision.models import detection as torchvision_models
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image
from torchvision.ops.poolers import LevelMapper

from medtransfer.heads.detection import (
    ALL,
    NEVER,
    Count,
    DetectionHead,
    NoBackbone,
    Targets,
    Weights,
    images,
)
from medtransfer.heads.fpn import Anchors, FeaturePyramid, Levels, Ratios, Sizes, anchor_sizes
from medtransfer.heads.suppression import Share, Suppression


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Proposals:
    """How regions are proposed, and how that is learned.

    Attributes:
        positive_iou: Anchors that overlap a truth by at least this are to find it.
        negative_iou: Anchors that overlap every truth by less are background.
        sampled: Anchors of an image that are learned from.
        positive_share: Of those, at most.
        candidates: Of each level, before suppression.
        nms_iou: Proposals of a level that overlap by more mark the same region.
        kept: Of an image, after suppression.
    """

    positive_iou: Share
    negative_iou: Share
    sampled: Count
    positive_share: Share
    candidates: Count
    nms_iou: Share
    kept: Count


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Regions:
    """How regions are looked at, and how that is learned.

    Attributes:
        positive_iou: Proposals that overlap a truth by at least this are of its class.
        sampled: Proposals of an image that are learned from.
        positive_share: Of those, at most.
        size: Height and width in pixels to which a region is brought.
        samples: Points in each direction that are averaged for one of these pixels.
        canonical_size: Side in pixels of a region that is taken from stride 16; one half as large
            is taken from stride 8, and so on.
        hidden: Units of the two layers between a region and its class and box.
    """

    positive_iou: Share
    sampled: Count
    positive_share: Share
    size: Count
    samples: Count
    canonical_size: Count
    hidden: Count


class FasterRCNN(DetectionHead):
    """Faster R-CNN (Ren et al. 2015, arXiv 1506.01497) on a feature pyramid.

    Args:
        channels: See `DetectionHead`, as for `strides`, `outputs`, `image_size`, `boxes_seen`.
        strides: Of the backbone's levels.
        outputs: Foreground classes.
        image_size: In pixels.
        levels: The levels that it looks at; regions are taken from those up to stride 32.
        anchors: Sizes in pixels for each level, or `auto`; see `fpn.anchor_sizes`.
        anchors_per_level: Sizes of each level, where they are `auto`.
        ratios: Heights of anchors divided by their widths.
        proposals: Of the first part.
        regions: Of the second.
        min_score: See `DetectionHead`, as for `max_detections`, `nms` and `weights`.
        max_detections: Of an image.
        nms: How double detections go.
        weights: Of `proposal`, `proposal_box`, `classification` and `box`.
        boxes_seen: Of the training images.
    """

    renamed: ClassVar = {
        "loss_objectness": "proposal",
        "loss_rpn_box_reg": "proposal_box",
        "loss_classifier": "classification",
        "loss_box_reg": "box",
    }
    background: ClassVar = 1

    def __init__(
        self,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        outputs: int,
        image_size: int,
        levels: Levels,
        anchors: Literal["auto"] | Sizes,
        anchors_per_level: Count,
        ratios: Ratios,
        proposals: Proposals,
        regions: Regions,
        min_score: Share,
        max_detections: Count,
        nms: Suppression,
        weights: Weights,
        boxes_seen: ArrayLike | None = None,
    ) -> None:
        super().__init__(outputs, nms, min_score, max_detections, weights)
        self.pyramid = FeaturePyramid(channels, strides, image_size, levels, "pooling")
        sizes = anchor_sizes(self.pyramid.strides, anchors, anchors_per_level, boxes_seen)
        pixels = levels.width * regions.size**2
        self.detector: Any = torchvision_models.FasterRCNN(  # type: ignore[no-untyped-call]
            NoBackbone(levels.width),
            rpn_anchor_generator=Anchors(self.pyramid.strides, sizes, ratios),
            rpn_head=_Proposer(levels.width, len(sizes[0]) * len(ratios)),
            rpn_pre_nms_top_n_train=proposals.candidates,
            rpn_pre_nms_top_n_test=proposals.candidates,
            rpn_post_nms_top_n_train=proposals.kept,
            rpn_post_nms_top_n_test=proposals.kept,
            rpn_nms_thresh=proposals.nms_iou,
            rpn_fg_iou_thresh=proposals.positive_iou,
            rpn_bg_iou_thresh=proposals.negative_iou,
            rpn_batch_size_per_image=proposals.sampled,
            rpn_positive_fraction=proposals.positive_share,
            box_roi_pool=_pooling(self.pyramid.strides, regions),
            box_head=TwoMLPHead(pixels, regions.hidden),  # type: ignore[no-untyped-call]
            box_predictor=_Predictor(regions.hidden, self.classes),  # type: ignore[no-untyped-call]
            box_score_thresh=min_score,
            box_nms_thresh=NEVER,
            box_detections_per_img=ALL,
            box_fg_iou_thresh=regions.positive_iou,
            box_bg_iou_thresh=regions.positive_iou,
            box_batch_size_per_image=regions.sampled,
            box_positive_fraction=regions.positive_share,
        )

    def raw_losses(
        self, features: list[Tensor], size: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """See `DetectionHead.raw_losses`."""
        with _mode(self.detector, training=True):
            return self._both(features, size, targets)[1]

    def candidates(self, features: list[Tensor], size: tuple[int, int]) -> Targets:
        """See `DetectionHead.candidates`."""
        with _mode(self.detector, training=False):
            return self._both(features, size, None)[0]

    def everything(self, levels: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """See `DetectionHead.everything`: of one image, a box for each class of each proposal.

        Proposals themselves are suppressed: that is part of how the second stage sees the image.
        """
        features = self.pyramid(levels, size)
        named = {str(k): level for k, level in enumerate(features)}
        with _mode(self.detector, training=False):
            (proposals,), _ = self.detector.rpn(images(features, size), named, None)
        second = self.detector.roi_heads
        regions = second.box_head(second.box_roi_pool(named, [proposals], [size]))
        logits, deltas = second.box_predictor(regions)
        decoded = second.box_coder.decode(deltas, [proposals])[:, 1:]
        scores = logits.softmax(1)[:, 1:]
        # a box is of one class here, and has no score in the others
        alone = scores[..., None] * torch.eye(scores.shape[1], device=scores.device)
        boxes = clip_boxes_to_image(decoded.flatten(0, 1), size)
        return boxes[None], alone.flatten(0, 1)[None]

    def _both(
        self, features: list[Tensor], size: tuple[int, int], targets: Targets | None
    ) -> tuple[Targets, dict[str, Tensor]]:
        named = {str(k): level for k, level in enumerate(features)}
        proposed, first = self.detector.rpn(images(features, size), named, targets)
        found, second = self.detector.roi_heads(named, proposed, [size] * len(proposed), targets)
        return found, first | second


class _Proposer(RPNHead):
    """The part that proposes; its outputs are float32 under any precision."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        scores, boxes = super().forward(x)
        return [each.float() for each in scores], [each.float() for each in boxes]


class _Predictor(FastRCNNPredictor):
    """Class and box of each region; its outputs are float32 under any precision."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, boxes = super().forward(x)  # type: ignore[no-untyped-call]
        return scores.float(), boxes.float()


def _pooling(strides: Sequence[int], regions: Regions) -> MultiScaleRoIAlign:
    """Return what takes regions from the levels up to stride 32.

    Scales are set here, since torchvision would guess them from the size of the image, which the
    neck has filled up.
    """
    used = [stride for stride in strides if stride <= 32]
    pooling: Any = MultiScaleRoIAlign(
        [str(k) for k in range(len(used))], regions.size, regions.samples
    )
    pooling.scales = [1 / stride for stride in used]
    pooling.map_levels = LevelMapper(
        int(np.log2(used[0])), int(np.log2(used[-1])), canonical_scale=regions.canonical_size
    )
    return cast("MultiScaleRoIAlign", pooling)


@contextmanager
def _mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Make torchvision return losses or detections, which it decides by the mode.

    Nothing else in its parts depends on it: there is neither BatchNorm nor dropout.
    """
    before = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(before)

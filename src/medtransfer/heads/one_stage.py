"""RetinaNet and FCOS: every pixel of every level is asked at once for objects."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

from numpy.typing import ArrayLike
from pydantic import Field
from torch import Tensor, nn
from torchvision.models import detection as torchvision_models
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import clip_boxes_to_image

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
from medtransfer.heads.fpn import (
    Anchors,
    FeaturePyramid,
    Levels,
    Ratios,
    Sizes,
    anchor_sizes,
    group_norm,
)
from medtransfer.heads.suppression import Share, Suppression


class _OneStage(DetectionHead):
    """A detector that scores every anchor at once; `detector` is torchvision's."""

    detector: Any

    def raw_losses(
        self, features: list[Tensor], size: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """See `DetectionHead.raw_losses`."""
        outputs, anchors, counts = self._outputs(features, size)
        return self._compared(targets, outputs, anchors, counts)

    def candidates(self, features: list[Tensor], size: tuple[int, int]) -> Targets:
        """See `DetectionHead.candidates`."""
        outputs, anchors, counts = self._outputs(features, size)
        by_level = {name: list(each.split(counts, dim=1)) for name, each in outputs.items()}
        anchors_by_level = [list(each.split(counts)) for each in anchors]
        found: Targets = self.detector.postprocess_detections(
            by_level, anchors_by_level, [size] * len(anchors)
        )
        return found

    def everything(self, levels: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """See `DetectionHead.everything`: a box for each anchor."""
        features = self.pyramid(levels, size)
        outputs = {name: each.float() for name, each in self.detector.head(features).items()}
        one = images([each[:1] for each in features], size)
        (anchors,) = self.detector.anchor_generator(one, features)  # alike for all images
        deltas = outputs["bbox_regression"]
        of_all = anchors.expand_as(deltas).flatten(0, 1)
        boxes = self._decoded(deltas.flatten(0, 1), of_all).view_as(deltas)
        return clip_boxes_to_image(boxes, size), self._scores(outputs)

    @abstractmethod
    def _decoded(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return boxes (n, 4) of what was regressed for anchors (n, 4)."""

    @abstractmethod
    def _scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return the score of each class for each anchor, (N, A, K)."""

    @abstractmethod
    def _compared(
        self,
        targets: Targets,
        outputs: dict[str, Tensor],
        anchors: list[Tensor],
        counts: list[int],
    ) -> dict[str, Tensor]:
        """Return the losses of torchvision's detector."""

    def _outputs(
        self, features: list[Tensor], size: tuple[int, int]
    ) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """Return outputs in float32, the anchors of each image, and their number by level."""
        outputs = {name: each.float() for name, each in self.detector.head(features).items()}
        anchors = self.detector.anchor_generator(images(features, size), features)
        each = self.detector.anchor_generator.num_anchors_per_location()
        counts = [level[0, 0].numel() * n for level, n in zip(features, each, strict=True)]
        return outputs, anchors, counts


class RetinaNet(_OneStage):
    """RetinaNet (Lin et al. 2017, arXiv 1708.02002), with group norm.

    The focal loss has the paper's alpha of 0.25 and gamma of 2, and both towers its four layers.

    Args:
        channels: See `DetectionHead`, as for `strides`, `outputs`, `image_size`, `boxes_seen`.
        strides: Of the backbone's levels.
        outputs: Foreground classes.
        image_size: In pixels.
        levels: The levels that it looks at.
        anchors: Sizes in pixels for each level, or `auto`; see `fpn.anchor_sizes`.
        anchors_per_level: Sizes of each level, where they are `auto`.
        ratios: Heights of anchors divided by their widths.
        positive_iou: Anchors that overlap a truth by at least this are to find it.
        negative_iou: Anchors that overlap every truth by less are background.
        candidates: Of each level, before suppression.
        min_score: See `DetectionHead`, as for `max_detections`, `nms` and `weights`.
        max_detections: Of an image.
        nms: How double detections go.
        weights: Of `classification` and `box`.
        boxes_seen: Of the training images.
    """

    renamed: ClassVar = {"classification": "classification", "bbox_regression": "box"}

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
        positive_iou: Share,
        negative_iou: Share,
        candidates: Count,
        min_score: Share,
        max_detections: Count,
        nms: Suppression,
        weights: Weights,
        boxes_seen: ArrayLike | None = None,
    ) -> None:
        super().__init__(outputs, nms, min_score, max_detections, weights)
        self.pyramid = FeaturePyramid(channels, strides, image_size, levels, "convolution")
        sizes = anchor_sizes(self.pyramid.strides, anchors, anchors_per_level, boxes_seen)
        each = len(sizes[0]) * len(ratios)
        self.detector = torchvision_models.RetinaNet(  # type: ignore[no-untyped-call]
            NoBackbone(levels.width),
            self.classes,
            anchor_generator=Anchors(self.pyramid.strides, sizes, ratios),
            head=RetinaNetHead(levels.width, each, self.classes, norm_layer=group_norm),
            score_thresh=min_score,
            nms_thresh=NEVER,
            detections_per_img=ALL,
            fg_iou_thresh=positive_iou,
            bg_iou_thresh=negative_iou,
            topk_candidates=candidates,
        )

    def _decoded(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        return cast("Tensor", self.detector.box_coder.decode_single(deltas, anchors))

    def _scores(self, outputs: dict[str, Tensor]) -> Tensor:
        return outputs["cls_logits"].sigmoid()

    def _compared(
        self,
        targets: Targets,
        outputs: dict[str, Tensor],
        anchors: list[Tensor],
        counts: list[int],  # noqa: ARG002
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.detector.compute_loss(targets, outputs, anchors)
        return found


class FCOS(_OneStage):
    """FCOS (Tian et al. 2019, arXiv 1904.01355): no anchors, a box from every pixel of a level.

    Objects of 4 to 8 strides, measured from such a pixel to the farthest side, belong to a level;
    smaller ones to the finest, larger ones to the coarsest.

    Args:
        channels: See `DetectionHead`, as for `strides`, `outputs`, `image_size`, `boxes_seen`.
        strides: Of the backbone's levels.
        outputs: Foreground classes.
        image_size: In pixels.
        levels: The levels that it looks at.
        center_radius: Pixels within this many strides of an object's centre are to find it.
        candidates: Of each level, before suppression.
        min_score: See `DetectionHead`, as for `max_detections`, `nms` and `weights`; a score is
            the root of those of class and centerness.
        max_detections: Of an image.
        nms: How double detections go.
        weights: Of `classification`, `box` and `centerness`.
        boxes_seen: Of the training images; without anchors nothing is fitted to them.
    """

    renamed: ClassVar = {
        "classification": "classification",
        "bbox_regression": "box",
        "bbox_ctrness": "centerness",
    }

    def __init__(
        self,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        outputs: int,
        image_size: int,
        levels: Levels,
        center_radius: Annotated[float, Field(gt=0)],
        candidates: Count,
        min_score: Share,
        max_detections: Count,
        nms: Suppression,
        weights: Weights,
        boxes_seen: ArrayLike | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__(outputs, nms, min_score, max_detections, weights)
        self.pyramid = FeaturePyramid(channels, strides, image_size, levels, "convolution")
        one = [(float(stride),) for stride in self.pyramid.strides]  # stands for the pixel
        head = FCOSHead(levels.width, 1, self.classes)
        for norm in head.modules():
            if isinstance(norm, nn.GroupNorm):  # 32 groups, however many channels
                norm.num_groups = group_norm(norm.num_channels).num_groups
        self.detector = torchvision_models.FCOS(
            NoBackbone(levels.width),
            self.classes,
            anchor_generator=Anchors(self.pyramid.strides, one, (1.0,)),
            head=head,
            center_sampling_radius=center_radius,
            score_thresh=min_score,
            nms_thresh=NEVER,
            detections_per_img=ALL,
            topk_candidates=candidates,
        )

    def _decoded(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        return cast("Tensor", self.detector.box_coder.decode(deltas, anchors))

    def _scores(self, outputs: dict[str, Tensor]) -> Tensor:
        inside, central = outputs["cls_logits"].sigmoid(), outputs["bbox_ctrness"].sigmoid()
        return (inside * central).sqrt()

    def _compared(
        self,
        targets: Targets,
        outputs: dict[str, Tensor],
        anchors: list[Tensor],
        counts: list[int],
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.detector.compute_loss(targets, outputs, anchors, counts)
        return found

"""What a head of detection is, and the way that all of them go.

The detectors are torchvision's. Its own resizing and normalising never run: images come as squares
of one size, and backbones normalise. Its own suppression is off, so that `head.nms` is the only
one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from medtransfer.errors import ConfigError
from medtransfer.heads.base import Head
from medtransfer.heads.fpn import FeaturePyramid
from medtransfer.heads.suppression import Detections, Suppression

Count = Annotated[int, Field(gt=0)]

NEVER = 1.0  # the overlap that no two boxes exceed
ALL = 1_000_000  # detections

Targets = list[dict[str, Tensor]]
"""The truth of each image in torchvision's words: `boxes` and `labels`."""

Weights = dict[str, Annotated[float, Field(ge=0)]]
"""What each loss of a detector is multiplied by."""


class DetectionHead(Head):
    """Turns the pyramid of a backbone into boxes with classes and scores.

    It is built with `channels` and `strides` of the pyramid, fine to coarse, `image_size` in
    pixels, at which strides were measured, `outputs`, the foreground classes K, and `boxes_seen`,
    the boxes of the training images (n, 4), or None. Labels are 0 to K - 1; only torchvision's
    Faster R-CNN counts the background as a class, and its head converts.

    Args:
        outputs: K.
        nms: How double detections go.
        min_score: Candidates with less are not looked at.
        max_detections: Of an image, after suppression.
        weights: What each loss is multiplied by, by name.

    Raises:
        ConfigError: If `weights` has not exactly the losses that this detector has.
    """

    renamed: ClassVar[Mapping[str, str]]
    """Our name of each loss, by torchvision's."""
    background: ClassVar[int] = 0
    """Classes that come before the first one of the foreground."""
    pyramid: FeaturePyramid

    def __init__(
        self,
        outputs: int,
        nms: Suppression,
        min_score: float,
        max_detections: int,
        weights: Weights,
    ) -> None:
        super().__init__()
        wanted = sorted(self.renamed.values())
        if sorted(weights) != wanted:
            raise ConfigError(
                f"head.weights has {', '.join(sorted(weights)) or 'nothing'}",
                remedy=f"give a weight for each of {', '.join(wanted)}",
            )
        self.classes = outputs + self.background
        self.nms = nms
        self.min_score = min_score
        self.max_detections = max_detections
        self.weights = weights

    def losses(
        self,
        levels: Sequence[Tensor],
        size: tuple[int, int],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Return the weighted losses, scalars whose sum is to be learned from.

        Images without any box are learned from as well. A box without area is no truth.

        Args:
            levels: The backbone's pyramid, (N, channels[i], ...).
            size: Height and width of the images in pixels.
            boxes: x0, y0, x1, y1 in pixels for each image, (n_i, 4).
            labels: Classes 0 to K - 1 for each image, (n_i,).
        """
        targets = []
        for each, classes in zip(boxes, labels, strict=True):
            solid = (each[:, 2:] > each[:, :2]).all(1)
            found = {"boxes": each[solid].float(), "labels": classes[solid] + self.background}
            targets.append(found)
        raw = self.raw_losses(self.pyramid(levels, size), size, targets)
        named = {self.renamed[name]: value for name, value in raw.items()}
        return {name: self.weights[name] * value for name, value in named.items()}

    @torch.no_grad()
    def detect(self, levels: Sequence[Tensor], size: tuple[int, int]) -> list[Detections]:
        """Return what is found in each image, by descending score.

        Scores below `nms.score` are among it: average precision wants them.

        Args:
            levels: The backbone's pyramid, (N, channels[i], ...).
            size: Height and width of the images in pixels.
        """
        found = []
        for each in self.candidates(self.pyramid(levels, size), size):
            candidates = Detections(
                each["boxes"].float(), each["labels"] - self.background, each["scores"].float()
            )
            solid = (candidates.boxes[:, 2:] > candidates.boxes[:, :2]).all(1)
            found.append(
                self.nms(candidates.take(solid), limit=self.max_detections, floor=self.min_score)
            )
        return found

    @abstractmethod
    def everything(self, levels: Sequence[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return every box that the detector considers, whatever its score, unsuppressed.

        Args:
            levels: The backbone's pyramid, (N, channels[i], ...).
            size: Height and width of the images in pixels.

        Returns:
            Boxes (N, A, 4) in pixels, within the image, and the score of each class, (N, A, K).
        """

    @abstractmethod
    def raw_losses(
        self, features: list[Tensor], size: tuple[int, int], targets: Targets
    ) -> dict[str, Tensor]:
        """Return the losses under torchvision's names, before weights.

        Args:
            features: Maps of the feature pyramid, (N, width, ...), float32.
            size: Height and width of the images in pixels.
            targets: The truths, labels as torchvision counts them.
        """

    @abstractmethod
    def candidates(self, features: list[Tensor], size: tuple[int, int]) -> Targets:
        """Return `boxes`, `labels` and `scores` of each image before suppression."""


class NoBackbone(nn.Module):
    """Stands where torchvision's detector has a backbone, which it is never asked for.

    Args:
        width: Channels of the levels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_channels = width


def images(features: Sequence[Tensor], size: tuple[int, int]) -> ImageList:
    """Return what torchvision asks of images: how many, and their size. Pixels it does not read."""
    return ImageList(features[0], [size] * len(features[0]))

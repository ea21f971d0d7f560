"""Supervised pre-training: the classes of one dataset, for the good of another."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from medtransfer.backbones.base import Backbone
from medtransfer.pretrain.base import DatasetSource, Learner
from medtransfer.pretrain.images import ImageBatch, Images
from medtransfer.pretrain.views import Views


@dataclass(frozen=True, kw_only=True)
class Supervised(DatasetSource):
    """A linear classifier of the dataset's classes on the embedding.

    Attributes:
        views: How training images are varied.
    """

    views: Views

    def learner(self, backbone: Backbone, material: Images) -> Learner:
        """See `Source.learner`."""
        return ClassLearner(backbone, self.views, material.classes)


class ClassLearner(Learner):
    """A backbone and a linear head on its standardised embedding; cross-entropy.

    Args:
        backbone: What is trained.
        views: How images are varied.
        classes: How many classes there are.
    """

    def __init__(self, backbone: Backbone, views: Views, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.views = views
        self.classify = nn.Sequential(
            nn.BatchNorm1d(backbone.embedding_size, affine=False),
            nn.Linear(backbone.embedding_size, classes),
        )

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """See `Learner.forward`; `accuracy` is the share of images whose class is the likeliest."""
        logits = self.classify(self.backbone.embed(self.views(batch["image"]))).float()
        target = batch["target"]
        accuracy = (logits.argmax(1) == target).float().mean()
        return {"loss": cross_entropy(logits, target), "accuracy": accuracy}

"""Contrastive learning: two views of one image are alike, those of others are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from medtransfer.backbones.base import Backbone
from medtransfer.errors import ConfigError
from medtransfer.pretrain.base import DatasetSource, Learner
from medtransfer.pretrain.images import ImageBatch, Images
from medtransfer.pretrain.views import Views


@dataclass(frozen=True, kw_only=True)
class SimClr(DatasetSource):
    """SimCLR (Chen et al. 2020, arXiv 2002.05709); the other images of a batch are the negatives.

    Attributes:
        temperature: What similarities are divided by; the lower, the more the hardest count.
        projection: Columns of the projection that the loss compares.
        views: What two views of an image may differ in.
    """

    temperature: Annotated[float, Field(gt=0)]
    projection: Annotated[int, Field(ge=1)]
    views: Views

    def learner(self, backbone: Backbone, material: Images) -> Learner:  # noqa: ARG002
        """See `Source.learner`."""
        return ContrastiveLearner(backbone, self.views, self.projection, self.temperature)


class ContrastiveLearner(Learner):
    """A backbone and a projection of its embedding, in which views are compared.

    Args:
        backbone: What is trained.
        views: What two views of an image may differ in.
        projection: Columns of the projection.
        temperature: What similarities are divided by.
    """

    def __init__(
        self, backbone: Backbone, views: Views, projection: int, temperature: float
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.views = views
        self.temperature = temperature
        hidden = backbone.embedding_size
        self.project = nn.Sequential(
            nn.Linear(hidden, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, projection),
        )

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """See `Learner.forward`; `accuracy` is the share of views that are nearest to their twin.

        Raises:
            ConfigError: If the batch is a single image, which nothing can be compared with.
        """
        images = batch["image"]
        if len(images) < 2:
            raise ConfigError(
                "contrastive learning compares the images of a batch, and it holds one",
                remedy="raise trainer.batch_size; 32 or more are better",
            )
        # in one pass, so that both views share the statistics of batch normalisation
        projected = self.project(self.backbone.embed(self.views(images.repeat(2, 1, 1, 1))))
        first, second = projected.chunk(2)
        # a batch may hold an image twice: where it ends one epoch and begins the next
        same = torch.unique(images.flatten(1), dim=0, return_inverse=True)[1]
        loss, accuracy = nt_xent(first, second, self.temperature, same)
        return {"loss": loss, "accuracy": accuracy}


def nt_xent(
    first: Tensor, second: Tensor, temperature: float, same: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the normalised, temperature-scaled cross-entropy, and how often it would be right.

    For each of the 2N views, the other view of its image is to be found among the 2N - 1 others by
    cosine similarity (Chen et al. 2020, equation 1). Computed in float32 in any precision.

    Args:
        first: Projections of the first view of each image, (N, D).
        second: Projections of the second view of each image, (N, D).
        temperature: What similarities are divided by.
        same: A number for each image, (N,): those that share one are not told apart.

    Returns:
        The mean loss, a scalar, and the share of views whose twin is the most similar.
    """
    n = len(first)
    with torch.autocast(first.device.type, enabled=False):
        views = normalize(torch.cat((first, second)).float())
        logits = views @ views.T / temperature
    places = torch.arange(2 * n, device=logits.device)
    twin = places.roll(n)
    label = (places % n if same is None else same.repeat(2)).view(-1, 1)
    barred = (label == label.T).scatter(1, twin.view(-1, 1), value=False)
    logits = logits.masked_fill(barred, -torch.inf)
    return cross_entropy(logits, twin), (logits.argmax(1) == twin).float().mean()

"""Generated images of shapes and textures, with dense targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, smooth_l1_loss

from medtransfer.backbones.base import Backbone
from medtransfer.pretrain.base import GeneratedSource, Learner, Material
from medtransfer.pretrain.shapes import TARGETS, Shapes

WIDTH = 32  # channels of the decoder


@dataclass(frozen=True, kw_only=True)
class Synthetic(GeneratedSource):
    """Domain-randomised shapes, after SynthSeg (Billot et al. 2023): no natural, no patient image.

    The network learns, for every pixel, what the image was before texture, shading, blur and
    speckle: its region's intensity, how strong the texture is, where the edges are.

    Attributes:
        levels: How many levels of the pyramid learn, fine ones first; None for all. What lies above
            keeps its initial values: random features of a trained stem separated images that the
            network had never seen better than features trained to the top did (docs/weights.md).
    """

    trained_on: ClassVar[str] = "generated images of random shapes and textures"

    levels: Annotated[int, Field(ge=1)] | None

    def draw(
        self,
        step: int,  # noqa: ARG002
        size: int,
        channels: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """See `Material.draw`; images (N, C, H, W) in [0, 1] and targets (N, 6, H, W)."""
        return Shapes(self.image_size, channels).batch(size, generator)

    def learner(self, backbone: Backbone, material: Material) -> Learner:  # noqa: ARG002
        """See `Source.learner`."""
        return DenseLearner(backbone, self.levels)


class DenseLearner(Learner):
    """A light decoder: levels are projected to one width and added, coarse to fine.

    Targets are predicted at the resolution of the finest level, so that nearly all of the work is
    the backbone's.

    Args:
        backbone: What is trained.
        levels: How many levels the decoder sees, fine ones first; None for all.
    """

    def __init__(self, backbone: Backbone, levels: int | None) -> None:
        super().__init__()
        self.backbone = backbone
        seen = backbone.channels[:levels]
        self.lateral = nn.ModuleList(nn.Conv2d(c, WIDTH, 1) for c in seen)
        self.predict = nn.Sequential(nn.GELU(), nn.Conv2d(WIDTH, len(TARGETS), 1))

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """See `Learner.forward`; smooth L1 over all targets, with equal weights."""
        images, targets = batch
        levels = zip(self.lateral, self.backbone.pyramid(images), strict=False)
        finer_last = [lateral(level) for lateral, level in levels][::-1]
        merged = finer_last[0]
        for level in finer_last[1:]:
            merged = level + interpolate(merged, level.shape[-2:], mode="bilinear")
        predicted = self.predict(merged).float()
        wanted = adaptive_avg_pool2d(targets, predicted.shape[-2:])
        return {"loss": smooth_l1_loss(predicted, wanted)}

"""Fine-tuning whose feature maps stay near those it started with."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from medtransfer.errors import ConfigError
from medtransfer.strategies.base import BackboneLike
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(kw_only=True)
class Delta(FineTuning):
    """A penalty on the distance of feature maps from those of the starting point.

    After DELTA (Li et al. 2019, arXiv 1901.09229), without its weighting of channels, which takes a
    trained classifier and one pass for each channel. The loss grows by alpha/2 times the squared
    distance of each level of the pyramid from that of the untouched backbone, relative to the
    squared norm of the latter, averaged over levels and images: one alpha suits any network. The
    untouched backbone uses its statistics throughout; where batch normalisation trains, the live
    one normalises by the batch, and the distance is above zero from the first step on.

    Attributes:
        alpha: Strength of the penalty.
    """

    distils: ClassVar[bool] = True

    alpha: Annotated[float, Field(ge=0)]
    source: nn.Module | None = field(init=False, repr=False, default=None)

    def learning(self, model: nn.Module) -> list[str]:
        """See `FineTuning.learning`."""
        if not model.backbone.channels:  # type: ignore[union-attr]
            raise ConfigError(
                "strategy=delta compares feature maps, and the backbone gives none",
                remedy="choose another backbone, or strategy=l2_sp, which compares parameters",
            )
        return super().learning(model)

    def begin(self, model: nn.Module) -> None:
        """See `Strategy.begin`."""
        self.source = copy.deepcopy(model.get_submodule("backbone")).eval().requires_grad_(False)

    def penalty(
        self,
        model: nn.Module,  # noqa: ARG002
        images: Tensor,
        levels: list[Tensor],
    ) -> Tensor:
        """See `Strategy.penalty`."""
        assert self.source is not None
        with torch.no_grad():
            source = cast("BackboneLike", self.source.to(images.device)).pyramid(images)
        distances = [
            _squares(now.float() - then.float()) / _scale(then.float())
            for now, then in zip(levels, source, strict=True)
        ]
        return self.alpha / 2 * torch.stack(distances).mean()


def _squares(values: Tensor) -> Tensor:
    """Return the sum of squares of each image, (N,)."""
    return values.square().flatten(1).sum(1)


def _scale(values: Tensor) -> Tensor:
    """Return the same, and infinity for maps of zeros: they have no scale, and count nothing."""
    squares = _squares(values)
    return squares.where(squares > 0, torch.inf)

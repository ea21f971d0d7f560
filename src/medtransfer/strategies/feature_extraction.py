"""The backbone as a fixed feature extractor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from medtransfer.strategies.base import BatchNorm, Strategy, group, names_under


@dataclass(frozen=True, kw_only=True)
class FeatureExtraction(Strategy):
    """Nothing of the backbone learns; the head does, by gradient.

    Attributes:
        head_lr: Learning rate of the head, as a multiple of the optimizer's.
    """

    policies: ClassVar[tuple[BatchNorm, ...]] = ("frozen", "reestimate")

    head_lr: Annotated[float, Field(gt=0)]

    def trainable(self, model: nn.Module) -> set[str]:
        """See `Strategy.trainable`."""
        return set(names_under(model, "head"))

    def parameter_groups(
        self, model: nn.Module, optimizer: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """See `Strategy.parameter_groups`."""
        return [group(model, names_under(model, "head"), self.head_lr, optimizer)]

    def resolve_batchnorm(self, *, statistics: bool) -> BatchNorm:
        """See `Strategy.resolve_batchnorm`; without statistics, features would be noise."""
        if self.batchnorm == "auto":
            return "frozen" if statistics else "reestimate"
        return self.batchnorm

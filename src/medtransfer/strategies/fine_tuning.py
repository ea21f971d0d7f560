"""The backbone as the start of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from medtransfer.strategies.base import BatchNorm, Strategy, group, names_under


@dataclass(kw_only=True)
class FineTuning(Strategy):
    """Everything learns; what derives from it lets a part of the backbone learn.

    Attributes:
        backbone_lr: Learning rate of the backbone, as a multiple of the optimizer's.
        head_lr: Learning rate of the head, as a multiple of the optimizer's.
    """

    policies: ClassVar[tuple[BatchNorm, ...]] = ("train", "frozen", "reestimate")

    backbone_lr: Annotated[float, Field(gt=0)]
    head_lr: Annotated[float, Field(gt=0)]

    def learning(self, model: nn.Module) -> list[str]:
        """Return the names of the backbone's parameters that learn.

        Raises:
            ConfigError: If the backbone has not what the strategy asks for.
        """
        return names_under(model, "backbone")

    def trainable(self, model: nn.Module) -> set[str]:
        """See `Strategy.trainable`."""
        return {*self.learning(model), *names_under(model, "head")}

    def parameter_groups(
        self, model: nn.Module, optimizer: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """See `Strategy.parameter_groups`."""
        return [
            group(model, self.learning(model), self.backbone_lr, optimizer),
            group(model, names_under(model, "head"), self.head_lr, optimizer),
        ]

    def resolve_batchnorm(self, *, statistics: bool) -> BatchNorm:  # noqa: ARG002
        """See `Strategy.resolve_batchnorm`; layers of which nothing learns rest all the same."""
        return "train" if self.batchnorm == "auto" else self.batchnorm

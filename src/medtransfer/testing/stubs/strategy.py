"""A strategy of your own: the last layer groups of the backbone learn, and the head.

It works as it is. What to change is marked by `change:`; everything else follows from it: what is
not declared to learn is frozen, and in eval mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import nn

from medtransfer.errors import ConfigError
from medtransfer.strategies.base import BatchNorm, Strategy, group, layer_groups, names_under


@dataclass(kw_only=True)
class MyStrategy(Strategy):
    """The last layer groups of the backbone learn, and the head.

    Attributes:
        groups: How many of the last layer groups learn.
        backbone_lr: Learning rate of the backbone, as a multiple of the optimizer's.
        head_lr: Learning rate of the head, as a multiple of the optimizer's.
    """

    # change: what batch normalisation may do where it learns; `frozen` alone is the careful choice
    policies: ClassVar[tuple[BatchNorm, ...]] = ("train", "frozen", "reestimate")

    # change: the keys of conf/strategy/my_strategy.yaml; their types are checked before a trial
    groups: Annotated[int, Field(ge=1)]
    backbone_lr: Annotated[float, Field(gt=0)]
    head_lr: Annotated[float, Field(gt=0)]

    def learning(self, model: nn.Module) -> list[str]:
        """Return the names of the backbone's parameters that learn."""
        # change: choose by layer group, stem first, or by name from names_under(model, "backbone")
        found = layer_groups(model)
        if self.groups > len(found):
            raise ConfigError(
                f"strategy.groups={self.groups}, and the backbone has {len(found)} layer groups",
                remedy=f"strategy.groups={len(found)}, or less",
            )
        return [name for names in found[-self.groups :] for name in names]

    def trainable(self, model: nn.Module) -> set[str]:
        """Return the names of all parameters that learn; the head is new, and always does."""
        return {*self.learning(model), *names_under(model, "head")}

    def parameter_groups(
        self, model: nn.Module, optimizer: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the optimizer's groups: each parameter that learns once, and nothing else."""
        return [
            group(model, self.learning(model), self.backbone_lr, optimizer),
            group(model, names_under(model, "head"), self.head_lr, optimizer),
        ]

    def resolve_batchnorm(self, *, statistics: bool) -> BatchNorm:  # noqa: ARG002
        """Return what `strategy.batchnorm=auto` means."""
        return "train" if self.batchnorm == "auto" else self.batchnorm

    # change: more can be overridden where it is needed, see medtransfer.strategies.base.Strategy:
    # phase() and trainable_in() for steps such as probing first, penalty() for what pulls back,
    # before_step() to look at gradients, finish() to merge what was added.

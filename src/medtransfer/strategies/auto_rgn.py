"""Each layer group learns at a rate that its gradient calls for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medtransfer.strategies.base import by_layer, layer_groups
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(kw_only=True)
class AutoRgn(FineTuning):
    """Learning rates in proportion to relative gradient norms (Lee et al. 2023, arXiv 2210.11466).

    At each step a layer group's rate is `backbone_lr` times the norm of its gradient over the norm
    of its values, divided by the largest such ratio of the backbone. They measure it once an epoch
    and for each tensor; a group as a whole has no tensor of norm zero. The new head, which has no
    relation to the source, keeps its own rate.
    """

    def parameter_groups(
        self, model: nn.Module, optimizer: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """See `Strategy.parameter_groups`: one for each layer group, stem first, then the head."""
        rates = [self.backbone_lr] * len(layer_groups(model))
        return by_layer(model, rates, self.head_lr, optimizer)

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """See `Strategy.before_step`."""
        groups = optimizer.param_groups[:-1]
        ratios = [relative_gradient_norm(group["params"]) for group in groups]
        largest = max(ratios, default=0.0)
        if largest > 0:
            for group, ratio in zip(groups, ratios, strict=True):
                group["lr"] *= ratio / largest


def relative_gradient_norm(parameters: list[Tensor]) -> float:
    """Return the norm of the gradient over the norm of the values, zero where there is none."""
    found = [p for p in parameters if p.grad is not None]
    if not found:
        return 0.0
    gradient = torch.stack([p.grad.norm() for p in found]).norm()  # type: ignore[union-attr]
    values = torch.stack([p.detach().norm() for p in found]).norm()
    return float(gradient / values) if values > 0 else 0.0

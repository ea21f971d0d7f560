"""Fine-tuning that is pulled back to where it started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from medtransfer.strategies.base import names_under
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(kw_only=True)
class L2Sp(FineTuning):
    """A penalty on the squared distance from the starting point (Li et al. 2018, 1802.01483).

    The loss grows by alpha/2 times the squared distance of the backbone's parameters from their
    start and by beta/2 times the squared norm of the head's; both replace weight decay.

    Attributes:
        alpha: Pull of the backbone to its start.
        beta: Pull of the head to zero.
    """

    alpha: Annotated[float, Field(ge=0)]
    beta: Annotated[float, Field(ge=0)]
    start: dict[str, Tensor] = field(init=False, repr=False, default_factory=dict)

    def begin(self, model: nn.Module) -> None:
        """See `Strategy.begin`."""
        parameters = dict(model.named_parameters())
        self.start = {name: parameters[name].detach().clone() for name in self.learning(model)}

    def parameter_groups(
        self, model: nn.Module, optimizer: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """See `Strategy.parameter_groups`."""
        groups = super().parameter_groups(model, optimizer)
        return [{**group, "weight_decay": 0.0} for group in groups]

    def penalty(
        self,
        model: nn.Module,
        images: Tensor,  # noqa: ARG002
        levels: list[Tensor],  # noqa: ARG002
    ) -> Tensor:
        """See `Strategy.penalty`."""
        parameters = dict(model.named_parameters())
        for name, value in self.start.items():  # made before the model went to its device
            self.start[name] = value.to(parameters[name].device)
        moved = [(parameters[name] - value).square().sum() for name, value in self.start.items()]
        head = [parameters[name].square().sum() for name in names_under(model, "head")]
        return self.alpha / 2 * _sum(moved) + self.beta / 2 * _sum(head)


def _sum(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).sum() if parts else torch.zeros(())

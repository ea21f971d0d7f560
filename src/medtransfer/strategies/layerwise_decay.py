"""Everything learns, the first layers more slowly than the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from medtransfer.strategies.base import group, layer_groups, names_under
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(frozen=True, kw_only=True)
class LayerwiseDecay(FineTuning):
    """Discriminative learning rates (Howard and Ruder 2018; Clark et al. 2020).

    The last layer group learns at `backbone_lr`, and each one before it `decay` times as fast.

    Attributes:
        decay: Factor from each layer group to the one before it.
    """

    decay: Annotated[float, Field(gt=0, le=1)]

    def parameter_groups(
        self, model: nn.Module, optimizer: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """See `Strategy.parameter_groups`: one for each layer group, stem first, then the head."""
        found = layer_groups(model)
        rates = [self.backbone_lr * self.decay**above for above in reversed(range(len(found)))]
        return [
            *(group(model, names, lr, optimizer) for names, lr in zip(found, rates, strict=True)),
            group(model, names_under(model, "head"), self.head_lr, optimizer),
        ]

"""Everything learns, the first layers more slowly than the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from medtransfer.strategies.base import by_layer, layer_groups
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(kw_only=True)
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
        last = len(layer_groups(model)) - 1
        rates = [self.backbone_lr * self.decay ** (last - i) for i in range(last + 1)]
        return by_layer(model, rates, self.head_lr, optimizer)

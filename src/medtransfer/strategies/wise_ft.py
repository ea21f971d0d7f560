"""Weights between the probe's and the fine-tuned ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from medtransfer.strategies.base import Score
from medtransfer.strategies.lp_ft import LpFt
from medtransfer.strategies.solved import best


@dataclass(kw_only=True)
class WiseFt(LpFt):
    """Probing, fine-tuning, then the best point on the line between the two.

    Wortsman et al. 2022, arXiv 2109.01903, interpolate from a zero-shot model. Here the line
    starts at the probe, whose head fits the frozen features: 0 is linear probing, 1 is LP-FT.

    Attributes:
        mixing: Shares of the fine-tuned weights; the best on validation is taken.
    """

    mixing: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)]
    probed: dict[str, Tensor] = field(init=False, repr=False, default_factory=dict)

    def enter(self, model: nn.Module, phase: int) -> None:
        """See `Strategy.enter`; where fine-tuning begins, its start is kept."""
        super().enter(model, phase)
        if phase and not self.probed:
            self.probed = {name: value.clone() for name, value in _values(model).items()}

    def finish(self, model: nn.Module, score: Score) -> dict[str, Any]:
        """See `Strategy.finish`."""
        if not self.probed:
            return {}  # it was stopped before fine-tuning began
        tuned = {name: value.clone() for name, value in _values(model).items()}

        @torch.no_grad()
        def apply(share: float) -> None:
            for name, value in _values(model).items():
                # exact at both ends, where a weighted sum would round
                start = self.probed[name].to(value.device)
                end = tuned[name].to(value.device)  # scoring may have moved the model
                value.copy_(torch.lerp(start, end, share))

        # of equals, the one nearest to the fine-tuned weights
        return {"mixing": best(sorted(self.mixing, reverse=True), apply, score)}

    def state(self) -> dict[str, Any]:
        """See `Strategy.state`."""
        return {"probed": self.probed}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Strategy.load_state`."""
        self.probed = dict(state["probed"])


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Return all real numbers of backbone and head: parameters, and statistics of normalisation."""
    return {
        f"{child}.{name}": value
        for child in ("backbone", "head")
        for name, value in model.get_submodule(child).state_dict().items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }

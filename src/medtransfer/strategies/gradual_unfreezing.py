"""Layer groups begin to learn one after the other, the last one first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field
from torch import nn

from medtransfer.strategies.base import layer_groups, names_under
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(kw_only=True)
class GradualUnfreezing(FineTuning):
    """The head learns first, then the layer groups join it from the last to the stem.

    Howard and Ruder 2018, arXiv 1801.06146, who open one group an epoch; here they open at equal
    distances, so that the schedule fits any budget.

    Attributes:
        until: Share of all steps after which everything learns.
    """

    until: Annotated[float, Field(gt=0, lt=1)]
    groups: int = field(init=False, repr=False)

    def begin(self, model: nn.Module) -> None:
        """See `Strategy.begin`."""
        self.groups = len(layer_groups(model))

    def phase(self, progress: float) -> int:
        """See `Strategy.phase`: how many groups learn."""
        return min(self.groups, int(progress / self.until * self.groups + 1e-9))

    def trainable_in(self, model: nn.Module, phase: int) -> set[str]:
        """See `Strategy.trainable_in`."""
        found = layer_groups(model)
        opened = [name for names in found[len(found) - phase :] for name in names]
        return {*opened, *names_under(model, "head")}

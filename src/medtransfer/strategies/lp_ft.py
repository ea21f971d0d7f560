"""Linear probing, then fine-tuning from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from medtransfer.strategies.base import names_under
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(kw_only=True)
class LpFt(FineTuning):
    """The head learns on a frozen backbone, then both learn from there.

    Kumar et al. 2022, arXiv 2202.10054: a head that fits already spares the features the large
    steps that a random one would send through them. The schedule of the learning rate is gone
    through once in each phase.

    Attributes:
        probe: Share of all steps spent on the head alone.
        probe_lr: Learning rate of the head meanwhile, as a multiple of the optimizer's.
    """

    probe: Annotated[float, Field(gt=0, lt=1)]
    probe_lr: Annotated[float, Field(gt=0)]

    def phase(self, progress: float) -> int:
        """See `Strategy.phase`: 0 probes, 1 fine-tunes."""
        return int(progress >= self.probe)

    def trainable_in(self, model: nn.Module, phase: int) -> set[str]:
        """See `Strategy.trainable_in`."""
        return self.trainable(model) if phase else set(names_under(model, "head"))

    def pace(self, progress: float) -> float:
        """See `Strategy.pace`."""
        if self.phase(progress):
            return (progress - self.probe) / (1 - self.probe)
        return progress / self.probe

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """See `Strategy.before_step`."""
        if self.current == 0:
            optimizer.param_groups[-1]["lr"] *= self.probe_lr / self.head_lr

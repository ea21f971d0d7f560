"""Learning-rate schedules as functions of the share of the training that is done.

A schedule is a factor on every group's learning rate, so strategies that give groups different
rates keep their proportions, and a resumed run finds its place from the step alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


class Scheduler(ABC):
    """How the learning rate moves."""

    @abstractmethod
    def factor(self, progress: float) -> float:
        """Return the factor at `progress`, the share of all steps that is done, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Constant(Scheduler):
    """The factor stays one."""

    def factor(self, progress: float) -> float:  # noqa: ARG002
        """See `Scheduler.factor`."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Cosine(Scheduler):
    """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017).

    Attributes:
        warmup: Share of all steps spent warming up.
    """

    warmup: Annotated[float, Field(ge=0, lt=1)]

    def factor(self, progress: float) -> float:
        """See `Scheduler.factor`; the very first step is small but not zero."""
        if progress < self.warmup:
            return max(progress / self.warmup, 0.01)
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))


@dataclass(frozen=True, kw_only=True)
class MultiStep(Scheduler):
    """The factor is multiplied by `gamma` at each milestone.

    Attributes:
        milestones: Shares of all steps.
        gamma: The multiplier.
    """

    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    gamma: Annotated[float, Field(gt=0, le=1)]

    def factor(self, progress: float) -> float:
        """See `Scheduler.factor`."""
        return self.gamma ** sum(progress >= milestone for milestone in self.milestones)

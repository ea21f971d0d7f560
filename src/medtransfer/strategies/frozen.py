"""What strategies share that leave the backbone as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from medtransfer.strategies.base import BatchNorm, Strategy, names_under


@dataclass(kw_only=True)
class Frozen(Strategy):
    """Nothing of the backbone learns; the head does."""

    policies: ClassVar[tuple[BatchNorm, ...]] = ("frozen", "reestimate")
    cacheable: ClassVar[bool] = True

    def trainable(self, model: nn.Module) -> set[str]:
        """See `Strategy.trainable`."""
        return set(names_under(model, "head"))

    def resolve_batchnorm(self, *, statistics: bool) -> BatchNorm:
        """See `Strategy.resolve_batchnorm`; without statistics, features would be noise."""
        if self.batchnorm == "auto":
            return "frozen" if statistics else "reestimate"
        return self.batchnorm

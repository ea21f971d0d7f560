"""Biases learn, weights stay."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from medtransfer.errors import ConfigError
from medtransfer.strategies.base import names_under
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(kw_only=True)
class BitFit(FineTuning):
    """The biases of the backbone learn, those of its normalisation too, and the head.

    Ben Zaken et al. 2022, arXiv 2106.10199.
    """

    def learning(self, model: nn.Module) -> list[str]:
        """See `FineTuning.learning`."""
        found = [name for name in names_under(model, "backbone") if name.endswith(".bias")]
        if not found:
            raise ConfigError(
                "strategy=bitfit has nothing to tune: the backbone has no biases",
                remedy="choose another backbone or strategy",
            )
        return found

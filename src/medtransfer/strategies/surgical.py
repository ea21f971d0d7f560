"""Chosen layers of the backbone learn, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from medtransfer.errors import ConfigError
from medtransfer.strategies.base import layer_groups
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(kw_only=True)
class Surgical(FineTuning):
    """Chosen layer groups learn, and the head (Lee et al. 2023, arXiv 2210.11466).

    Early groups suit images that look different, late ones targets that mean something else.

    Attributes:
        groups: Numbers of the layer groups that learn, the stem being 0 and the last one -1.
    """

    groups: Annotated[tuple[int, ...], Field(min_length=1)]

    def learning(self, model: nn.Module) -> list[str]:
        """See `FineTuning.learning`."""
        found = layer_groups(model)
        for number in self.groups:
            if not -len(found) <= number < len(found):
                raise ConfigError(
                    f"strategy.groups names group {number}, and the backbone has {len(found)}",
                    remedy=f"numbers from 0, the stem, to {len(found) - 1}; -1 is the last one"
                    if found
                    else "choose a backbone that can learn",
                )
        chosen = sorted({number % len(found) for number in self.groups})
        return [name for number in chosen for name in found[number]]

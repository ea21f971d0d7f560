"""The last layers of the backbone learn, the first ones stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import nn

from medtransfer.errors import ConfigError
from medtransfer.strategies.base import layer_groups
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(kw_only=True)
class PartialFineTuning(FineTuning):
    """The last layer groups of the backbone learn, and the head (Tajbakhsh et al. 2016).

    Attributes:
        groups: How many of the last layer groups learn.
    """

    groups: Annotated[int, Field(ge=1)]

    def learning(self, model: nn.Module) -> list[str]:
        """See `FineTuning.learning`."""
        found = layer_groups(model)
        if self.groups > len(found):
            raise ConfigError(
                f"strategy.groups={self.groups}, and the backbone has {len(found)} layer groups",
                remedy="strategy.groups=NUMBER of the last groups that learn, or"
                " strategy=fine_tuning for all",
            )
        return [name for names in found[-self.groups :] for name in names]

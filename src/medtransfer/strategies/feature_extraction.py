"""The backbone as a fixed feature extractor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from medtransfer.strategies.base import group, names_under
from medtransfer.strategies.frozen import Frozen


@dataclass(kw_only=True)
class FeatureExtraction(Frozen):
    """Nothing of the backbone learns; the head does, by gradient.

    Attributes:
        head_lr: Learning rate of the head, as a multiple of the optimizer's.
    """

    head_lr: Annotated[float, Field(gt=0)]

    def parameter_groups(
        self, model: nn.Module, optimizer: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """See `Strategy.parameter_groups`."""
        return [group(model, names_under(model, "head"), self.head_lr, optimizer)]

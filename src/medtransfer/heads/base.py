"""What a head is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Head(nn.Module, ABC):
    """Turns the embedding of a backbone into the outputs of a task.

    A head is built with `in_features`, the size of the embedding, and `outputs`, besides the keys
    of its YAML.
    """

    @abstractmethod
    def forward(self, embedding: Tensor) -> Tensor:
        """Return (N, outputs) from (N, in_features)."""

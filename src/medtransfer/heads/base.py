"""What a head is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Head(nn.Module, ABC):
    """Turns the features of a backbone into the outputs of a task.

    Each task names the kind of head that it takes, and what such a head is built with besides the
    keys of its YAML.
    """


class VectorHead(Head):
    """Turns the embedding of a backbone into the outputs of a task.

    It is built with `in_features`, the size of the embedding, and `outputs`.
    """

    @abstractmethod
    def forward(self, embedding: Tensor) -> Tensor:
        """Return (N, outputs) from (N, in_features)."""

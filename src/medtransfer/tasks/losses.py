"""Losses of classification, with weights for rare classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

ClassWeights = Literal["none", "balanced"]


class Loss(nn.Module, ABC):
    """A loss that may weigh rare classes up.

    Args:
        counts: Training samples of each class.
        class_weights: `balanced` gives every class the same total weight; `none` every case.
    """

    weight: Tensor | None

    def __init__(self, counts: Sequence[int], class_weights: ClassWeights) -> None:
        super().__init__()
        weight = None
        if class_weights == "balanced":
            present = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
            weight = present.sum() / (len(counts) * present)
        self.register_buffer("weight", weight, persistent=False)


class ClassLoss(Loss):
    """A loss of one class for each image."""

    @abstractmethod
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of logits (N, K) and class indices (N,)."""


class CrossEntropy(ClassLoss):
    """Cross-entropy.

    Args:
        counts: Training samples of each class.
        class_weights: See `Loss`.
        label_smoothing: Share of the target that is spread over all classes.
    """

    def __init__(
        self,
        counts: Sequence[int],
        class_weights: ClassWeights,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)],
    ) -> None:
        super().__init__(counts, class_weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `ClassLoss.forward`."""
        return cross_entropy(
            logits, target, weight=self.weight, label_smoothing=self.label_smoothing
        )


class Focal(ClassLoss):
    """Focal loss (Lin et al. 2017, arXiv 1708.02002).

    Args:
        counts: Training samples of each class.
        class_weights: See `Loss`.
        gamma: How much less an easy case counts; zero is cross-entropy.
    """

    def __init__(
        self,
        counts: Sequence[int],
        class_weights: ClassWeights,
        gamma: Annotated[float, Field(ge=0)],
    ) -> None:
        super().__init__(counts, class_weights)
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `ClassLoss.forward`."""
        probability = logits.softmax(1).gather(1, target[:, None])[:, 0]
        each = cross_entropy(logits, target, weight=self.weight, reduction="none")
        scale = len(target) if self.weight is None else self.weight[target].sum()
        # roots have no slope at zero, which a certain case reaches by rounding
        doubt = (1 - probability).clamp(min=torch.finfo(probability.dtype).eps)
        return (doubt**self.gamma * each).sum() / scale

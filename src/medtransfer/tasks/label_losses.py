"""Losses of labels of which several may hold at once."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from medtransfer.tasks.losses import Loss


class LabelLoss(Loss):
    """A loss of several labels for each image.

    Args:
        counts: Training images that show each label.
        class_weights: `balanced` gives the images that show a label the same total weight for every
            label, and those that do not show it a weight of one each; `none` weighs all alike.
    """

    @abstractmethod
    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of the labels that are known, a scalar; zero where none is.

        Args:
            logits: (N, L).
            target: (N, L): 1 holds, 0 does not, -1 unknown.
        """


class BinaryCrossEntropy(LabelLoss):
    """Cross-entropy of each label by itself."""

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """See `LabelLoss.forward`."""
        weights = (target >= 0).to(logits.dtype)
        if self.weight is not None:
            weights = weights * torch.where(target == 1, self.weight.to(logits.dtype), 1)
        losses = label_nll(logits, target) * weights
        # without a known label both sums are zero, and so is the gradient
        return losses.sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def label_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Return the negative log-likelihood of each label, (N, L); zero where it is unknown."""
    truth = target.clamp(min=0).to(logits.dtype)
    losses = binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return losses.masked_fill(target < 0, 0)

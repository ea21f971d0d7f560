"""The plainest head."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medtransfer.heads.base import VectorHead


class Linear(VectorHead):
    """One linear layer on the embedding.

    Args:
        in_features: Size of the embedding.
        outputs: Number of outputs.
        norm: `batch` standardises each feature by batch statistics, without affine terms, so that
            one learning rate suits backbones whose features differ in scale (He et al. 2022, MAE,
            do so for linear probing); `none` takes features as they are.
        dropout: Probability with which a feature is dropped in training.
    """

    def __init__(
        self,
        in_features: int,
        outputs: int,
        norm: Literal["batch", "none"],
        dropout: Annotated[float, Field(ge=0, lt=1)],
    ) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features, affine=False) if norm == "batch" else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, outputs)

    def forward(self, embedding: Tensor) -> Tensor:
        """See `VectorHead.forward`."""
        return self.linear(self.dropout(self.norm(embedding)))  # type: ignore[no-any-return]

    def fit_norm(self, features: Tensor) -> Tensor:
        """Standardise by these features from now on, where it does; (n, D) to (n, D)."""
        if isinstance(self.norm, nn.BatchNorm1d):
            assert self.norm.running_mean is not None
            assert self.norm.running_var is not None
            self.norm.running_mean.copy_(features.mean(0))
            self.norm.running_var.copy_(features.var(0, correction=0))
        return self.norm.eval()(features)  # type: ignore[no-any-return]

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        """Take over the weight (outputs, in_features) and the bias (outputs,)."""
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)

"""The plainest head."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from medtransfer.heads.base import Head


class Linear(Head):
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
        """See `Head.forward`."""
        return self.linear(self.dropout(self.norm(embedding)))  # type: ignore[no-any-return]

"""Heads that judge an exam by all of its images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from medtransfer.errors import ConfigError
from medtransfer.heads.base import Head
from medtransfer.heads.linear import Linear

Norm = Literal["batch", "none"]
Pooling = Literal["mean", "max", "attention", "gated_attention", "late_fusion"]


class ExamHead(Head):
    """Turns the embeddings of the images of exams into one output for each exam.

    It is built with `in_features`, the size of the embedding, `outputs`, and `views`, the names of
    the views that training has.

    Attributes:
        fixed: Whether `pool` learns nothing, so that heads can be solved from what it returns.
        classifier: What maps pooled embeddings (N, in_features) to (N, outputs), if `fixed`;
            another one may take its place.
    """

    fixed: bool
    classifier: nn.Module

    @abstractmethod
    def forward(
        self, embedding: Tensor, exam: Tensor | None = None, view: Tensor | None = None
    ) -> Tensor:
        """Return the outputs of N exams, (N, outputs), from those of their M images.

        Args:
            embedding: (M, in_features).
            exam: Which exam each image is of, (M,), ascending, all from 0 to N - 1; None takes each
                image for an exam of its own.
            view: Positions among `views`, (M,), -1 where it is none of them; None: all -1.
        """

    @abstractmethod
    def weights(self, embedding: Tensor, exam: Tensor, view: Tensor) -> Tensor:
        """Return how much each image counts in its exam, (M,); those of an exam sum to one."""

    @abstractmethod
    def pool(self, embedding: Tensor, exam: Tensor) -> Tensor:
        """Return one embedding for each exam, (N, in_features)."""


class ExamPooling(ExamHead):
    """Pools the images of an exam, then classifies.

    Args:
        in_features: Size of the embedding.
        outputs: Number of outputs.
        views: Names of the views that training has; "" is that of images without one.
        pooling: `mean` and `max` pool each feature over the images, whatever their number.
            `attention` is a mean with weights that are learned from the embeddings, and
            `gated_attention` gates them (Ilse et al. 2018, arXiv 1802.04712, eq. 8 and 9).
            `late_fusion` has one classifier for each view, and averages their outputs over the
            images that are there; an image of another view gets the mean of the classifiers.
        attention_size: Hidden units of the attention; without one it has no say.
        norm: Of what is classified, and of what attention looks at; see `Linear`.
        dropout: Of what is classified; see `Linear`.

    Raises:
        ConfigError: If `late_fusion` has no views to tell apart.
    """

    def __init__(
        self,
        *,
        in_features: int,
        outputs: int,
        views: Sequence[str],
        pooling: Pooling,
        attention_size: Annotated[int, Field(ge=1)],
        norm: Norm,
        dropout: Annotated[float, Field(ge=0, lt=1)],
    ) -> None:
        super().__init__()
        by_view = pooling == "late_fusion"
        if by_view and not any(views):
            raise ConfigError(
                "head.pooling=late_fusion has a classifier for each view, and no image has a view",
                remedy="name the views in the dataset, or choose another head.pooling",
            )
        self.pooling = pooling
        self.fixed = pooling in {"mean", "max"}
        self.views = len(views) if by_view else 1
        self.attention: Attention | None = None
        if pooling in {"attention", "gated_attention"}:
            gated = pooling == "gated_attention"
            self.attention = Attention(in_features, attention_size, gated=gated, norm=norm)
        self.classifier = Linear(in_features, outputs * self.views, norm, dropout)

    def forward(
        self, embedding: Tensor, exam: Tensor | None = None, view: Tensor | None = None
    ) -> Tensor:
        """See `ExamHead.forward`."""
        if exam is None:
            exam = torch.arange(embedding.shape[0], device=embedding.device)
        if self.pooling != "late_fusion":
            return cast("Tensor", self.classifier(self.pool(embedding, exam)))
        each = self.classifier(embedding).unflatten(1, (self.views, -1))
        mean = each.mean(1)
        if view is not None:
            known = (view >= 0)[:, None]
            own = each[torch.arange(view.shape[0], device=view.device), view.clamp(min=0)]
            mean = torch.where(known, own, mean)
        return _total(mean.float() * self._shares(embedding, exam)[:, None], exam)

    def weights(self, embedding: Tensor, exam: Tensor, view: Tensor) -> Tensor:  # noqa: ARG002
        """See `ExamHead.weights`; under `max` the share of features of which an image has the most.

        Images that share the most of a feature share its say.
        """
        if self.pooling == "max":
            top = (embedding == self.pool(embedding, exam)[exam]).float()
            return (top / _total(top, exam)[exam]).mean(1)
        return self._shares(embedding, exam)

    def pool(self, embedding: Tensor, exam: Tensor) -> Tensor:
        """See `ExamHead.pool`; in float32."""
        embedding = embedding.float()
        if self.pooling == "max":
            lowest = embedding.new_full((_exams(exam), embedding.shape[1]), -torch.inf)
            return lowest.scatter_reduce(0, exam[:, None].expand_as(embedding), embedding, "amax")
        return _total(embedding * self._shares(embedding, exam)[:, None], exam)

    def fit_norm(self, features: Tensor) -> Tensor:
        """See `Linear.fit_norm`; of pooled embeddings, (n, D) to (n, D)."""
        return self._linear.fit_norm(features)

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        """See `Linear.assign`."""
        self._linear.assign(weight, bias)

    def _shares(self, embedding: Tensor, exam: Tensor) -> Tensor:
        if self.attention is None:
            return 1 / _count(exam)
        return _softmax(self.attention(embedding), exam)

    @property
    def _linear(self) -> Linear:
        assert isinstance(self.classifier, Linear)
        return self.classifier


class Attention(nn.Module):
    """How much an image matters, before it is compared with the others of its exam.

    Args:
        in_features: Size of the embedding.
        size: Hidden units.
        gated: Whether each unit is multiplied by a gate of its own.
        norm: Of the embedding; see `Linear`.
    """

    def __init__(self, in_features: int, size: int, *, gated: bool, norm: Norm) -> None:
        super().__init__()
        self.content = Linear(in_features, size, norm, dropout=0.0)
        self.gate = Linear(in_features, size, norm, dropout=0.0) if gated else None
        # a constant added to all images of an exam changes nothing
        self.score = nn.Linear(size, 1, bias=False)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return (M,) float32 from (M, in_features)."""
        units = self.content(embedding).tanh()
        if self.gate is not None:
            units = units * self.gate(embedding).sigmoid()
        return cast("Tensor", self.score(units)[:, 0].float())


def _exams(exam: Tensor) -> int:
    if torch.compiler.is_exporting():
        return 1  # an exported model takes one exam at a time, and has no numbers to read
    return int(exam[-1]) + 1  # ascending


def _total(values: Tensor, exam: Tensor) -> Tensor:
    """Return the sum of each exam, (N, D), of values (M, D)."""
    return values.new_zeros(_exams(exam), *values.shape[1:]).index_add(0, exam, values)


def _count(exam: Tensor) -> Tensor:
    """Return for each image how many its exam has, (M,) float32."""
    return _total(torch.ones_like(exam, dtype=torch.float32)[:, None], exam)[exam, 0]


def _softmax(values: Tensor, exam: Tensor) -> Tensor:
    """Return values (M,) as positive shares of their exam."""
    with torch.no_grad():  # so that no exponential overflows; the shares do not depend on it
        top = values.new_full((_exams(exam),), -torch.inf).scatter_reduce(0, exam, values, "amax")
    exponentials = (values - top[exam]).exp()
    return exponentials / _total(exponentials, exam)[exam]

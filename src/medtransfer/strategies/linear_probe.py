"""Logistic regression on features, solved to convergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from medtransfer.errors import ConfigError
from medtransfer.strategies.base import Score
from medtransfer.strategies.solved import Solved, best, require_two_classes

MAX_ITERATIONS = 10_000  # L-BFGS is done long before, except where C is absurd
TOLERANCE = 1e-8  # of the gradient; what is left moves no probability by more than 1e-5
ABSENT = -30.0  # log-odds of a class that the training subset has no case of


class LinearLike(Protocol):
    """What the probe needs of a head."""

    def fit_norm(self, features: Tensor) -> Tensor:
        """Standardise as the head does from now on; (n, D) to (n, D)."""

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        """Take over the weight (K, D) and the bias (K,)."""


@dataclass(kw_only=True)
class LinearProbe(Solved):
    """The head is a logistic regression, solved by L-BFGS through scikit-learn.

    Attributes:
        C: Inverse strengths of the L2 penalty; the best on validation is taken.
    """

    C: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]

    def trainable(self, model: nn.Module) -> set[str]:
        """See `Strategy.trainable`.

        Raises:
            ConfigError: If the head is no linear layer.
        """
        if not hasattr(model.head, "assign"):
            raise ConfigError(
                f"strategy=linear_probe solves a linear head, not {type(model.head).__name__}",
                remedy="head=linear, or strategy=feature_extraction, which trains any head",
            )
        return super().trainable(model)

    def fit_head(
        self,
        model: nn.Module,
        features: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        score: Score,
    ) -> dict[str, Any]:
        """See `Solved.fit_head`."""
        require_two_classes(targets)
        head: LinearLike = model.head  # type: ignore[assignment]
        inputs = head.fit_norm(features).double().numpy()
        classes = next(reversed([*model.head.parameters()])).shape[0]  # type: ignore[union-attr]
        of_case = None if weights is None else weights[targets].double().numpy()

        def solve(c: float) -> tuple[float, Tensor, Tensor]:
            solver = LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
            solver.fit(inputs, targets.numpy(), sample_weight=of_case)
            return c, *_all_classes(solver, classes)

        solutions = (solve(c) for c in sorted(self.C))
        return {"C": best(solutions, lambda found: head.assign(*found[1:]), score)[0]}


def _all_classes(solver: LogisticRegression, classes: int) -> tuple[Tensor, Tensor]:
    """Return weight (K, D) and bias (K,); two classes share one boundary between them."""
    weight, bias = solver.coef_, solver.intercept_
    if len(solver.classes_) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    full = torch.zeros(classes, weight.shape[1])
    offset = torch.full((classes,), ABSENT)
    full[solver.classes_] = torch.from_numpy(weight).float()
    offset[solver.classes_] = torch.from_numpy(bias).float()
    return full, offset

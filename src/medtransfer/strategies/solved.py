"""What strategies share whose head is solved from features, without steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from medtransfer.errors import DataError
from medtransfer.strategies.base import Score
from medtransfer.strategies.frozen import Frozen

T = TypeVar("T")


@dataclass(kw_only=True)
class Solved(Frozen):
    """The head is solved from the features of a frozen backbone.

    Of the loss it heeds the class weights; optimizer, schedule and budget have no say.
    """

    def parameter_groups(
        self,
        model: nn.Module,  # noqa: ARG002
        optimizer: Mapping[str, Any],  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """See `Strategy.parameter_groups`; nothing is stepped."""
        return []

    @abstractmethod
    def fit_head(
        self,
        model: nn.Module,
        features: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        score: Score,
    ) -> dict[str, Any]:
        """Solve the head, once the model is set up.

        Args:
            model: The model.
            features: Embeddings of the training images, (n, D).
            targets: Class indices, (n,).
            weights: Of each class in the loss, (K,); None weighs every case alike.
            score: For choices between solutions.

        Returns:
            What was chosen on validation, by name.
        """


def best(solutions: Iterable[T], use: Callable[[T], None], score: Score) -> T:
    """Use each solution in turn, and go back to the one that scores best, the first of equals."""
    top: tuple[float, T] | None = None
    for solution in solutions:
        use(solution)
        value = score()
        if top is None or value > top[0]:
            top = value, solution
    assert top is not None, "there is at least one"
    use(top[1])
    return top[1]


def require_two_classes(targets: Tensor) -> None:
    """Refuse targets of which nothing can be learnt.

    Raises:
        DataError: If all are of one class.
    """
    if len(targets.unique()) < 2:
        raise DataError(
            "the training subset has cases of one class only",
            remedy="raise dataset.fraction or dataset.shots",
        )

"""A classifier of scikit-learn's on features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn

from medtransfer.errors import ConfigError
from medtransfer.strategies.base import Score
from medtransfer.strategies.solved import Solved, best, require_two_classes

FLOOR = 1e-6  # probabilities that are zero by counting have no logarithm


@dataclass(kw_only=True)
class ClassicHead(Solved):
    """The head is a classifier of scikit-learn's; of each setting the best on validation is taken.

    Attributes:
        kind: `knn`: nearest neighbours among standardised features, weighed by distance and class.
            `svm`: a support vector machine with a radial kernel on standardised features, whose
            scores are a softmax of its decision values. `random_forest`: trees on features as they
            are.
        neighbours: Numbers of neighbours to choose from.
        C: Penalties of the support vector machine to choose from.
        max_features: Shares of the features that each split of a tree looks at, to choose from.
        trees: Number of trees.
    """

    kind: Literal["knn", "svm", "random_forest"]
    neighbours: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    C: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    max_features: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)]
    trees: Annotated[int, Field(ge=1)]
    outputs: int = field(init=False, repr=False)
    """Number of classes, once set up."""

    def begin(self, model: nn.Module) -> None:
        """See `Strategy.begin`: the head that was drawn gives way; what pools exams stays."""
        size: int = model.backbone.embedding_size  # type: ignore[assignment, union-attr]
        with torch.no_grad():
            outputs = model.get_submodule("head").eval()(torch.zeros(1, size))
        self.outputs = outputs.shape[1]
        _place(model, Fitted(self.outputs))

    def reopen(self, model: nn.Module) -> None:
        """See `Strategy.reopen`."""
        self.begin(model)

    def trainable(self, model: nn.Module) -> set[str]:  # noqa: ARG002
        """See `Strategy.trainable`; nothing of such a head is a parameter."""
        return set()

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
        candidates: dict[str, list[dict[str, Any]]] = {
            "knn": [{"neighbours": k} for k in self.neighbours if k <= len(targets)],
            "svm": [{"C": c} for c in self.C],
            "random_forest": [
                {"max_features": share, "trees": self.trees} for share in self.max_features
            ],
        }
        if not candidates[self.kind]:
            raise ConfigError(
                f"strategy.neighbours asks for {min(self.neighbours)} neighbours and more, and the"
                f" training subset has {len(targets)} cases",
                remedy="lower strategy.neighbours, or raise dataset.fraction or dataset.shots",
            )
        seed = torch.initial_seed() % 2**32

        def solve(candidate: dict[str, Any]) -> tuple[dict[str, Any], Fitted]:
            head = Fitted(self.outputs)
            settings = {"kind": self.kind, "seed": seed, **candidate}
            head.fit(features, targets, weights, settings)
            return candidate, head

        def use(found: tuple[dict[str, Any], Fitted]) -> None:
            _place(model, found[1])

        return best(map(solve, candidates[self.kind]), use, score)[0]


def _place(model: nn.Module, head: Fitted) -> None:
    """Put a solved head in its place: a head that pools exams has one for it."""
    owner, name = (model.head, "classifier") if hasattr(model.head, "pool") else (model, "head")
    setattr(owner, name, head)


class Fitted(nn.Module):
    """A classifier of scikit-learn's as a head.

    Its state is what it was fitted on, in tensors, and it is fitted again when it is loaded: the
    classifier itself could only be kept as a pickle, which nobody should have to open.

    Args:
        outputs: Number of classes, those without training cases too.
    """

    features: Tensor
    targets: Tensor
    weights: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(0, 0))
        self.register_buffer("targets", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("weights", torch.ones(outputs))
        self.settings: dict[str, Any] = {}
        self.classifier: Any = None

    def fit(
        self, features: Tensor, targets: Tensor, weights: Tensor | None, settings: dict[str, Any]
    ) -> None:
        """Fit a classifier on features (n, D) and class indices (n,).

        Args:
            features: (n, D).
            targets: (n,).
            weights: Of each class, (K,), or None.
            settings: `kind`, `seed` and what else it takes.
        """
        self.features, self.targets = features.float().cpu(), targets.cpu()
        self.weights = torch.ones(len(self.weights)) if weights is None else weights.cpu()
        self.settings = settings
        self._refit()

    def forward(self, embedding: Tensor) -> Tensor:
        """Return logits (N, K) of embeddings (N, D)."""
        inputs = embedding.detach().float().cpu().numpy()
        present = self.classifier.classes_
        if hasattr(self.classifier, "predict_proba"):
            shares = self.classifier.predict_proba(inputs)
            if self.settings["kind"] == "knn":  # scikit-learn's heeds no class weights
                shares = shares * self.weights.cpu().numpy()[present]
                shares /= shares.sum(1, keepdims=True)
            logits = np.log(np.clip(shares, FLOOR, None))
        else:
            logits = self.classifier.decision_function(inputs)
            if logits.ndim == 1:
                logits = np.stack([-logits, logits], 1) / 2
        full = np.full((len(inputs), len(self.weights)), np.log(FLOOR), dtype=np.float32)
        full[:, present] = logits
        return torch.from_numpy(full).to(embedding.device)

    def extra_repr(self) -> str:
        """See torch's method of this name."""
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())

    def get_extra_state(self) -> dict[str, Any]:
        """See torch's method of this name."""
        return self.settings

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See torch's method of this name; called after the buffers are loaded."""
        self.settings = state
        if state:
            self._refit()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("features", "targets", "weights"):  # as long as what it was fitted on
            setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _refit(self) -> None:
        settings = self.settings
        features, targets = self.features.cpu().numpy(), self.targets.cpu().numpy()
        weighted = bool((self.weights != 1).any())  # forests draw cases otherwise by any weights
        of_class = dict(enumerate(self.weights.tolist())) if weighted else None
        if settings["kind"] == "knn":
            neighbours = KNeighborsClassifier(settings["neighbours"], weights="distance")
            self.classifier = make_pipeline(StandardScaler(), neighbours)
        elif settings["kind"] == "svm":
            machine = SVC(C=settings["C"], class_weight=of_class)
            self.classifier = make_pipeline(StandardScaler(), machine)
        else:
            self.classifier = RandomForestClassifier(
                settings["trees"],
                max_features=settings["max_features"],
                class_weight=of_class,
                random_state=settings["seed"],
            )
        self.classifier.fit(features, targets)

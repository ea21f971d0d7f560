"""Multilabel classification: one image, labels of which several may hold at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from medtransfer.backbones.base import Backbone
from medtransfer.data.base import Annotation
from medtransfer.data.loading import Batch, Data
from medtransfer.errors import ConfigError
from medtransfer.heads.base import Head, VectorHead
from medtransfer.tasks.base import Direction, Stage, Task
from medtransfer.tasks.examples import Case, Examples, extremes
from medtransfer.tasks.judgement import Judgement, by_name
from medtransfer.tasks.label_losses import LabelLoss, label_nll

DIRECTIONS: dict[str, Direction] = {
    "auroc": "max",
    "average_precision": "max",
    "brier": "min",
    "loss": "min",
}
RANKED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "auroc": binary_auroc,
    "average_precision": binary_average_precision,
}
LIKELY = 0.5  # probability from which on a label is shown as predicted


class Multilabel(Task):
    """Labels of which several may hold for an image, and some may be unknown.

    AUROC and average precision are computed for each label, such as `auroc_edema`, from the images
    in which it is known; those of all are means over the labels. A label of one value only has
    neither, and no say. The Brier score, in [0, 1], and the loss, the negative log-likelihood, are
    means over all that is known.
    """

    requires: ClassVar[Annotation] = "labels"
    headline: ClassVar[str] = "auroc"
    represents: ClassVar[Literal["embedding", "pyramid"]] = "embedding"
    head_base: ClassVar[type[Head]] = VectorHead
    loss_base: ClassVar[type[nn.Module] | None] = LabelLoss

    @classmethod
    def direction(cls, metric: str) -> Direction:
        """See `Task.direction`; a label's own metric, such as `auroc_edema`, goes like all's."""
        if metric not in DIRECTIONS and any(metric.startswith(f"{name}_") for name in RANKED):
            return "max"
        return DIRECTIONS[cls.known(metric, DIRECTIONS)]

    def require_metric(self, metric: str) -> None:
        """See `Task.require_metric`."""
        of_labels = [f"{name}_{label}" for name in RANKED for label in self.spec.class_names]
        if metric not in (*DIRECTIONS, *of_labels):
            raise ConfigError(
                f"no label has the metric '{metric}'",
                value=metric,
                choices=(*DIRECTIONS, *of_labels),
            )

    @classmethod
    def head_arguments(cls, backbone: Backbone, data: Data) -> dict[str, Any]:
        """See `Task.head_arguments`."""
        return {"in_features": backbone.embedding_size, "outputs": len(data.spec.class_names)}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, L) of images (N, C, H, W) in [0, 1]."""
        return cast("Tensor", self.head(self.backbone.embed(images)))

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """See `Task.outputs`: `scores`, the probability of each label, (N, L)."""
        return {"scores": self(images).float().sigmoid()}

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.step`; keeps `scores`, the probabilities, `target` and `nll`, all (N, L)."""
        logits = self.head(self.embedding(batch)).float()
        target = batch["target"]
        kept = {
            "index": batch["index"],
            "scores": logits.sigmoid(),
            "target": target,
            "nll": label_nll(logits, target),
        }
        return self.loss(logits, target), kept

    def judge(self, batch: Batch) -> list[Judgement]:
        """See `Task.judge`: the labels with a probability of one half or more."""
        names, found = self.spec.class_names, []
        scores = self.outputs(batch["image"])["scores"].cpu()
        for index, each in zip(batch["index"].tolist(), scores, strict=True):
            held = [names[k] for k in (each >= LIKELY).nonzero()[:, 0].tolist()]
            found.append(Judgement(index, {"predicted": ";".join(held), **by_name(names, each)}))
        return found

    def evaluate(self, stage: Stage, kept: Mapping[str, Tensor]) -> dict[str, float]:  # noqa: ARG002
        """See `Task.evaluate`; `loss` is the negative log-likelihood, whatever was trained."""
        scores, target = kept["scores"], kept["target"]
        known = target >= 0
        values = {
            "loss": float(kept["nll"][known].mean()),
            "brier": float(((scores - target) ** 2)[known].mean()),
        }
        for metric, compute in RANKED.items():
            found = torch.full((len(self.spec.class_names),), torch.nan)
            for k, label in enumerate(self.spec.class_names):
                truth = target[known[:, k], k]
                if len(truth.unique()) == 2:
                    found[k] = compute(scores[known[:, k], k], truth)
                values[f"{metric}_{label}"] = float(found[k])
            values[metric] = float(found.nanmean())
        return values

    def columns(self, kept: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """See `Task.columns`: for each label its target, -1 where unknown, and its probability."""
        columns: dict[str, NDArray[Any]] = {}
        for k, label in enumerate(self.spec.class_names):
            columns[f"target_{label}"] = kept["target"][:, k].numpy()
            columns[f"score_{label}"] = kept["scores"][:, k].float().numpy()
        return columns

    def examples(self, data: Data, kept: Mapping[str, Tensor]) -> Examples:  # noqa: ARG002
        """See `Task.examples`: the best, the median and the worst by Brier score of the image."""
        scores, target = kept["scores"].float().numpy(), kept["target"].numpy()
        known = target >= 0
        squares = np.where(known, (scores - target) ** 2, 0).sum(1)
        some = known.any(1)
        brier = np.full(len(target), np.nan)
        brier[some] = squares[some] / known.sum(1)[some]

        def case(row: int) -> Case:
            labels = enumerate(self.spec.class_names)
            said = [f"{n} {scores[row, k]:.2f}" for k, n in labels if scores[row, k] >= LIKELY]
            shown = [n for k, n in enumerate(self.spec.class_names) if target[row, k] == 1]
            words = (f"true: {', '.join(shown) or 'none'}", f"said: {', '.join(said) or 'none'}")
            return Case(int(kept["index"][row]), (f"Brier score {brier[row]:.3f}", *words))

        groups = {name: [case(row) for row in rows] for name, rows in extremes(-brier).items()}
        return Examples(
            title=f"Best, median and worst of {len(target)} test images by Brier score",
            note="Brier score: mean over the known labels of the image; said: labels with a"
            f" probability of at least {LIKELY:g}",
            groups=groups,
        )

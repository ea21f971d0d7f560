"""Image classification: one image, one class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_calibration_error,
    binary_matthews_corrcoef,
    binary_roc,
    multiclass_accuracy,
    multiclass_auroc,
    multiclass_average_precision,
    multiclass_calibration_error,
    multiclass_cohen_kappa,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
)

from medtransfer.backbones.base import Backbone
from medtransfer.data.base import Annotation
from medtransfer.data.loading import Batch, Data
from medtransfer.errors import ConfigError
from medtransfer.heads.base import Head, VectorHead
from medtransfer.tasks.base import Direction, Stage, Task
from medtransfer.tasks.examples import Case, Examples
from medtransfer.tasks.judgement import Judgement, by_name
from medtransfer.tasks.losses import ClassLoss

DIRECTIONS: dict[str, Direction] = {
    "auroc": "max",
    "average_precision": "max",
    "accuracy": "max",
    "balanced_accuracy": "max",
    "f1": "max",
    "mcc": "max",
    "brier": "min",
    "ece": "min",
    "loss": "min",
    "sensitivity": "max",
    "specificity": "max",
    "quadratic_kappa": "max",
    "mae": "min",
}
OF_TWO = ("sensitivity", "specificity")
OF_GRADES = ("quadratic_kappa", "mae")
SHOWN = 9  # cases in a picture


class Classification(Task):
    """One class for each image; metrics after Metrics Reloaded (Maier-Hein et al. 2024).

    For two classes the last one is positive, and `sensitivity`, `specificity` and `mcc` are taken
    at the threshold that was best on validation (Youden's index). For more, AUROC, average
    precision and F1 are macro averages, one class against the rest. A class without cases has no
    AUROC and no recall; averages are over those that have. The Brier score lies in [0, 1] for two
    classes and in [0, 2] for more, as scikit-learn has it.

    Args:
        ordinal: Whether the classes are grades, in their order. It adds `quadratic_kappa`, the
            agreement beyond chance with squared distances (Cohen 1968), and `mae`, by how many
            grades the likeliest one is off in the mean; nothing else changes.
        **parts: See `Task`.

    Raises:
        ConfigError: If there are fewer than three grades.
    """

    requires: ClassVar[Annotation] = "class"
    headline: ClassVar[str] = "auroc"
    represents: ClassVar[Literal["embedding", "pyramid"]] = "embedding"
    head_base: ClassVar[type[Head]] = VectorHead
    loss_base: ClassVar[type[nn.Module] | None] = ClassLoss

    def __init__(self, *, ordinal: bool = False, **parts: Any) -> None:
        super().__init__(**parts)
        classes = len(self.spec.class_names)
        if ordinal and classes < 3:
            raise ConfigError(
                f"task.ordinal=true wants three grades or more, and there are {classes} classes",
                remedy="task.ordinal=false",
            )
        self.ordinal = ordinal
        # chosen on validation data, part of the model from then on
        self.register_buffer("threshold", torch.tensor(0.5))

    @classmethod
    def direction(cls, metric: str) -> Direction:
        """See `Task.direction`."""
        return DIRECTIONS[cls.known(metric, DIRECTIONS)]

    def require_metric(self, metric: str) -> None:
        """See `Task.require_metric`."""
        classes = len(self.spec.class_names)
        if metric in OF_GRADES and not self.ordinal:
            raise ConfigError(
                f"metric '{metric}' is of grades, and the classes are not said to be in order",
                remedy="task.ordinal=true, if they are, or another trainer.selection.metric",
            )
        if metric in OF_TWO and classes != 2:
            raise ConfigError(
                f"metric '{metric}' is of two classes, and there are {classes}",
                remedy="choose another trainer.selection.metric",
            )

    @classmethod
    def head_arguments(cls, backbone: Backbone, data: Data) -> dict[str, Any]:
        """See `Task.head_arguments`."""
        return {"in_features": backbone.embedding_size, "outputs": len(data.spec.class_names)}

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return cast("Tensor", self.head(self.backbone.embed(images)))

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """See `Task.outputs`: `scores`, the probability of each class, (N, K)."""
        return {"scores": self(images).float().softmax(1)}

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.step`; keeps `scores`, the probabilities (N, K), and `target`."""
        logits = self.head(self.embedding(batch)).float()
        kept = {"index": batch["index"], **judged(logits, batch["target"])}
        return self.loss(logits, batch["target"]), kept

    def judge(self, batch: Batch) -> list[Judgement]:
        """See `Task.judge`: the likeliest class, or of two the one that `threshold` says."""
        scores = self.outputs(batch["image"])["scores"].cpu()
        return [
            Judgement(index, self._said(each))
            for index, each in zip(batch["index"].tolist(), scores, strict=True)
        ]

    def _said(self, scores: Tensor) -> dict[str, str | float | int]:
        names = self.spec.class_names
        called = int(scores.argmax())
        if len(names) == 2:
            called = int(scores[1] >= self.get_buffer("threshold").cpu())
        return {"predicted": names[called], **by_name(names, scores)}

    def evaluate(self, stage: Stage, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """See `Task.evaluate`; `loss` is the negative log-likelihood, whatever was trained."""
        scores, target = kept["scores"], kept["target"]
        classes = scores.shape[1]
        one_hot = torch.nn.functional.one_hot(target, classes)
        present = one_hot.sum(0) > 0
        recalls = multiclass_accuracy(scores, target, classes, average="none")
        values = {
            "loss": kept["nll"].mean(),
            "accuracy": multiclass_accuracy(scores, target, classes, average="micro"),
            "balanced_accuracy": recalls[present].mean(),
            "f1": multiclass_f1_score(scores, target, classes, average="macro"),
            "brier": ((scores - one_hot) ** 2).sum(1).mean() / (2 if classes == 2 else 1),
            "auroc": torch.tensor(torch.nan),
        }
        if int(present.sum()) > 1:
            areas = multiclass_auroc(scores, target, classes, average="none")
            # of two classes, the negative one would add nothing but ties of scores rounded to one
            values["auroc"] = areas[1] if classes == 2 else areas[present].mean()
        if classes == 2:
            positive = scores[:, 1].contiguous()
            if stage == "val":
                self._choose_threshold(positive, target)
            threshold = float(self.get_buffer("threshold"))
            flagged = positive >= threshold
            values |= {
                "average_precision": binary_average_precision(positive, target),
                "ece": binary_calibration_error(positive, target),
                "mcc": binary_matthews_corrcoef(flagged.long(), target),
                "sensitivity": flagged[target == 1].float().mean(),
                "specificity": (~flagged)[target == 0].float().mean(),
            }
        else:
            values |= {
                "average_precision": multiclass_average_precision(scores, target, classes),
                "ece": multiclass_calibration_error(scores, target, classes),
                "mcc": multiclass_matthews_corrcoef(scores, target, classes),
            }
        if self.ordinal:
            called = scores.argmax(1)
            kappa = multiclass_cohen_kappa(called, target, classes, weights="quadratic")
            values |= {"quadratic_kappa": kappa, "mae": (called - target).abs().float().mean()}
        return {name: float(value) for name, value in values.items()}

    def columns(self, kept: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """See `Task.columns`: the target, and the probability of each class."""
        scores = {
            f"score_{name}": kept["scores"][:, k] for k, name in enumerate(self.spec.class_names)
        }
        return {
            "target": kept["target"].numpy(),
            **{name: values.float().numpy() for name, values in scores.items()},
        }

    def examples(self, data: Data, kept: Mapping[str, Tensor]) -> Examples:
        """See `Task.examples`: the surest errors, or the least sure cases where all are right."""
        names, target = self.spec.class_names, kept["target"]
        sureness, predicted = kept["scores"].max(1)
        wrong = predicted != target
        errors = int(wrong.sum())
        heading = "most confident errors" if errors else "least certain of the correct cases"
        order = sureness.argsort(descending=errors > 0, stable=True)
        rows = order[wrong[order]] if errors else order
        cases = []
        for row in rows[:SHOWN].tolist():
            said = f"predicted: {names[predicted[row]]}, {sureness[row]:.2f}"
            words = (f"true: {names[target[row]]}", said)
            cases.append(self._case(row, words, data, kept))
        return Examples(
            title=f"{errors} of {len(target)} test cases are misclassified",
            note="predicted: the most probable class and its probability",
            groups={heading: cases},
        )

    def _case(
        self,
        row: int,
        words: tuple[str, ...],
        data: Data,  # noqa: ARG002
        kept: Mapping[str, Tensor],
    ) -> Case:
        """Return one of the cases that were kept, with what is said of it."""
        return Case(int(kept["index"][row]), words)

    def _choose_threshold(self, positive: Tensor, target: Tensor) -> None:
        false_positive_rate, true_positive_rate, thresholds = binary_roc(positive, target)
        best = int((true_positive_rate - false_positive_rate).argmax())
        self.get_buffer("threshold").fill_(thresholds[best].clamp(0, 1))


def judged(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return what metrics are computed from: `scores`, `target` and `nll`, by case."""
    return {
        "scores": logits.softmax(1),
        "target": target,
        "nll": torch.nn.functional.cross_entropy(logits, target, reduction="none"),
    }

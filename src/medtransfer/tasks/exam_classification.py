"""Exam classification: one or several images, one class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medtransfer.backbones.base import Backbone
from medtransfer.data.base import Annotation
from medtransfer.data.loading import Batch, Data
from medtransfer.heads.base import Head
from medtransfer.heads.exam import ExamHead
from medtransfer.tasks.base import Direction, Stage
from medtransfer.tasks.classification import DIRECTIONS, Classification, judged
from medtransfer.tasks.examples import Case, Examples, Panel
from medtransfer.tasks.heat import grad_cam
from medtransfer.tasks.judgement import Judgement

IMAGE = "image_"
OF_IMAGES = ("auroc", "average_precision", "accuracy", "balanced_accuracy")
SHOWN = 6  # images of an exam in a picture


class ExamClassification(Classification):
    """One class for each exam; metrics as those of `Classification`, a case being an exam.

    Beside them stand `image_auroc` and a few more: each image judged as if it were the whole exam,
    and had the exam's class. What they lack of the exam's own is what the images say together.
    """

    requires: ClassVar[Annotation] = "exam"
    head_base: ClassVar[type[Head]] = ExamHead

    @classmethod
    def direction(cls, metric: str) -> Direction:
        """See `Task.direction`."""
        names = (*DIRECTIONS, *(IMAGE + name for name in OF_IMAGES))
        return DIRECTIONS[cls.known(metric, names).removeprefix(IMAGE)]

    @classmethod
    def head_arguments(cls, backbone: Backbone, data: Data) -> dict[str, Any]:
        """See `Task.head_arguments`."""
        return {**super().head_arguments(backbone, data), "views": data.spec.views}

    def forward(
        self, images: Tensor, exam: Tensor | None = None, view: Tensor | None = None
    ) -> Tensor:
        """Return logits (N, K) of the images (M, C, H, W) of N exams; see `ExamHead.forward`."""
        return cast("Tensor", self.head(self.backbone.embed(images), exam, view))

    def outputs(self, images: Tensor, view: Tensor | None = None) -> dict[str, Tensor]:
        """See `Task.outputs`; of the images of one exam, (M, C, H, W).

        Args:
            images: All of the exam.
            view: Their positions in `DataSpec.views`, (M,), -1 where it is none; None: all -1.

        Returns:
            `scores`, the probability of each class, (1, K), and `weights`, how much each image
            counts, (M,).
        """
        embedding = self.backbone.embed(images)
        exam = images.new_zeros(images.shape[0], dtype=torch.int64)
        view = exam - 1 if view is None else view
        head = cast("ExamHead", self.head)
        return {
            "scores": head(embedding, exam, view).float().softmax(1),
            "weights": head.weights(embedding, exam, view).float(),
        }

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.step`; an exam's `index` is that of its first image.

        Keeps for each exam what `Classification` does, and in evaluation for each image, under
        `image_index` and so on, the same again, its `exam` (the exam's `index`), `view` and
        `weight`.
        """
        embedding, exam, view = self.embedding(batch), batch["exam"], batch["view"]
        counts = exam.bincount()
        first = counts.cumsum(0) - counts
        index, target = batch["index"][first], batch["target"][first]
        logits = self.head(embedding, exam, view).float()
        loss = self.loss(logits, target)
        if self.training:
            return loss, {}
        alone = torch.arange(len(exam), device=exam.device)
        images = {
            "index": batch["index"],
            "exam": index[exam],
            "view": view,
            "weight": cast("ExamHead", self.head).weights(embedding, exam, view),
            **judged(self.head(embedding, alone, view).float(), target[exam]),
        }
        kept = {"index": index, **judged(logits, target)}
        return loss, kept | {IMAGE + name: values for name, values in images.items()}

    def evidence(self, images: Tensor, view: Tensor | None = None) -> Tensor:
        """See `Task.evidence`: of the images of one exam, (1, K)."""
        view = torch.full((len(images),), -1) if view is None else view
        return self._evidence((), view, images)

    def judge(self, batch: Batch) -> list[Judgement]:
        """See `Task.judge`: of each exam, and how much each of its images counts."""
        found = []
        for number in batch["exam"].unique().tolist():
            mine = batch["exam"] == number
            index = batch["index"][mine].tolist()
            said = self.outputs(batch["image"][mine], batch["view"][mine])
            weights = dict(zip(index, said["weights"].tolist(), strict=True))
            values = self._said(said["scores"][0].cpu())
            found.append(Judgement(index[0], values, weights=weights))
        return found

    def evaluate(self, stage: Stage, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """See `Task.evaluate`."""
        values = super().evaluate(stage, kept)
        # as in a test: the threshold is the exams'
        by_image = super().evaluate("test", _of_images(kept))
        return values | {IMAGE + name: by_image[name] for name in OF_IMAGES}

    def tables(self, kept: Mapping[str, Tensor]) -> dict[str, dict[str, NDArray[Any]]]:
        """See `Task.tables`: of `images` the row of their exam, their weight, and their scores."""
        images, rows = _of_images(kept), {e: row for row, e in enumerate(kept["index"].tolist())}
        table: dict[str, NDArray[Any]] = {
            "index": images["index"].numpy(),
            "exam": np.array([rows[exam] for exam in images["exam"].tolist()], dtype=np.int64),
            "weight": images["weight"].float().numpy(),
        }
        scores = self.columns(images)
        del scores["target"]  # nobody has judged the image by itself
        return {"images": table | scores}

    def examples(self, data: Data, kept: Mapping[str, Tensor]) -> Examples:
        """See `Classification.examples`; with heat maps, where the network has places."""
        found = super().examples(data, kept)
        return replace(
            found,
            title=found.title.replace("test cases", "test exams"),
            heat="speaks for the predicted class (Grad-CAM), compared within the exam",
        )

    def _case(
        self, row: int, words: tuple[str, ...], data: Data, kept: Mapping[str, Tensor]
    ) -> Case:
        """Return an exam: the images that count most, those in front, and how many there are."""
        images = _of_images(kept)
        mine = (images["exam"] == kept["index"][row]).nonzero()[:, 0]
        mine = mine[images["weight"][mine].argsort(descending=True, stable=True)]
        index, view, weight = (images[name][mine] for name in ("index", "view", "weight"))
        heat = self._heat(data, index, view, int(kept["scores"][row].argmax()))
        panels = []
        for k in range(min(SHOWN, len(mine))):
            name = self.spec.views[view[k]] if view[k] >= 0 else ""
            heading = f"{name}, weight {weight[k]:.2f}" if name else f"weight {weight[k]:.2f}"
            map_ = None if heat is None else heat[k].numpy()
            panels.append(Panel(heading, heat=map_, index=int(index[k])))
        if len(mine) > SHOWN:
            rest = f"{len(mine) - SHOWN} more images, weight {weight[SHOWN:].sum():.2f} in all"
            words = (*words, rest)
        return Case(int(kept["index"][row]), words, tuple(panels))

    def _heat(self, data: Data, index: Tensor, view: Tensor, predicted: int) -> Tensor | None:
        """Return heat maps of an exam's first images, up to `SHOWN`, from all of its images."""
        batches = data.views(index.numpy(), None, count=1, batch_size=SHOWN, workers=0)
        first, *rest = (batch["image"].to(self.device) for batch in batches)
        with torch.no_grad():
            others = [self.backbone.embed(images) for images in rest]
        heat = grad_cam(self.backbone, first, partial(self._evidence, others, view), predicted)
        return None if heat is None else heat.cpu()

    def _evidence(self, others: Sequence[Tensor], view: Tensor, images: Tensor) -> Tensor:
        """Return the logits of an exam, (1, K), of its first images, and embeddings of others."""
        embedding = torch.cat([self.backbone.embed(images), *others])
        exam = torch.zeros(len(embedding), dtype=torch.int64, device=self.device)
        return cast("Tensor", self.head(embedding, exam, view.to(self.device)).float())


def _of_images(kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(IMAGE): values for k, values in kept.items() if k.startswith(IMAGE)}

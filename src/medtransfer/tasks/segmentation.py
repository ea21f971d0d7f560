"""Segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from medtransfer.backbones.base import Backbone
from medtransfer.data.base import IGNORED, Annotation
from medtransfer.data.loading import Batch, Data
from medtransfer.errors import ConfigError, MedtransferError
from medtransfer.heads.base import Head
from medtransfer.heads.segmentation import SegmentationHead
from medtransfer.tasks.base import Direction, Stage, Task
from medtransfer.tasks.examples import Case, Examples, Panel, extremes
from medtransfer.tasks.judgement import Judgement
from medtransfer.tasks.mask_losses import MaskLoss
from medtransfer.tasks.mask_metrics import mean_foreground, overlap_metrics, surface_metrics

METRICS = ("dice", "jaccard", "nsd", "hd95")


class Segmentation(Task):
    """A class for every pixel; metrics for each image and class, at the size of the input.

    A metric's headline is the mean over the foreground classes of its means over images, and each
    class has one of its own, such as `dice_lesion`. In an image where truth and prediction both
    lack a class, the class has no say; where one of them lacks it, overlap is zero and the
    Hausdorff distance the diagonal. Padding has no say either.

    Args:
        tolerance: Distance in pixels up to which a boundary counts as met (`nsd`).
        patch: Height and width of the patches that are trained on, one from each image at a random
            place; larger images are then tested window by window. None takes images whole.
        overlap: Share of a window that the next one covers again.
        **parts: See `Task`.
    """

    requires: ClassVar[Annotation] = "mask"
    headline: ClassVar[str] = "dice"
    represents: ClassVar[Literal["embedding", "pyramid"]] = "pyramid"
    head_base: ClassVar[type[Head]] = SegmentationHead
    loss_base: ClassVar[type[nn.Module] | None] = MaskLoss

    def __init__(
        self,
        *,
        tolerance: Annotated[float, Field(ge=0)],
        patch: Annotated[int, Field(ge=32)] | None,
        overlap: Annotated[float, Field(ge=0, lt=1)],
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.tolerance = tolerance
        self.patch = patch if patch is not None and patch < self.spec.image_size else None
        self.overlap = overlap
        if self.patch is not None:
            self._try(self.patch)

    @classmethod
    def direction(cls, metric: str) -> Direction:
        """See `Task.direction`; a class's own metric, such as `dice_lesion`, goes like all's."""
        whole, of_class, _ = metric.partition("_")
        name = cls.known(whole if of_class else metric, METRICS if of_class else ("loss", *METRICS))
        return "min" if name in {"loss", "hd95"} else "max"

    @classmethod
    def head_arguments(cls, backbone: Backbone, data: Data) -> dict[str, Any]:
        """See `Task.head_arguments`; background is an output too."""
        return {
            "channels": backbone.channels,
            "strides": backbone.strides,
            "image_size": data.spec.image_size,
            "outputs": len(data.spec.class_names) + 1,
        }

    @property
    def whole(self) -> bool:
        """See `Task.whole`."""
        return self.patch is None

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, 1 + classes, H, W) of images (N, C, H, W) in [0, 1]."""
        if self.patch is None:
            return self._logits(self.backbone.pyramid(images), images.shape[-2:])
        from monai.inferers.utils import sliding_window_inference  # takes a second to import

        size = (self.patch, self.patch)
        logits = sliding_window_inference(
            images, size, len(images), self._window, overlap=self.overlap, mode="gaussian"
        )
        return cast("Tensor", logits)

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """See `Task.outputs`: `scores`, the probability of background and classes at each pixel.

        What was trained on patches takes windows of their size, and whoever runs it slides them.
        """
        return {"scores": self._window(images).softmax(1)}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """See `Task.training_step`; where there are patches, they are all that is seen."""
        if self.patch is not None:
            image, mask = self._patches(batch["image"], batch["mask"])
            batch = {**batch, "image": image, "mask": mask}
        return super().training_step(batch, batch_idx)

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task.step`; keeps the metrics of each image and class, and its loss."""
        mask = batch["mask"]
        if self.training or self.patch is None:
            logits = self._logits(self.levels(batch), mask.shape[-2:])
        else:
            logits = self(batch["image"])
        logits = logits.float()
        loss = self.loss(logits, mask)
        if self.training:
            return loss, {}
        classes = len(self.spec.class_names)
        predicted = logits.argmax(1)
        values = overlap_metrics(predicted, mask, classes, ignore_index=IGNORED)
        values |= surface_metrics(
            predicted, mask, classes, tolerance=self.tolerance, ignore_index=IGNORED
        )
        return loss, {"index": batch["index"], "loss": loss.repeat(len(mask)), **values}

    def evidence(self, images: Tensor) -> Tensor:
        """See `Task.evidence`: the sum over the pixels that are taken for a class.

        As Vinogradova et al. (2020, arXiv 2002.11434) do it.
        """
        logits = self(images).float()
        taken = nn.functional.one_hot(logits.argmax(1), logits.shape[1]).movedim(-1, 1)
        return cast("Tensor", (logits * taken).sum((2, 3))[:, 1:])

    def judge(self, batch: Batch) -> list[Judgement]:
        """See `Task.judge`: the likeliest class of each pixel."""
        masks = self(batch["image"]).argmax(1).to(torch.uint8).cpu().numpy()
        return [
            Judgement(index, {}, mask=mask)
            for index, mask in zip(batch["index"].tolist(), masks, strict=True)
        ]

    def evaluate(self, stage: Stage, kept: Mapping[str, Tensor]) -> dict[str, float]:  # noqa: ARG002
        """See `Task.evaluate`; `loss` is the trained one."""
        found = {"loss": float(kept["loss"].mean())}
        for metric in METRICS:
            found[metric] = mean_foreground(kept[metric])
            means = kept[metric].nanmean(0).tolist()
            for name, mean in zip(self.spec.class_names, means, strict=True):
                found[f"{metric}_{name}"] = mean
        return found

    def columns(self, kept: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """See `Task.columns`: each metric, by class and as the mean over classes with a say."""
        found: dict[str, NDArray[Any]] = {}
        for metric in METRICS:
            values = kept[metric].numpy()
            defined = np.isfinite(values).any(1)
            found[metric] = np.full(len(values), np.nan, dtype=np.float32)
            found[metric][defined] = np.nanmean(values[defined], 1)
            for k, name in enumerate(self.spec.class_names):
                found[f"{metric}_{name}"] = values[:, k]
        return found

    def examples(self, data: Data, kept: Mapping[str, Tensor]) -> Examples:
        """See `Task.examples`: the best, the median and the worst by Dice."""
        dice = self.columns(kept)["dice"]

        def case(row: int) -> Case:
            index = int(kept["index"][row])
            batch = next(
                iter(data.views(np.array([index]), None, count=1, batch_size=1, workers=0))
            )
            mask = batch["mask"][0]
            predicted = self(batch["image"].to(self.device)).argmax(1)[0].cpu()
            predicted[mask == IGNORED] = 0  # as it was scored
            views = {"truth": mask, "prediction": predicted}
            panels = [
                Panel(name, mask=view.numpy().astype(np.uint8)) for name, view in views.items()
            ]
            return Case(index, (f"Dice {dice[row]:.2f}",), tuple(panels))

        groups = {name: [case(row) for row in rows] for name, rows in extremes(dice).items()}
        return Examples(
            title=f"Best, median and worst of {len(dice)} test images by Dice",
            note="Dice: mean over the classes that truth or prediction shows",
            names=self.spec.class_names,
            groups=groups,
        )

    def _logits(self, levels: list[Tensor], size: torch.Size) -> Tensor:
        return cast("Tensor", self.head(levels, (size[0], size[1])))

    def _window(self, images: Tensor) -> Tensor:
        levels = self.backbone.pyramid(images)
        return self._logits(levels, images.shape[-2:]).float()

    def _try(self, patch: int) -> None:
        """Refuse patches that backbone or head cannot take, before there is anything to lose."""
        self.eval()
        try:
            with torch.no_grad():
                self._window(torch.zeros(1, self.spec.channels, patch, patch))
        except MedtransferError:
            raise
        except Exception as error:  # models assert their sizes in their own ways
            raise ConfigError(
                f"patches of {patch} px do not suit the backbone:"
                f" {str(error) or type(error).__name__}",
                remedy="choose another task.patch, or task.patch=null",
            ) from None
        finally:
            self.train()

    def _patches(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Cut one patch out of each image, where the trial's seed and the step say."""
        assert self.patch is not None
        rng = np.random.default_rng([torch.initial_seed() % 2**32, self.trainer.global_step])
        room = images.shape[-1] - self.patch
        places = rng.integers(0, room + 1, (len(images), 2)).tolist()
        cuts = [(slice(y, y + self.patch), slice(x, x + self.patch)) for y, x in places]
        return (
            torch.stack([image[:, ys, xs] for image, (ys, xs) in zip(images, cuts, strict=True)]),
            torch.stack([each[ys, xs] for each, (ys, xs) in zip(mask, cuts, strict=True)]),
        )

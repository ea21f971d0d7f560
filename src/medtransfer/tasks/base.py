"""What every task shares: the model, the frozen parts at rest, the optimizer, the outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, cast

import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from medtransfer.backbones.base import Backbone
from medtransfer.data.base import Annotation, DataSpec
from medtransfer.data.loading import Batch, Data
from medtransfer.data.sampling import CaseBatches
from medtransfer.errors import ConfigError, DivergedError
from medtransfer.heads.base import Head
from medtransfer.strategies import freezing
from medtransfer.strategies.base import Strategy
from medtransfer.tasks.examples import Examples
from medtransfer.tasks.judgement import Judgement
from medtransfer.tasks.optimizing import MakeOptimizer, scheduled, total_steps
from medtransfer.tasks.schedulers import Scheduler

Stage = Literal["train", "val", "test"]
Direction = Literal["min", "max"]


def metric_name(split: str, metric: str) -> str:
    """Return the one name of a metric: `{split}/{metric}`."""
    return f"{split}/{metric}"


class Task(pl.LightningModule, ABC):
    """A backbone and a head that learn one kind of target under one strategy.

    Training, validation and test share `step`; metrics are computed once over all cases of a split,
    never averaged over batches.

    Args:
        backbone: Turns images into features.
        head: Turns features into outputs.
        loss: Of outputs and targets; None where the head brings its own.
        strategy: What learns.
        schedule: How the learning rate moves.
        optimizer: Keys of the optimizer's configuration, for the strategy to scale.
        make_optimizer: Builds the optimizer from `params`, the strategy's groups.
        spec: What is known of the data.
    """

    requires: ClassVar[Annotation]
    """The kind of annotation that the task learns from."""
    headline: ClassVar[str]
    """The metric that answers are about."""
    represents: ClassVar[Literal["embedding", "pyramid"]]
    """What of the backbone's outputs the head takes."""
    head_base: ClassVar[type[Head]]
    """What its head derives from."""
    loss_base: ClassVar[type[nn.Module] | None]
    """What its loss derives from; None where the head brings its own losses."""

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        loss: nn.Module | None,
        strategy: Strategy,
        schedule: Scheduler,
        optimizer: Mapping[str, Any],
        make_optimizer: MakeOptimizer,
        spec: DataSpec,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.loss: Any = loss
        self.strategy_ = strategy
        self.schedule = schedule
        self.optimizer_config = optimizer
        self.make_optimizer = make_optimizer
        self.spec = spec
        self.kept: dict[Stage, dict[str, Tensor]] = {}
        self.scored: Counter[Stage] = Counter()  # how often each split was looked at
        self._batches: list[dict[str, Tensor]] = []
        self._levels: list[Tensor] = []  # the pyramid of the batch, where the strategy wants it

    @classmethod
    @abstractmethod
    def direction(cls, metric: str) -> Direction:
        """Return whether more or less of a metric is better.

        Raises:
            ConfigError: If the task has no such metric.
        """

    @classmethod
    @abstractmethod
    def head_arguments(cls, backbone: Backbone, data: Data) -> dict[str, Any]:
        """Return what the head must know of the backbone and the data."""

    @abstractmethod
    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and in evaluation what is kept of each case.

        What is kept holds `index` and whatever `evaluate` and `columns` need.
        """

    @abstractmethod
    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Return what the model says of images (N, C, H, W) in [0, 1], each under its name.

        This is what an exported model returns: probabilities, before any threshold or suppression.
        """

    def evidence(self, images: Tensor) -> Tensor:
        """Return what speaks for each class in images (N, C, H, W), (N, K), with gradients."""
        return cast("Tensor", self(images).float())

    @abstractmethod
    def judge(self, batch: Batch) -> list[Judgement]:
        """Return what is said of each case of a batch of images; their targets have no say."""

    @abstractmethod
    def evaluate(self, stage: Stage, kept: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the metrics of one split, unprefixed, from what `step` kept of its cases."""

    @abstractmethod
    def columns(self, kept: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
        """Return the columns of the table of predictions, a row for each case that was kept."""

    def tables(self, kept: Mapping[str, Tensor]) -> dict[str, dict[str, NDArray[Any]]]:  # noqa: ARG002
        """Return further tables by name; their column `index` says which record a row is of."""
        return {}

    def examples(self, data: Data, kept: Mapping[str, Tensor]) -> Examples | None:  # noqa: ARG002
        """Return cases that are worth a look, or None; the model is in eval mode.

        Args:
            data: Holds their images.
            kept: What `step` kept of a split.
        """
        return None

    def require_metric(self, metric: str) -> None:
        """Refuse a metric, by its name without prefix, that there is not for these data or keys.

        Raises:
            ConfigError: If validation will not give it.
        """

    @property
    def whole(self) -> bool:
        """Whether images are looked at whole, so that features of them can stand in for them."""
        return True

    @classmethod
    def known(cls, metric: str, names: Iterable[str]) -> str:
        """Return the name of a metric, provided that it is one.

        Raises:
            ConfigError: If it is none of the names.
        """
        if metric not in names:
            task = cls.__name__.lower()
            raise ConfigError(f"{task} has no metric '{metric}'", value=metric, choices=names)
        return metric

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch; training is not scored, since its images are augmented.

        Of a part of a batch it is multiplied by its share, so that the gradients of all parts
        average to that of the batch. What is logged are means over the cases of an epoch.

        Raises:
            DivergedError: If it is no number.
        """
        loss, _ = self.step(batch)
        if not bool(torch.isfinite(loss)):
            raise DivergedError(
                f"the loss is {float(loss.detach()):g} at step {self.trainer.global_step} (epoch"
                f" {self.trainer.current_epoch}, batch {batch_idx})",
                remedy="a smaller optimizer.lr, or trainer.gradient_clip=1",
            )
        values = {"loss": loss}
        penalty = None
        if "image" in batch:  # a backbone that learns from them is pulled back, if any is
            penalty = self.strategy_.penalty(self, batch["image"], self._levels)
        if penalty is not None:
            values["penalty"] = penalty
        named = {metric_name("train", name): value for name, value in values.items()}
        share = self._share(batch_idx)
        cases = int(batch["exam"][-1]) + 1 if "exam" in batch else len(batch["index"])
        # those of an empty part count nothing; integers are averaged over ranks, and must divide
        cases *= (share > 0) * self.trainer.world_size
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=cases, sync_dist=True)
        return share * (loss if penalty is None else loss + penalty)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Keep the outputs of one batch."""
        self._batches.append(self.step(batch)[1])

    def test_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Keep the outputs of one batch."""
        self._batches.append(self.step(batch)[1])

    def on_validation_epoch_end(self) -> None:
        """Compute and log the validation metrics; the outputs stay in `kept`."""
        self._score("val")

    def on_test_epoch_end(self) -> None:
        """Compute and log the test metrics; the outputs stay in `kept`."""
        self._score("test")

    def embedding(self, batch: Batch) -> Tensor:
        """Return the embedding of a batch, (N, D): computed before, or now from its images."""
        if "image" not in batch:
            return batch["embedding"]
        if self.training and self.strategy_.distils:
            embedding, self._levels = self.backbone.features(batch["image"])
            return embedding
        return self.backbone.embed(batch["image"])

    def levels(self, batch: Batch) -> list[Tensor]:
        """Return the pyramid of a batch: computed before, or now from its images."""
        if "image" not in batch:
            return batch["levels"]
        levels = self.backbone.pyramid(batch["image"])
        if self.training and self.strategy_.distils:
            self._levels = levels
        return levels

    @property
    def progress(self) -> float:
        """Share of the training's steps that is done, in [0, 1]."""
        return min(1.0, self.trainer.global_step / total_steps(self.trainer))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Give the optimizer what the strategy declares, and nothing else."""
        groups = self.strategy_.parameter_groups(self, self.optimizer_config)
        pace = self.strategy_.pace

        def factor(progress: float) -> float:
            return self.schedule.factor(pace(progress))

        return scheduled(self.make_optimizer(params=groups), factor, self.trainer)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Show the gradients to the strategy."""
        self.strategy_.before_step(self, optimizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the strategy needs to go on."""
        checkpoint["strategy"] = self.strategy_.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the strategy what it kept."""
        self.strategy_.load_state(checkpoint["strategy"])

    def train(self, mode: bool = True) -> Task:
        """Set the mode, and keep the frozen parts at rest."""
        super().train(mode)
        freezing.rest(self)
        return self

    def on_train_epoch_start(self) -> None:
        """Keep the frozen parts at rest: Lightning restores modes without calling `train`."""
        freezing.rest(self)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        """Enter the strategy's phase of this step."""
        self.strategy_.on_step_start(self, self.progress)

    def _share(self, batch_idx: int) -> float:
        batches = getattr(self.trainer.train_dataloader, "batch_sampler", None)
        return batches.share(batch_idx) if isinstance(batches, CaseBatches) else 1.0

    def _score(self, stage: Stage) -> None:
        parts, self._batches = self._batches, []
        self.kept[stage] = {key: torch.cat([p[key] for p in parts]).cpu() for key in parts[0]}
        self.scored[stage] += 1
        values = self.evaluate(stage, self.kept[stage])
        named = {metric_name(stage, name): value for name, value in values.items()}
        self.log_dict(named, sync_dist=True)  # all ranks decide by the same values

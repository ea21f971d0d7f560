"""What a source of pre-training is, and the loop that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import pytorch_lightning as pl
import torch
from pydantic import Field
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from medtransfer.backbones.base import Backbone
from medtransfer.seeding import derive
from medtransfer.tasks.optimizing import MakeOptimizer, scheduled
from medtransfer.tasks.schedulers import Scheduler


class Learner(nn.Module, ABC):
    """A backbone with whatever it needs to learn from a source; only the backbone is kept."""

    backbone: Backbone

    @abstractmethod
    def forward(self, batch: Any) -> Tensor:
        """Return the loss of one batch, a scalar."""


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Where pre-training takes its images and targets from.

    Attributes:
        image_size: Height and width of the images in pixels.
    """

    trained_on: ClassVar[str]
    """The images, for the provenance of the weights."""
    licence: ClassVar[str]
    """Under which the weights may be used."""

    image_size: Annotated[int, Field(ge=32)]

    @abstractmethod
    def batch(self, size: int, channels: int, generator: torch.Generator) -> Any:
        """Return one batch of training material."""

    @abstractmethod
    def learner(self, backbone: Backbone) -> Learner:
        """Return the backbone with its decoder and loss."""


class Pretraining(pl.LightningModule):
    """The loop: one optimizer over everything, one schedule.

    Args:
        learner: The backbone with its decoder and loss.
        schedule: How the learning rate moves.
        make_optimizer: Builds the optimizer from `params`.
    """

    def __init__(
        self,
        learner: Learner,
        schedule: Scheduler,
        make_optimizer: MakeOptimizer,
    ) -> None:
        super().__init__()
        self.learner = learner
        self.schedule = schedule
        self.make_optimizer = make_optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of one batch."""
        loss: Tensor = self.learner(batch)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Give the optimizer every parameter."""
        optimizer = self.make_optimizer(params=self.learner.parameters())
        return scheduled(optimizer, self.schedule, self.trainer)


class Batches(IterableDataset[Any]):
    """Generated batches, each of them a function of the seed and its number.

    Args:
        source: What generates.
        size: Images in a batch.
        channels: Channels of an image.
        steps: Number of batches.
        seed: Seed of the pre-training.
    """

    def __init__(self, source: Source, size: int, channels: int, steps: int, seed: int) -> None:
        self.source = source
        self.size = size
        self.channels = channels
        self.steps = steps
        self.seed = seed

    def __iter__(self) -> Iterator[Any]:
        for step in range(self.steps):
            generator = torch.Generator().manual_seed(derive(self.seed, step))
            yield self.source.batch(self.size, self.channels, generator)

    def loader(self, workers: int) -> DataLoader[Any]:
        """Return a loader that takes the batches as they are."""
        return DataLoader(self, batch_size=None, num_workers=workers)

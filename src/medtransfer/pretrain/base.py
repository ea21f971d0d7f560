"""What a source of pre-training is, and the loop that all of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pytorch_lightning as pl
import torch
from pydantic import Field
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from medtransfer.backbones.base import Backbone
from medtransfer.errors import ConfigError
from medtransfer.seeding import derive
from medtransfer.tasks.optimizing import MakeOptimizer, scheduled
from medtransfer.tasks.schedulers import Scheduler

if TYPE_CHECKING:
    from medtransfer.pretrain.images import Images


class Learner(nn.Module, ABC):
    """A backbone with whatever it needs to learn from a source; only the backbone is kept.

    Attributes:
        backbone: What is trained.
        stages: Names of what is learnt one after the other, such as the layers of a stack.
    """

    backbone: Backbone
    stages: Sequence[str] = ("all",)

    def begin(self, stage: int) -> None:
        """Make ready for a stage: what learns in it requires a gradient, and nothing else does.

        Args:
            stage: Index in `stages`; those before it have been learnt.
        """

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Return the `loss` of one batch, and whatever else is worth watching, as scalars.

        What is drawn at random comes from torch's global generator, which is seeded for each step.
        """

    def measure(self, seen: Tensor, unseen: Tensor) -> dict[str, float]:  # noqa: ARG002
        """Return what can be said of a stage once it is learnt.

        Args:
            seen: Images that it learnt from, (N, C, H, W) in [0, 1].
            unseen: Images that it did not, (M, C, H, W).
        """
        return {}


class Material(ABC):
    """What batches are made of."""

    image_size: int
    """Height and width of the images in pixels."""

    @abstractmethod
    def draw(self, step: int, size: int, channels: int, generator: Generator) -> Any:
        """Return the batch of a step; a function of the arguments alone.

        Args:
            step: Number of the step in its stage, from 0.
            size: Images in the batch.
            channels: Channels of an image.
            generator: Seeded for this step.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what the provenance of the weights tells: `trained_on`, `licence` and more."""


class Source(ABC):
    """Where pre-training takes its material from, and how a backbone learns from it."""

    @abstractmethod
    def material(self, images: Images | None) -> Material:
        """Return what batches are made of.

        Args:
            images: The training part of the dataset, where one was chosen.

        Raises:
            ConfigError: If a dataset is missing, or of no use.
        """

    @abstractmethod
    def learner(self, backbone: Backbone, material: Any) -> Learner:
        """Return the backbone with its decoder and loss.

        Args:
            backbone: What is trained.
            material: What `material` returned.

        Raises:
            ConfigError: If the backbone cannot learn in this way.
        """


@dataclass(frozen=True, kw_only=True)
class GeneratedSource(Source, Material):
    """A source that makes its own images.

    Attributes:
        image_size: Height and width of the images in pixels.
    """

    trained_on: ClassVar[str]
    """The images, for the provenance of the weights."""

    image_size: Annotated[int, Field(ge=32)]

    def material(self, images: Images | None) -> Material:
        """See `Source.material`."""
        if images is not None:
            raise ConfigError(
                f"source {type(self).__name__} makes its own images and takes no dataset",
                remedy="leave dataset=... out, or choose a source that learns from one",
            )
        return self

    def describe(self) -> dict[str, Any]:
        """See `Material.describe`."""
        return {
            "trained_on": self.trained_on,
            "licence": "Apache-2.0",
            "statistics": False,  # those of generated images are not the target's
        }


class DatasetSource(Source):
    """A source that learns from the training part of a dataset."""

    def material(self, images: Images | None) -> Material:
        """See `Source.material`."""
        if images is None:
            raise ConfigError(
                f"source {type(self).__name__} learns from a dataset, and none is chosen",
                remedy="add dataset=NAME; medtransfer list dataset shows all",
            )
        return images


class Pretraining(pl.LightningModule):
    """The loop of one stage: one optimizer over all that learns, one schedule.

    Args:
        learner: The backbone with its decoder and loss.
        stage: Index of the stage.
        schedule: How the learning rate moves.
        make_optimizer: Builds the optimizer from `params`.
        seed: Seed of the pre-training.
    """

    def __init__(
        self,
        learner: Learner,
        stage: int,
        schedule: Scheduler,
        make_optimizer: MakeOptimizer,
        seed: int,
    ) -> None:
        super().__init__()
        learner.begin(stage)
        self.learner = learner
        self.stage = stage
        self.schedule = schedule
        self.make_optimizer = make_optimizer
        self.seed = seed

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Seed the step, so that one after a resumption draws what it would have drawn."""
        torch.manual_seed(derive(self.seed, "step", self.stage, self.global_step))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        """Return the loss of one batch."""
        values = self.learner(batch)
        self.log_dict({f"train/{name}": value.detach() for name, value in values.items()})
        loss: Tensor = values["loss"]
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Give the optimizer every parameter that learns in this stage."""
        learning = [p for p in self.learner.parameters() if p.requires_grad]
        return scheduled(self.make_optimizer(params=learning), self.schedule.factor, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the stage in the checkpoint."""
        checkpoint["stage"] = self.stage


class Batches(IterableDataset[Any]):
    """The batches of a stage, each of them a function of the seed and its number.

    Args:
        material: What they are made of.
        size: Images in a batch.
        channels: Channels of an image.
        steps: The numbers of the steps, in order.
        seed: Seed of the stage.
    """

    def __init__(
        self, material: Material, size: int, channels: int, steps: range, seed: int
    ) -> None:
        self.material = material
        self.size = size
        self.channels = channels
        self.steps = steps
        self.seed = seed

    def __iter__(self) -> Iterator[Any]:
        for step in self.steps:
            generator = Generator().manual_seed(derive(self.seed, step))
            yield self.material.draw(step, self.size, self.channels, generator)

    def loader(self, workers: int) -> DataLoader[Any]:
        """Return a loader that takes the batches as they are, in their order."""
        return DataLoader(self, batch_size=None, num_workers=min(workers, 1))

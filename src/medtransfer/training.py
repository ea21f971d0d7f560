"""The part of a trial that learns: from a model that was set up to one that is selected."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning.callbacks import Callback, EarlyStopping

from medtransfer import machine, parallel
from medtransfer.callbacks import Best, Curve, Draws, Heed, LastStep, Median, Recorder
from medtransfer.certificate import Certificate
from medtransfer.checkpoint import Resume, Shelf, State
from medtransfer.config import TrainConfig
from medtransfer.data.sampling import Parts
from medtransfer.feed import Feed, device_of
from medtransfer.run import Trial, prepare
from medtransfer.seeding import seed_part
from medtransfer.strategies.base import Score
from medtransfer.strategies.solved import Solved
from medtransfer.tasks.base import metric_name
from medtransfer.tracking.runs import Run


class Training:
    """A trial whose model its strategy has set up, ready to learn.

    Args:
        trial: Whose model is set up here.
        settings: How it computes.
        shelf: Where the state of the training is kept.
        state: That an earlier part of it has left; None: there was none.
    """

    def __init__(
        self, trial: Trial, settings: machine.Machine, shelf: Shelf, state: State | None
    ) -> None:
        self.heed = Heed()
        self.trial = trial
        self.settings = settings
        before = {} if state is None else state["seconds"]
        self.began: float = time.perf_counter() - before.get("train", 0.0)
        config, model = trial.config, trial.model
        seed_part(config.seed, "training")
        model.to(memory_format=torch.channels_last)
        images = trial.data.loader("train", batch_size=config.trainer.batch_size)
        statistics = trial.provenance.statistics
        model.strategy_.setup(model, (batch["image"] for batch in images), statistics=statistics)
        self.certificate = Certificate.of(model, model.strategy_)
        self.feed = Feed(trial, settings)
        self.feed.seconds += before.get("features", 0.0)
        self.certificate.features = self.feed.describe()
        self.score = _scorer(trial, self.feed, settings)
        """Scores the model as it is on validation data, more being better."""
        self.resume = Resume(
            shelf,
            self.certificate,
            every=config.trainer.save_every,
            state=None if state is None else shelf.fitting(state, model, self.certificate),
            facts=self._facts,
        )

    @property
    def seconds(self) -> float:
        """Spent since the training began, the earlier parts of an interrupted one counted too."""
        return time.perf_counter() - self.began

    def _facts(self) -> State:
        seconds = {"train": self.seconds, "features": self.feed.seconds}
        return {"accumulate": self.trial.config.trainer.accumulate, "seconds": seconds}


@dataclass(frozen=True)
class Fitted:
    """What a training in steps came to.

    Attributes:
        best: The best epoch, and what the model was then.
        epochs: How many were begun.
        steps: How many the optimizer made.
        pruned: Whether it was given up; None where that could not be.
    """

    best: Best
    epochs: int
    steps: int
    pruned: bool | None


def fit(training: Training, run: Run, others: Sequence[Curve] | None) -> Fitted:
    """Train in steps, on all devices; the model ends as the last step leaves it.

    Args:
        training: What is trained.
        run: Is told of each epoch.
        others: Curves of trials whose median this one must reach, or be given up; None: never.
    """
    config, shelf = training.trial.config, training.resume.shelf
    ranks = parallel.ranks(config, config.trainer.devices, take_part, shelf)
    with ranks as group:
        return _fit(training, run, others, group)


def take_part(config: TrainConfig, group: parallel.Group, shelf: Shelf) -> None:
    """Train as one of the other ranks, from where rank 0 does."""
    settings = machine.resolve(config.trainer)
    torch.set_num_threads(int(settings.threads.value))
    training = Training(prepare(config), settings, shelf, shelf.read())
    _fit(training, parallel.Mute(shelf.folder.name), None, group)


def _fit(
    training: Training, run: Run, others: Sequence[Curve] | None, group: parallel.Group | None
) -> Fitted:
    trial, feed = training.trial, training.feed
    config = trial.config.trainer
    monitor = metric_name("val", trial.metric)
    best = Best(monitor, trial.mode, frozen=training.certificate.frozen)
    median = None if others is None else Median(monitor, trial.mode, others)
    stopping = _early_stopping(trial)
    watching: list[Callback | None] = [training.heed, Draws(trial.config.seed), best]
    watching += [Recorder(run), median, LastStep(), stopping, training.resume]
    every = config.validate_every
    trainer = trainer_of(
        training.settings,
        max_epochs=config.max_epochs,
        max_steps=config.max_steps or -1,
        # in steps, Lightning counts on from epoch to epoch only when epochs are switched off
        max_time=None if config.max_seconds is None else timedelta(seconds=config.max_seconds),
        val_check_interval=every and every * config.accumulate,  # it counts parts
        check_val_every_n_epoch=None if every else 1,
        gradient_clip_val=config.gradient_clip,
        accumulate_grad_batches=config.accumulate,
        callbacks=[each for each in watching if each is not None],
        enable_checkpointing=True,
        **({} if group is None else _joined(group)),
    )
    parts = Parts(config.accumulate) if group is None else group.parts(config.accumulate)
    batches = feed.train(parts), feed.ordered("val")
    with machine.threads(1 if feed.light else torch.get_num_threads()):
        trainer.fit(trial.model, *batches)
    pruned = None if median is None else median.pruned
    return Fitted(best, trainer.current_epoch, trainer.global_step, pruned)


def _joined(group: parallel.Group) -> dict[str, Any]:
    return {"strategy": group.strategy(), "devices": group.size, "plugins": None}


def solve(training: Training) -> dict[str, Any]:
    """Solve the head of a model whose strategy does not train in steps.

    Returns:
        What was chosen on validation, by name.
    """
    model = training.trial.model
    assert isinstance(model.strategy_, Solved)
    weights = model.loss.weight
    features, targets = training.feed.table()
    with machine.threads(1):  # matrices are so small that more would only wait for each other
        return model.strategy_.fit_head(model, features, targets, weights, training.score)


def trainer_of(settings: machine.Machine, **more: Any) -> pl.Trainer:
    """Return a quiet trainer of this process alone, unless told otherwise, without a logger."""
    usual: dict[str, Any] = {
        "devices": 1,
        # under Slurm, Lightning would take the job's ranks for its own
        "plugins": LightningEnvironment(),
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(
        accelerator=str(settings.accelerator.value),
        precision=machine.lightning_precision(settings.precision.value),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # ours know the ranks
        **(usual | more),
    )
    # what signals do is the program's affair: Lightning would have them broadcast to other ranks in
    # the middle of something else, and put back handlers that have given way
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _early_stopping(trial: Trial) -> EarlyStopping | None:
    config = trial.config.trainer.early_stopping
    if config.patience is None:
        return None
    return EarlyStopping(
        metric_name("val", trial.metric),
        mode=trial.mode,
        patience=config.patience,
        min_delta=config.min_delta,
    )


def _scorer(trial: Trial, feed: Feed, settings: machine.Machine) -> Score:
    """Return what scores the model as it is on validation data, more being better."""
    device, bf16 = device_of(settings), settings.precision.value == "bf16"
    sign = 1.0 if trial.mode == "max" else -1.0

    @torch.no_grad()
    def score() -> float:
        model = trial.model.to(device).eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            kept = [
                model.step(move_data_to_device(batch, device))[1] for batch in feed.ordered("val")
            ]
        together = {key: torch.cat([part[key] for part in kept]).cpu() for key in kept[0]}
        model.scored["val"] += 1
        value = sign * model.evaluate("val", together)[trial.metric]
        return -math.inf if math.isnan(value) else value

    return score

"""What watches a training: keeps its best epoch, records it, ends it."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from medtransfer.console import Reporter
from medtransfer.tasks.base import Task, metric_name
from medtransfer.tracking.runs import Run

Curve = Sequence[float]
"""The selection metric of a trial, validation by validation."""


class Best(Callback):
    """Keeps what the model was in its best epoch, the frozen part aside, which does not change.

    Args:
        monitor: The metric.
        mode: Whether more or less of it is better.
        frozen: Names of the values that stay.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"], frozen: Container[str]) -> None:
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.frozen = frozen
        self.score = -math.inf
        self.epoch = 0
        self.state: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See Lightning's hook of this name."""
        score = self.sign * float(trainer.callback_metrics[self.monitor])
        if self.state and not score > self.score:  # of equals, the first; of undefined ones too
            return
        self.score = -math.inf if math.isnan(score) else score
        self.epoch = trainer.current_epoch
        self.state = {
            name: value.detach().to("cpu", copy=True)
            for name, value in pl_module.state_dict().items()
            if name not in self.frozen
        }


class Recorder(Callback):
    """Sends the metrics of each validated epoch to the run and to the screen."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.validated = False

    def on_validation_end(self, *_: Any) -> None:
        """See Lightning's hook of this name."""
        self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See Lightning's hook of this name."""
        if not self.validated:
            return  # a tiny training set has more epochs than validations
        self.validated = False
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values["train/lr"] = trainer.optimizers[0].param_groups[-1]["lr"]
        if trainer.current_epoch > self.run.last_step:  # else it was told before an interruption
            self.run.metrics(values, step=trainer.current_epoch)
        if Reporter.active is not None:
            assert isinstance(pl_module, Task)
            shown = ("train/loss", metric_name("val", pl_module.headline))
            done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
            if trainer.max_steps > 0:
                done, total = trainer.global_step, trainer.max_steps
            noted = {name: values[name] for name in shown if name in values}
            Reporter.active.advance(done, total, noted)


class LastStep(Callback):
    """Ends training in mid-epoch with a validation, so that the last steps can be selected too."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """See Lightning's hook of this name."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates when it is told to stop, not at limits


class Median(Callback):
    """Gives a training up that is worse than the median of others at the same validation.

    The rule is Optuna's `MedianPruner` (Golovin et al. 2017).

    Args:
        monitor: The metric.
        mode: Whether more or less of it is better.
        others: What it was in those that came before.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"], others: Sequence[Curve]) -> None:
        import optuna

        self.monitor = monitor
        self.pruned = False
        self.seen = 0
        pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
        study = optuna.create_study(
            direction="maximize" if mode == "max" else "minimize", pruner=pruner
        )
        for curve in others:
            values = dict(enumerate(curve))
            study.add_trial(optuna.create_trial(value=curve[-1], intermediate_values=values))
        self.trial = study.ask()

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """See Lightning's hook of this name."""
        self.trial.report(float(trainer.callback_metrics[self.monitor]), self.seen)
        self.seen += 1
        if self.trial.should_prune():
            self.pruned = True
            trainer.should_stop = True

"""What watches a training: keeps its best epoch, records it, ends it."""

from __future__ import annotations

import math
import signal
from collections.abc import Container, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from medtransfer.console import Reporter
from medtransfer.seeding import derive
from medtransfer.tasks.base import Task, metric_name
from medtransfer.tracking.runs import Interrupted, Run

Curve = Sequence[float]
"""The selection metric of a trial, validation by validation."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


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

    def state_dict(self) -> dict[str, Any]:
        """See Lightning's method of this name."""
        return {"score": self.score, "epoch": self.epoch, "state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See Lightning's method of this name."""
        self.score = state_dict["score"]
        self.epoch = state_dict["epoch"]
        self.state = state_dict["state"]


class Recorder(Callback):
    """Sends the metrics of each validated epoch to the run and to the screen.

    What a run was told of an epoch before it was interrupted is not told again.

    Args:
        run: Where to.
    """

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
        if trainer.current_epoch > self.run.last_step:
            self.run.metrics(values, step=trainer.current_epoch)
            self.run.last_step = trainer.current_epoch
        if Reporter.active is not None:
            assert isinstance(pl_module, Task)
            shown = ("train/loss", metric_name("val", pl_module.headline))
            done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
            if trainer.max_steps > 0:
                done, total = trainer.global_step, trainer.max_steps
            noted = {name: values[name] for name in shown if name in values}
            Reporter.active.advance(done, total, noted)


class Heed(Callback):
    """Ends a training whose program was told to stop, and did not hear it.

    A signal raises `Interrupted` wherever the program is, and what is raised in a destructor is
    lost. The handler of a signal gives way to SIG_IGN when it is called, by which it is known.
    """

    def __init__(self) -> None:
        self.heard = [each for each in STOPPING if signal.getsignal(each) != signal.SIG_IGN]

    def check(self) -> None:
        """Raise what was lost.

        Raises:
            Interrupted: If a signal has come.
        """
        for each in self.heard:
            if signal.getsignal(each) == signal.SIG_IGN:
                raise Interrupted(each)

    def on_train_batch_start(self, *_: Any) -> None:
        """See Lightning's hook of this name."""
        self.check()


class Draws(Callback):
    """Lets what is drawn at random in an epoch follow from the seed and the epoch alone.

    So an epoch is the same in a training that goes on from the end of the one before.

    Args:
        seed: The trial's.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """See Lightning's hook of this name; loaders have taken their own numbers before it."""
        if batch_idx == 0:
            seed = derive(self.seed, "epoch", trainer.current_epoch, trainer.global_rank)
            # torch.manual_seed seeds absent GPUs too, and notes a stack trace each time
            torch.default_generator.manual_seed(seed)
            if pl_module.device.type == "cuda":
                torch.cuda.manual_seed(seed)


class LastStep(Callback):
    """Ends training in mid-epoch with a validation, so that the last steps can be selected too.

    Of several ranks all end when one of them is told to.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """See Lightning's hook of this name."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates when it is told to stop, not at limits

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """See Lightning's hook of this name."""
        told = trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False)
        trainer.should_stop = told


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
        self.curve: list[float] = []
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
        self._report(float(trainer.callback_metrics[self.monitor]))
        if self.trial.should_prune():
            self.pruned = True
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """See Lightning's method of this name."""
        return {"curve": list(self.curve), "pruned": self.pruned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See Lightning's method of this name."""
        self.pruned = state_dict["pruned"]
        for value in state_dict["curve"]:
            self._report(value)

    def _report(self, value: float) -> None:
        self.trial.report(value, len(self.curve))
        self.curve.append(value)

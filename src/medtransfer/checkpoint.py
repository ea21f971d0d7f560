"""What lies on disk of a training: the state it goes on from, and what stays of it at the end."""

from __future__ import annotations

import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.callbacks import Callback, Checkpoint
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from medtransfer import __version__
from medtransfer.certificate import Certificate
from medtransfer.errors import Note, StoreError
from medtransfer.tasks.base import Task

State = dict[str, Any]
"""Tensors and plain values: nothing in a checkpoint is executed when it is read."""


class Shelf:
    """Where the checkpoints of one run lie.

    Args:
        folder: The run's own.
        trial_id: What the run is of.
    """

    def __init__(self, folder: Path, trial_id: str) -> None:
        self.folder = folder
        self.trial_id = trial_id
        self.path = folder / "resume.ckpt"
        """The state that an interrupted training goes on from."""
        self.latest: State | None = None
        """A state that is newer than what is written."""
        self.full = False

    def read(self) -> State | None:
        """Return the state that was kept, if there is one, whole and of this trial."""
        try:
            with zipfile.ZipFile(self.path) as whole:
                if whole.testzip() is not None:  # torch does not look at its checksums
                    raise zipfile.BadZipFile
            state: State = torch.load(self.path, map_location="cpu", weights_only=True)
            wrote = state["version"], state["trial_id"]
        except FileNotFoundError:
            return None
        except Exception:  # there is no end to what a damaged file can be
            self._refuse("is damaged")
            return None
        if wrote == (__version__, self.trial_id):
            return state
        self._refuse("is of another trial or version")
        return None

    def fitting(self, state: State, model: Task, certificate: Certificate) -> State | None:
        """Return a state, if it can go on with a model that was set up."""
        values = model.state_dict()
        expected = {n: v.shape for n, v in values.items() if n not in certificate.frozen}
        found = {name: value.shape for name, value in state["state_dict"].items()}
        if state["frozen_sha256"] == certificate.before and found == expected:
            return state
        self._refuse("is of another network")
        return None

    def _refuse(self, why: str) -> None:
        told = f"'{self.path}' {why}; training starts over"
        warnings.warn(Note(told), stacklevel=3)

    def write(self) -> None:
        """Write the latest state, if it is not written yet.

        A full disk does not end a training that may never be interrupted.
        """
        if self.latest is None:
            return
        head = {"version": __version__, "trial_id": self.trial_id}
        try:
            _write(head | self.latest, self.path)
        except OSError as error:
            if not self.full:
                why = error.strerror or error
                told = f"an interrupted training could not go on: '{self.path}': {why}"
                warnings.warn(Note(told), stacklevel=2)
            self.full = True
        else:
            self.latest = None

    def clear(self) -> None:
        """Remove what a training that has ended need not go on from."""
        self.latest = None
        with suppress(OSError):  # what cannot be removed harms nobody
            for path in (self.path, _partial(self.path)):  # a killed writer leaves the latter
                path.unlink(missing_ok=True)
            self.folder.rmdir()  # unless something stays in it

    def keep(
        self, name: str, model: Task, certificate: Certificate, epoch: int, facts: State
    ) -> None:
        """Write what stays of a trial: the values of its model that its weights do not bring.

        Args:
            name: Of the file, without its ending.
            model: Whose values.
            certificate: Says which of them are as they came.
            epoch: They are of.
            facts: What else the model is built from; see `Trial.facts`.

        Raises:
            StoreError: If it cannot be written.
        """
        brought = certificate.frozen.keys() - _reestimated(model)
        values = {n: v for n, v in model.state_dict().items() if n not in brought}
        path = self.folder / f"{name}.ckpt"
        try:
            _write(
                {
                    "state_dict": _on_cpu(values),
                    "epoch": epoch,
                    "frozen_sha256": certificate.before,
                    **facts,
                },
                path,
            )
        except OSError as error:
            raise StoreError(
                f"'{path}' cannot be written: {error.strerror or error}",
                remedy="free some space, point paths.output elsewhere, or trainer.checkpoint=none",
            ) from None


class Resume(Checkpoint):
    """Keeps the state of a training at the end of each epoch, and goes on from one.

    A Checkpoint of Lightning's is told of the end of an epoch after all others. The state is put
    back by hand: Lightning would go on in the middle of an epoch that has ended, and read it twice.

    Args:
        shelf: Where states are written.
        certificate: Says what is frozen, and thus needs not be kept.
        every: Least seconds between two writings; None keeps nothing.
        state: To go on from; None starts at the start.
        facts: More to be kept, asked for at the end of each epoch.
    """

    def __init__(
        self,
        shelf: Shelf,
        certificate: Certificate,
        *,
        every: float | None,
        state: State | None,
        facts: Callable[[], State],
    ) -> None:
        self.shelf = shelf
        self.certificate = certificate
        self.every = every
        self.state = state
        self.facts = facts
        self.written = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See Lightning's hook of this name; optimizers are there, and no epoch has begun."""
        self.written = time.monotonic()
        if self.state is not None:
            restore(self.state, trainer, cast("Task", pl_module))
            self.state = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See Lightning's hook of this name."""
        if self.every is None or not trainer.is_global_zero:
            return
        self.shelf.latest = {
            "frozen_sha256": self.certificate.before,
            **self.facts(),
            **snapshot(trainer, cast("Task", pl_module), self.certificate.frozen),
        }
        if time.monotonic() - self.written >= self.every:
            self.shelf.write()
            self.written = time.monotonic()


def snapshot(trainer: pl.Trainer, model: Task, frozen: Mapping[str, str]) -> State:
    """Return the state of a training at the end of an epoch, but for what is frozen.

    What is drawn at random follows from the epoch, and where the loader stands too.
    """
    values = {name: value for name, value in model.state_dict().items() if name not in frozen}
    return {
        # these change in place, and what callbacks and strategies keep is never changed
        "state_dict": _copied(values),
        "optimizers": _copied([optimizer.state_dict() for optimizer in trainer.optimizers]),
        "schedulers": [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs],
        "progress": {name: part.state_dict() for name, part in _progress(trainer).items()},
        "callbacks": _on_cpu(
            {each.state_key: state for each in _callbacks(trainer) if (state := each.state_dict())}
        ),
        "strategy": _on_cpu(model.strategy_.state()),
        "scored": dict(model.scored),
        "should_stop": trainer.should_stop,
    }


def restore(state: State, trainer: pl.Trainer, model: Task) -> None:
    """Put a training that is about to start into the state at the end of an epoch."""
    model.load_state_dict(state["state_dict"], strict=False)
    model.strategy_.load_state(state["strategy"])
    model.scored.update(state["scored"])
    for optimizer, kept in zip(trainer.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    for each, kept in zip(trainer.lr_scheduler_configs, state["schedulers"], strict=True):
        each.scheduler.load_state_dict(kept)
    for callback in _callbacks(trainer):
        if callback.state_key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][callback.state_key])
    for name, part in _progress(trainer).items():
        part.load_state_dict(state["progress"][name])
    epochs = trainer.fit_loop.epoch_progress
    for count in (epochs.total, epochs.current):  # Lightning counts an epoch after its last hook
        count.completed = cast("Any", count).processed
    trainer.should_stop = state["should_stop"]


def _callbacks(trainer: pl.Trainer) -> list[Callback]:
    return cast("Any", trainer).callbacks  # type: ignore[no-any-return]


def _progress(trainer: pl.Trainer) -> dict[str, Any]:
    """Return Lightning's counters of epochs, batches and steps; others start anew each epoch."""
    batches = trainer.fit_loop.epoch_loop
    return {
        "epochs": trainer.fit_loop.epoch_progress,
        "batches": batches.batch_progress,
        "steps": batches.automatic_optimization.optim_progress,
    }


def _reestimated(model: Task) -> set[str]:
    """Return the names of the statistics that were estimated on training images."""
    if not model.strategy_.reestimated:
        return set()
    return {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for name, _ in module.named_buffers(recurse=False)
    }


def _write(state: State, path: Path) -> None:
    """Write a file that is there whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # by which torch hides what has kept it from writing
                raise error.__context__ or error from None
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f"partial-{path.name}")


def _copied(values: Any) -> Any:
    return apply_to_collection(values, Tensor, lambda v: v.detach().to("cpu", copy=True))


def _on_cpu(values: Any) -> Any:
    return apply_to_collection(values, Tensor, lambda v: v.detach().cpu())

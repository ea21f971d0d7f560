"""Trials that run in the test's own process, and are interrupted as often as one likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from medtransfer.config import TrainConfig
from medtransfer.execution import execute
from medtransfer.parallel import Mute
from medtransfer.run import Trial, prepare
from medtransfer.tasks.base import Task
from medtransfer.tracking.runs import Interrupted

SMALL = (
    *("backbone=timm", "backbone.name=test_resnet", "trainer.threads=1", "trainer.workers=0"),
    *("trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.batch_size=5"),
    *("dataset=phantom", "dataset.size=32", "dataset.image_size=32", "trainer.max_epochs=4"),
    "dataset.patients=36",  # of which 12 train: two batches
    "tracking.system_every=null",
)
SPENT = {"cost/train_seconds", "cost/feature_seconds", "cost/latency_ms", "cost/peak_memory_mb"}


class Notebook(Mute):
    """A run that remembers what it is told."""

    def __init__(self) -> None:
        super().__init__("run")
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.told: dict[str, str] = {}

    def metrics(self, values, step=0):
        kept = {name: value for name, value in values.items() if name not in SPENT}
        self.steps.append((step, kept))

    def label(self, values):
        self.told |= values


class Life(NamedTuple):
    """What became of a trial, and in how many parts it ran."""

    model: Task
    run: Notebook
    final: dict[str, float]
    parts: int


def preparer(compose, home) -> Callable[..., Trial]:
    """Return a function that prepares trials which share one home."""
    configs: dict[tuple[str, ...], TrainConfig] = {}

    def make(*overrides: str) -> Trial:
        if overrides not in configs:
            composed = compose(*SMALL, *overrides, f"paths.output={home}")
            configs[overrides] = composed.typed(TrainConfig)
        return prepare(configs[overrides])

    return make


@contextmanager
def before_batch(number: int | None, action: Callable[[Any], None]) -> Iterator[list[int]]:
    """Do something to a batch of training, counted from 1, before it is seen; None: to each.

    Yields:
        How many were met, in a list of one.
    """
    usual, seen = Task.training_step, [0]

    def step(self, batch, batch_idx):
        seen[0] += 1
        if number in {None, seen[0]}:
            action(batch)
        return usual(self, batch, batch_idx)

    with patch.object(Task, "training_step", step):
        yield seen


def stop(_: Any) -> None:
    """Do as the program does when it is told to stop."""
    raise Interrupted(15)


class Killed(BaseException):
    """Nothing is done after this."""


def kill(_: Any) -> None:
    """Do as a process that is there no more."""
    raise Killed


def live(
    prepared: Callable[..., Trial],
    *overrides: str,
    first: int | None = None,
    death: Callable[[Any], None] = stop,
) -> Life:
    """Run a trial to its end.

    Args:
        prepared: Prepares it.
        overrides: Its configuration.
        first: The batch before which the first part dies; each part after it dies one batch
            later. None: it lives in one part.
        death: How.
    """
    run, parts = Notebook(), 0
    while True:
        trial = prepared(*overrides)
        last = 0 if first is None else first + parts
        parts += 1
        try:
            with before_batch(last, death):
                final = execute(trial, run)
        except BaseException as error:
            if isinstance(error, Exception):
                raise
            run.last_step = max((step for step, _ in run.steps), default=-1)
        else:
            return Life(trial.model, run, final, parts)


def require_same(one: Life, other: Life) -> None:
    """Require that two trials came to the same, bit for bit."""
    values, others = one.model.state_dict(), other.model.state_dict()
    assert values.keys() == others.keys()
    assert [name for name in values if not torch.equal(values[name], others[name])] == []
    assert one.run.steps == other.run.steps

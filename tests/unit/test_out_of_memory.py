"""What a device has no room for is tried once more, in parts that are half as large."""

from __future__ import annotations

import pytest
import torch

from lives import Notebook, before_batch, live, require_same
from medtransfer.checkpoint import Shelf
from medtransfer.errors import TooLargeError
from medtransfer.execution import execute
from medtransfer.tasks.base import Task
from medtransfer.tracking.runs import Interrupted

TUNED = "strategy=fine_tuning"
TAG = "medtransfer.out_of_memory"


def room_for(cases):
    """Return what refuses larger batches, as a device does."""

    def refuse(batch):
        if len(batch["index"]) > cases:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return refuse


def test_batches_are_halved_and_the_run_says_so(prepared):
    halved = live(prepared, TUNED, "trainer.accumulate=2")
    assert TAG not in halved.run.told
    run, trial = Notebook(), prepared(TUNED)
    with before_batch(None, room_for(3)):
        final = execute(trial, run)
    assert run.told[TAG] == "batch of 5 in 2 parts"
    assert run.steps == halved.run.steps
    assert final["cost/steps"] == halved.final["cost/steps"] == 8


def test_the_effective_batch_stays_what_it_was(prepared, monkeypatch):
    independent = (TUNED, "strategy.batchnorm=frozen", "head.norm=none", "trainer.max_epochs=2")
    whole = live(prepared, *independent)
    sizes, seen, usual = [], [], Task.on_before_optimizer_step

    def step(self, optimizer):
        sizes.append(sum(seen))
        seen.clear()
        usual(self, optimizer)

    monkeypatch.setattr(Task, "on_before_optimizer_step", step)
    refuse = room_for(3)

    def look(batch):
        refuse(batch)
        seen.append(len(batch["index"]))

    run, trial = Notebook(), prepared(*independent)
    with before_batch(None, look):
        execute(trial, run)
    assert sizes == [5, 5, 5, 5]
    for (step, values), (other, expected) in zip(run.steps, whole.run.steps, strict=True):
        assert step == other
        assert values == pytest.approx(expected, abs=1e-4)


def test_once_is_enough(prepared):
    run = Notebook()
    with (
        before_batch(None, room_for(2)),
        pytest.raises(TooLargeError, match="not suffice for a batch of 5 in 2 parts") as error,
    ):
        execute(prepared(TUNED), run)
    assert "trainer.accumulate=4" in error.value.remedy
    assert run.told[TAG] == "batch of 5 in 2 parts"


def test_a_case_cannot_be_halved(prepared):
    alone = ("strategy.batchnorm=frozen", "head.norm=none", "trainer.batch_size=1")
    run = Notebook()
    with (
        before_batch(None, room_for(0)),
        pytest.raises(TooLargeError, match=r"in 1 part\b") as error,
    ):
        execute(prepared(TUNED, *alone), run)
    assert "backbone" in error.value.remedy
    assert TAG not in run.told


def test_epochs_before_it_are_not_told_twice(prepared):
    run, trial = Notebook(), prepared(TUNED, "trainer.save_every=0")
    with before_batch(6, room_for(0)):
        execute(trial, run)
    assert [step for step, _ in run.steps] == [0, 1, 2, 3, 0]  # the last is the final one
    assert run.told[TAG] == "batch of 5 in 2 parts"


def test_interrupted_afterwards_it_goes_on_in_parts(prepared, tmp_path):
    halved = live(prepared, TUNED, "trainer.accumulate=2")
    refused, told = [], Notebook()

    def limited(batch):
        try:
            room_for(3)(batch)
        except torch.OutOfMemoryError:
            refused.append(batch)
            raise
        left[0] -= 1
        if left[0] == 0:
            raise Interrupted(15)

    for batches in (7, 0):
        left = [batches]
        trial = prepared(TUNED)
        with before_batch(None, limited):
            if batches:
                with pytest.raises(Interrupted):
                    execute(trial, told)
                state = Shelf(tmp_path / "checkpoints" / "run", trial.trial_id).read()
                assert state["accumulate"] == 2
                told.last_step = max(step for step, _ in told.steps)
            else:
                final = execute(trial, told)
    assert len(refused) == 1
    require_same(halved._replace(run=told, model=halved.model, final=final), halved)

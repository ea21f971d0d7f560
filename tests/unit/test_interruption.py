"""What a signal does to a trial, wherever it comes."""

from __future__ import annotations

import multiprocessing
import signal

import pytest
import torch

from lives import Notebook, before_batch, kill, live
from medtransfer.certificate import Certificate
from medtransfer.checkpoint import Shelf
from medtransfer.execution import execute
from medtransfer.signals import obey_signals
from medtransfer.tasks.base import Task
from medtransfer.tracking.runs import Interrupted

TUNED = "strategy=fine_tuning"
LONG = "trainer.max_epochs=100"


@pytest.fixture
def obeyed():
    """Have signals obeyed, as by the program."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    obey_signals()
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.usefixtures("obeyed")
def test_a_signal_ends_a_training_and_the_processes_that_load(workers, prepared):
    trial = prepared(TUNED, f"trainer.workers={workers}", "transform=light")
    loading = []

    def tell(_):
        loading.extend(multiprocessing.active_children())
        signal.raise_signal(signal.SIGTERM)

    with before_batch(3, tell), pytest.raises(Interrupted) as raised:
        execute(trial, Notebook())
    assert raised.value.signum == signal.SIGTERM
    assert len(loading) == workers
    assert not multiprocessing.active_children()


class Late:
    """What is raised here is lost."""

    def __init__(self, signum):
        self.signum = signum

    def __del__(self):
        signal.raise_signal(self.signum)


@pytest.mark.usefixtures("obeyed")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["while it is set up", "in a batch", "in its test"])
def test_a_signal_in_a_destructor_is_heard_soon(where, signum, prepared, monkeypatch, tmp_path):
    moments = {
        "while it is set up": (Certificate, "of", 0),
        "in a batch": (Task, "on_before_optimizer_step", 1),
        "in its test": (Task, "on_test_epoch_end", 8),
    }
    owner, name, batches = moments[where]
    usual = getattr(owner, name)

    def late(*given):
        Late(signum)
        return usual(*given)

    monkeypatch.setattr(owner, name, late)
    with before_batch(None, lambda _: None) as seen, pytest.raises(Interrupted) as raised:
        execute(prepared(TUNED), Notebook())
    assert raised.value.signum == signum
    assert seen == [batches]
    assert (tmp_path / "checkpoints" / "run" / "resume.ckpt").exists() is (batches == 8)


@pytest.mark.usefixtures("obeyed")
def test_a_second_signal_does_not_keep_the_state_from_being_written(interrupted, monkeypatch):
    usual = Shelf.write

    def write(self):
        signal.raise_signal(signal.SIGTERM)
        usual(self)

    monkeypatch.setattr(Shelf, "write", write)
    shelf = interrupted(TUNED, death=lambda _: signal.raise_signal(signal.SIGTERM))
    assert shelf.read() is not None


def break_off(*_, **__):
    """Be interrupted in the middle of something that cannot bear it, such as `torch.save`."""
    try:
        raise Interrupted(15)
    finally:
        raise RuntimeError("unexpected pos")


def test_a_signal_is_not_mistaken_for_what_breaks_by_it(interrupted, monkeypatch):
    assert interrupted(TUNED, death=break_off).read() is not None
    monkeypatch.setattr(torch, "save", break_off)
    interrupted(TUNED, "trainer.save_every=0", death=lambda _: None)


@pytest.mark.parametrize(
    "limits",
    [(), ("trainer.max_steps=3", LONG), ("trainer.early_stopping.patience=1", LONG)],
    ids=["epochs", "steps", "early stopping"],
)
def test_an_interruption_after_training_costs_none_of_it(limits, prepared, monkeypatch):
    alone = live(prepared, TUNED, *limits)
    with monkeypatch.context() as patched:
        patched.setattr("medtransfer.execution.evaluate", stop_at_once)
        with pytest.raises(Interrupted):
            execute(prepared(TUNED, *limits), Notebook())
    run = Notebook()
    run.last_step = 100
    with before_batch(None, kill):
        execute(prepared(TUNED, *limits), run)
    assert run.steps[-1] == alone.run.steps[-1]


def stop_at_once(*_, **__):
    raise Interrupted(2)

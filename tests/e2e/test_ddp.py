"""Training on several devices: as on one, and ended with a reason whatever happens."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from torch import distributed

from lives import live, preparer, require_same
from medtransfer import parallel
from medtransfer.errors import DataError, ParallelError

TRIAL = (
    *("backbone=timm", "backbone.name=test_vit", "head.norm=none", "optimizer=sgd"),
    *("dataset.patients=36", "dataset.size=32", "dataset.image_size=32", "transform=light"),
    *("trainer.max_epochs=3", "trainer.batch_size=7", "trainer.precision=fp32"),
    *("trainer.threads=1", "trainer.accelerator=cpu", "trainer.checkpoint=last"),
)
BROKEN = """
import multiprocessing
from dataclasses import dataclass
from medtransfer.strategies.fine_tuning import FineTuning

@dataclass(kw_only=True)
class Broken(FineTuning):
    steps = 0

    def before_step(self, model, optimizer):
        self.steps += 1
        if self.steps == 3 and multiprocessing.parent_process() is not None:
            raise RuntimeError("the coffee is cold")
"""
CPU = torch.device("cpu")


@pytest.fixture
def trial(cli, home, list_runs):
    """Return a function that runs one trial and returns its metrics and its last values."""

    def run(*arguments):
        before = {run.info.run_id for run in list_runs()}
        files = set(home.rglob("last.ckpt"))
        done = cli("train", *arguments)
        assert done.code == 0, done.err
        (new,) = [run for run in list_runs() if run.info.run_id not in before]
        (path,) = set(home.rglob("last.ckpt")) - files
        told = {k: v for k, v in new.data.metrics.items() if not k.startswith(("cost/", "system/"))}
        assert any(name.startswith("test/") for name in told)
        told["steps"] = new.data.metrics["cost/steps"]
        return told, torch.load(path)["state_dict"]

    return run


def assert_alike(found, expected, tolerance):
    (metrics, values), (other, others) = found, expected
    assert metrics == pytest.approx(other, abs=tolerance, nan_ok=True)
    torch.testing.assert_close(values, others, rtol=0, atol=tolerance)


@pytest.mark.parametrize("strategy", ["fine_tuning", "lp_ft", "gradual_unfreezing"])
def test_two_devices_learn_what_one_does(trial, strategy):
    arguments = (*TRIAL, f"strategy={strategy}")
    one = trial(*arguments)
    assert_alike(trial(*arguments, "trainer=ddp"), one, 1e-4)
    assert not distributed.is_initialized()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("strategy", ["fine_tuning", "feature_extraction"])
def test_a_batch_in_parts_teaches_what_it_does_whole(trial, strategy):
    arguments = (*TRIAL, f"strategy={strategy}")
    assert_alike(trial(*arguments, "trainer.accumulate=3"), trial(*arguments), 1e-5)


def test_two_devices_compute_two_parts_each_and_stop_alike(trial):
    arguments = (
        *(*TRIAL, "strategy=feature_extraction", "trainer.max_steps=7", "trainer.validate_every=2"),
        *("trainer.max_epochs=20", "trainer.early_stopping.patience=2"),
    )
    one = trial(*arguments)
    assert_alike(trial(*arguments, "trainer=ddp", "trainer.accumulate=2"), one, 1e-4)


def test_what_ranks_decide_by_is_what_the_model_is_worth(cli, list_runs, home):
    arguments = ("backbone.name=test_resnet", "head.norm=batch")  # each has statistics of its own
    assert cli("train", *TRIAL, *arguments, "trainer=ddp", "trainer.workers=1").code == 0
    (run,) = list_runs()
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "val/loss")}
    found, epoch = (run.data.metrics[f"best/{name}"] for name in ("loss", "epoch"))
    assert found == pytest.approx(history[int(epoch)], abs=1e-6)


def test_interrupted_two_devices_go_on_where_they_were(compose, tmp_path):
    arguments = ("strategy=fine_tuning", "head.dropout=0.5", "trainer=ddp", "trainer.save_every=0")
    lives = [
        live(preparer(compose, tmp_path / str(first)), *arguments, first=first)
        for first in (None, 5)
    ]
    assert [life.parts for life in lives] == [1, 2]
    require_same(*lives)
    assert not multiprocessing.active_children()


def test_a_rank_that_fails_ends_the_trial_with_its_reason(
    cli, home, list_runs, tmp_path, monkeypatch
):
    (tmp_path / "own" / "strategy").mkdir(parents=True)
    shipped = Path("conf/strategy/fine_tuning.yaml").read_text()
    own = shipped.replace("medtransfer.strategies.fine_tuning.FineTuning", "broken_rank.Broken")
    (tmp_path / "own" / "strategy" / "broken.yaml").write_text(own)
    (tmp_path / "broken_rank.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    done = cli(
        *("train", "--config-dir", tmp_path / "own", "trusted_modules=[broken_rank]", *TRIAL),
        *("strategy=broken", "trainer=ddp"),
    )
    assert done.code == 1
    assert "the coffee is cold" in done.err
    (run,) = list_runs()
    assert run.info.status == "FAILED"
    told = run.data.tags["medtransfer.failure"]
    assert told == "process 1 of 2 failed: RuntimeError: the coffee is cold"
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    assert "in before_step" in (folder / "traceback.txt").read_text()
    assert not multiprocessing.active_children()


def refuse(_, group, what):
    """Fail as a user's mistake does, before the others are met."""
    assert group.rank == 1
    raise DataError(what, remedy="another file")


def vanish(_, group):
    """Be killed in the middle of the training."""
    group.join("gloo", CPU)
    os.kill(os.getpid(), signal.SIGKILL)


def exhaust(_, group):
    """Run out of memory in the middle of the training."""
    group.join("gloo", CPU)
    raise torch.OutOfMemoryError("no more")


def idle(_, group, place):
    """Say which process this is, and wait for the others for ever."""
    Path(place).write_text(json.dumps(os.getpid()))
    group.join("gloo", CPU)
    distributed.barrier()


def train(work, *given):
    """Do what a training does with the other ranks."""
    with parallel.ranks(None, 2, work, *given) as group:
        group.join("gloo", CPU)
        while True:
            distributed.all_reduce(torch.ones(1))


@pytest.mark.parametrize(
    ("work", "given", "error", "reason"),
    [
        (refuse, ("a file is missing",), DataError, "a file is missing\n  remedy:  another file"),
        (vanish, (), ParallelError, "a process of the training was ended by SIGKILL"),
        (exhaust, (), torch.OutOfMemoryError, "no more"),
    ],
)
def test_what_another_process_ends_with_is_raised_here(work, given, error, reason):
    threads = torch.get_num_threads()
    with pytest.raises(error) as raised:
        train(work, *given)
    assert reason in str(raised.value)
    assert torch.get_num_threads() == threads
    assert not distributed.is_initialized()
    assert not multiprocessing.active_children()


def gone(pid):
    """Return whether a process ends, which may take a moment."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # it has ended, and nobody has asked for it
            return True
        time.sleep(0.05)
    return False


def test_other_processes_end_when_this_one_fails(tmp_path):
    place = tmp_path / "pid"

    def fail():
        with parallel.ranks(None, 2, idle, place) as group:
            group.join("gloo", CPU)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert gone(json.loads(place.read_text()))


def test_other_processes_end_when_this_one_is_killed(tmp_path):
    place = tmp_path / "pid"
    code = (
        "import os, signal, sys, test_ddp\n"
        "from medtransfer import parallel\n"
        f"with parallel.ranks(None, 2, test_ddp.idle, {str(place)!r}) as group:\n"
        "    group.join('gloo', test_ddp.CPU)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    here = Path(__file__).parent
    known = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": known}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert gone(json.loads(place.read_text()))

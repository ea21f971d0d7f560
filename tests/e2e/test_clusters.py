"""One study by each launcher: here, on Slurm, on Ray; what changes is one word."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from mlflow import MlflowClient

from cluster import ray_cluster, slurm

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.enable_socket,  # a free port is looked for
]

STUDY = """# @package _global_
defaults:
  - none@study
  - override /hydra/sweeper: study

study:
  arms:
    FE: [strategy=feature_extraction]
    FT: [strategy=fine_tuning]
  seeds: 2
  name: own
"""
ENDLESS = ("trainer.max_epochs=100000", "trainer.max_steps=null")
LONG = ("trainer.max_epochs=100000", "trainer.max_steps=300")
SMALL_JOBS = ("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2")
SECONDS = 240  # for a trial to begin or to end: machines are shared
HOME = "medtransfer-data"  # where the program keeps everything: in the folder that it runs in


class Workplace:
    """A folder in which the study is run by the program's own process."""

    def __init__(self, folder, template, small):
        self.folder = folder
        self.small = small
        (folder / "conf" / "study").mkdir(parents=True)
        (folder / "conf" / "study" / "own.yaml").write_text(STUDY)
        shutil.copytree(template, folder / HOME)

    def start(self, *overrides, around):
        command = [sys.executable, "-m", "medtransfer", "train", "-m", "--config-dir", "conf"]
        surroundings = {k: v for k, v in os.environ.items() if k != "MEDTRANSFER_HOME"} | around
        return subprocess.Popen(
            [*command, "study=own", *self.small, *overrides],
            cwd=self.folder,
            env=surroundings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def trials(self):
        """Return the runs of trials, whatever became of them."""
        client = MlflowClient(f"sqlite:///{self.folder}/{HOME}/mlflow.db")
        runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
        return [run for run in runs if run.data.tags["medtransfer.phase"] == "final"]

    def values(self):
        """Return what each trial was and measured, without its cost."""
        found = {}
        for run in self.trials():
            tags = run.data.tags
            kept = {
                k: v for k, v in run.data.metrics.items() if not k.startswith(("cost/", "system/"))
            }
            key = tags["medtransfer.cell"], tags["medtransfer.seed"]
            assert key not in found
            found[key] = (run.info.status, tags["medtransfer.trial_id"], kept)
        return found

    def processes(self):
        """Return which processes trials run in, as far as they have begun."""
        tags = [run.data.tags for run in self.trials()]
        return sorted(
            {told["medtransfer.process"] for told in tags if "medtransfer.process" in told}
        )

    def training(self):
        """Return the trials that have finished an epoch, and are not done."""
        runs = [run for run in self.trials() if run.info.status == "RUNNING"]
        return [run for run in runs if "val/loss" in run.data.metrics]


def _at_work(here):
    """Return one process that trains at this moment: one that is done may wait for more."""
    processes = [psutil.Process(int(told.split(":")[1])) for told in here.processes()]
    return [each for each in processes if each.cmdline()[0].startswith("ray::trial")][:1]


def _until(process, found):
    """Return what `found` finds in the end, of a study that runs."""
    until = time.monotonic() + SECONDS
    while not (result := found()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.5)
    return result


@pytest.fixture(scope="module")
def place(tmp_path_factory, home_template, tiny):
    """Return a function that makes a workplace."""

    def make(name):
        steps = ("trainer.max_epochs=100", "trainer.max_steps=3", "trainer.workers=0")
        return Workplace(tmp_path_factory.mktemp(name), home_template, (*tiny, *steps))

    return make


@pytest.fixture(scope="module")
def expected(place):
    """Return what trials come to that are run one after the other."""
    here = place("basic")
    process = here.start("hydra/launcher=basic", around={})
    told, _ = process.communicate()
    assert process.returncode == 0, told
    assert len(here.values()) == 4
    return here.values()


@pytest.fixture(scope="module")
def on_slurm():
    """Give the environment of a Slurm."""
    with slurm() as around:
        yield around


@pytest.fixture(scope="module")
def on_ray():
    """Give the environment of a Ray cluster."""
    with ray_cluster() as around:
        yield around


def test_jobs_of_slurm_end_with_the_same_values(on_slurm, place, expected):
    here = place("slurm")
    process = here.start("hydra/launcher=submitit_slurm", *SMALL_JOBS, around=on_slurm)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    assert here.values() == expected
    assert len(here.processes()) == 4
    assert "ConfigStore" not in told


def test_tasks_on_two_nodes_of_ray_end_with_the_same_values(on_ray, place, expected):
    here = place("ray")
    process = here.start("hydra/launcher=ray", around=on_ray)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    assert here.values() == expected
    assert len(here.processes()) > 1  # of nodes with one core each


@pytest.mark.slow
def test_what_died_on_ray_goes_on_by_the_same_command(on_ray, place):
    here = place("died")
    process = here.start("hydra/launcher=ray", *LONG, around=on_ray)
    _until(process, lambda: _at_work(here))[0].kill()
    told, _ = process.communicate()
    assert process.returncode == 1, told
    assert "error: 1 of 4 trials died with their process" in told
    assert "Traceback" not in told
    again = here.start("hydra/launcher=ray", *LONG, around=on_ray)
    told, _ = again.communicate()
    assert again.returncode == 0, told
    assert [status for status, *_ in here.values().values()] == ["FINISHED"] * 4


@pytest.mark.slow
def test_trials_on_ray_end_when_their_study_is_interrupted(on_ray, place):
    here = place("interrupted")
    process = here.start("hydra/launcher=ray", *ENDLESS, around=on_ray)
    _until(process, here.training)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, told
    assert "Traceback" not in told
    assert {run.info.status for run in here.trials()} == {"KILLED"}


@pytest.mark.slow
def test_jobs_of_slurm_end_when_they_are_cancelled(on_slurm, place):
    here = place("cancelled")
    process = here.start("hydra/launcher=submitit_slurm", *SMALL_JOBS, *ENDLESS, around=on_slurm)
    _until(process, here.training)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, told
    # the study's end does not end its jobs: a cluster is left and come back to
    subprocess.run(["scancel", "--name=medtransfer"], env=os.environ | on_slurm, check=True)
    running = lambda: [run for run in here.trials() if run.info.status == "RUNNING"]  # noqa: E731
    until = time.monotonic() + SECONDS
    while running():
        assert time.monotonic() < until
        time.sleep(0.5)
    assert {run.info.status for run in here.trials()} == {"KILLED"}


def test_an_address_where_nobody_answers_is_told_at_once(place):
    here = place("nobody")
    process = here.start("hydra/launcher=ray", around={"RAY_ADDRESS": "127.0.0.1:9"})
    told, _ = process.communicate()
    assert process.returncode == 1, told
    assert "error: no Ray cluster answers at 127.0.0.1:9" in told
    assert "Traceback" not in told


@pytest.mark.slow
def test_a_cluster_lets_only_those_in_who_know_its_token(on_ray, place):
    here = place("stranger")
    stranger = on_ray | {"RAY_AUTH_TOKEN": "0" * 64}
    process = here.start("hydra/launcher=ray", around=stranger)
    told, _ = process.communicate()
    assert process.returncode == 1, told
    assert "error: Ray cannot be used" in told
    assert not here.trials()

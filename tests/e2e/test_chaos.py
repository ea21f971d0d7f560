"""A study that is killed at random moments ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from mlflow import MlflowClient

from medtransfer.tracking import records
from medtransfer.tracking.processes import Process

STUDY = """# @package _global_
defaults:
  - none@study
  - override /hydra/sweeper: study

study:
  name: chaos
  arms:
    FE: [strategy=feature_extraction]
    FT: [strategy=fine_tuning]
    thawed: [strategy=gradual_unfreezing]
  seeds: 4
"""


class Study:
    """The same study, in a home of its own."""

    def __init__(self, folder, name, settings):
        self.home = folder / name
        self.command = [sys.executable, "-m", "medtransfer", "train", "-m", "study=own"]
        self.command += ["--config-dir", str(folder / "conf"), *settings]
        self.environment = {**os.environ, "MEDTRANSFER_HOME": str(self.home)}

    def start(self):
        return subprocess.Popen(
            self.command,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self):
        process = self.start()
        _, err = process.communicate(timeout=280)
        assert process.returncode == 0, err
        return err

    def kill(self, *, asleep, trains):
        """Start it, and kill it some seconds later, or after it has begun to train."""
        process = self.start()
        training = threading.Event()

        def read():
            for line in process.stderr:
                if " steps" in line or "certif" in line or "what learns" in line:
                    training.set()

        reader = threading.Thread(target=read)
        reader.start()
        if trains:
            training.wait(120)
        time.sleep(asleep)
        ended = process.poll() is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join()
        return not ended

    def runs(self):
        client = MlflowClient(f"sqlite:///{self.home}/mlflow.db")
        experiments = [each.experiment_id for each in client.search_experiments()]
        return client, client.search_runs(experiments)

    def quality(self):
        """Return all that the trials have measured at each step, times and memory aside."""
        client, runs = self.runs()
        assert {run.info.status for run in runs} == {"FINISHED"}
        trials = [run for run in runs if run.data.tags["medtransfer.phase"] == "final"]
        measured = {}
        for run in trials:
            tags, run_id = run.data.tags, run.info.run_id
            key = (tags["medtransfer.arm"], tags["medtransfer.seed"])
            assert key not in measured, "a trial has run twice"
            curves = {
                name: [(each.step, each.value) for each in client.get_metric_history(run_id, name)]
                for name in run.data.metrics
                if not name.startswith(("cost/", "system/"))
                or name in {"cost/steps", "cost/validations"}
            }
            table = records.table(client, run_id, "test")
            measured[key] = ({n: sorted(c) for n, c in curves.items()}, table.to_dict("list"))
        return measured


def chaos(tmp_path, tiny, *, kills, steps, more=()):
    (tmp_path / "conf" / "study").mkdir(parents=True)
    (tmp_path / "conf" / "study" / "own.yaml").write_text(STUDY)
    settings = [*tiny, f"trainer.max_steps={steps}", "trainer.max_epochs=1000", *more]
    settings += ["trainer.precision=fp32", "trainer.workers=0", "trainer.save_every=0"]
    calm = Study(tmp_path, "calm", settings)
    calm.finish()
    killed = Study(tmp_path, "killed", settings)
    moments = random.Random(0)
    count = 0
    for attempt in range(3 * kills):
        if count == kills:
            break
        trains = attempt % 4 != 3
        asleep = moments.uniform(0, 2.5 if trains else 8)
        count += killed.kill(asleep=asleep, trains=trains)
    assert count == kills, "the study ended before it was killed often enough"
    killed.finish()
    assert killed.quality() == calm.quality()
    assert not list((killed.home / "spool").glob("*/about.json"))
    assert not list((killed.home / "checkpoints").glob("*/resume.ckpt"))
    return killed


def test_a_few_kills_leave_no_trace(tmp_path, tiny):
    few = ("~study.arms.thawed", "study.seeds=2")
    study = chaos(tmp_path, tiny, kills=3, steps=60, more=few)
    assert len(study.quality()) == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_leave_no_trace(tmp_path, tiny):
    study = chaos(tmp_path, tiny, kills=20, steps=120)
    assert len(study.quality()) == 12


@pytest.fixture
def workers(tmp_path, tiny):
    """Return a study of two workers that has begun to train, its process, and one of its runs."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "conf" / "study").mkdir(parents=True)
    (tmp_path / "conf" / "study" / "own.yaml").write_text(STUDY)
    steps = ["trainer.max_steps=300", "trainer.max_epochs=1000", "trainer.workers=0"]
    two = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    few = ["~study.arms.thawed", "study.seeds=2"]
    study = Study(tmp_path, "workers", [*tiny, *steps, *two, *few])
    process = study.start()
    while process.poll() is None:
        time.sleep(0.2)
        runs = study.runs()[1] if (study.home / "mlflow.db").exists() else []
        for run in runs:
            if run.data.tags.get("medtransfer.phase") == "final":
                return study, process, run
    pytest.fail(process.stderr.read())


def test_a_worker_that_is_killed_loses_its_trial_alone(workers):
    study, process, run = workers
    owner = Process.parse(run.data.tags["medtransfer.process"])
    os.kill(owner.pid, signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert "error: a worker was lost: TerminatedWorkerError" in err
    assert "Traceback" not in err
    study.finish()
    assert len(study.quality()) == 4


def test_the_runs_of_workers_end_with_an_interrupted_study(workers):
    study, process, _ = workers
    process.terminate()
    _, err = process.communicate()
    assert process.returncode == 143, err
    assert {run.info.status for run in study.runs()[1]} <= {"KILLED", "FINISHED"}

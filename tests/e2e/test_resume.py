"""A study that goes on after a failure or a death."""

import os
import socket
import time

import pytest
from mlflow import MlflowClient

from medtransfer.tracking.processes import Process

STUDY = """# @package _global_
defaults:
  - none@study
  - override /hydra/sweeper: study

study:
  name: goes_on
  arms:
    sound: [strategy=feature_extraction]
    wild: [strategy=fine_tuning, optimizer.lr=1e30]
  seeds: 1
"""


@pytest.fixture
def study(tmp_path, cli, tiny):
    """Return a function that runs the study."""
    folder = tmp_path / "conf"
    (folder / "study").mkdir(parents=True)
    (folder / "study" / "own.yaml").write_text(STUDY)
    steps = ("trainer.max_epochs=100", "trainer.max_steps=6", "trainer.precision=fp32")

    def run(*more):
        return cli("train", "-m", "--config-dir", folder, "study=own", *tiny, *steps, *more)

    return run


@pytest.fixture
def client(home):
    return MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")


def of_phase(runs, phase):
    return [run for run in runs if run.data.tags.get("medtransfer.phase") == phase]


def test_a_loss_that_is_no_number_fails_the_trial_which_is_tried_again_on_request(study, list_runs):
    first = study()
    assert first.code == 1
    (failed,) = [run for run in of_phase(list_runs(), "final") if run.info.status == "FAILED"]
    assert failed.data.tags["medtransfer.arm"] == "wild"
    why = failed.data.tags["medtransfer.failure"]
    assert why.startswith("the loss is ")
    assert " at step " in why
    assert "batch " in why

    second = study()
    assert second.code == 1
    assert "2 of 2 trials had ended before" in second.out
    assert "1 of them had failed (study.retry_failed=true tries them again)" in second.out
    assert len(of_phase(list_runs(), "final")) == 2

    third = study("study.retry_failed=true")
    assert third.code == 1
    assert len(of_phase(list_runs(), "final")) == 3
    assert len(of_phase(list_runs(), "study")) == 1


def test_a_trial_whose_process_died_goes_on_in_its_run(study, list_runs, client):
    assert study("~study.arms.wild").code == 0
    (trial,) = of_phase(list_runs(), "final")
    (parent,) = of_phase(list_runs(), "study")
    dead = Process(socket.gethostname(), os.getpid(), 1.0)  # a number that was given away since
    for run in (trial, parent):
        client.update_run(run.info.run_id, status="RUNNING")
        client.set_tag(run.info.run_id, "medtransfer.process", str(dead))
    done = study("~study.arms.wild")
    assert done.code == 0, done.err
    assert {run.info.status for run in list_runs()} == {"FINISHED"}
    (again,) = of_phase(list_runs(), "final")
    assert again.info.run_id == trial.info.run_id
    assert "medtransfer.failure" not in again.data.tags
    steps = [each.step for each in client.get_metric_history(trial.info.run_id, "train/loss")]
    assert steps == sorted(set(steps))
    same = {k: v for k, v in trial.data.metrics.items() if not k.startswith(("cost/", "system/"))}
    assert {
        k: v for k, v in again.data.metrics.items() if not k.startswith(("cost/", "system/"))
    } == same


def test_a_trial_of_another_machine_that_gives_signs_of_life_is_waited_for(
    study, list_runs, client
):
    assert study("~study.arms.wild").code == 0
    (trial,) = of_phase(list_runs(), "final")
    client.update_run(trial.info.run_id, status="RUNNING")
    client.set_tag(trial.info.run_id, "medtransfer.process", "elsewhere:7:1.00")
    client.set_tag(trial.info.run_id, "medtransfer.alive", str(int(time.time()) - 60))
    refused = study("~study.arms.wild")
    assert refused.code == 2
    assert "is running already, as process 7 on elsewhere" in refused.err
    client.set_tag(trial.info.run_id, "medtransfer.alive", str(int(time.time()) - 3600))
    assert study("~study.arms.wild").code == 0
    assert {run.info.status for run in list_runs()} == {"FINISHED"}


def test_a_study_that_is_running_is_not_run_twice(study, list_runs, client):
    assert study("~study.arms.wild").code == 0
    (parent,) = of_phase(list_runs(), "study")
    client.update_run(parent.info.run_id, status="RUNNING")
    before = len(list_runs())
    refused = study("~study.arms.wild")
    assert refused.code == 2
    assert f"is running already, as process {os.getpid()}" in refused.err
    assert len(list_runs()) == before

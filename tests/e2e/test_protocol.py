"""The protocol of a study: equal budgets, the test set opened once, later extension."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

STEPS = ("trainer.max_epochs=100", "trainer.max_steps=4", "trainer.validate_every=2")
STUDY = """# @package _global_
defaults:
  - none@study
  - override /hydra/sweeper: study

study:
  name: protocol
  arms:
    FE: [strategy=feature_extraction]
    FT: [strategy=fine_tuning]
    LP: [strategy=linear_probe]
  axes:
    dataset.fraction: [0.5, 1.0]
  seeds: 2
  budget: {trials: 3}
  primary: {a: FT, b: FE, at: {dataset.fraction: 1.0}}
"""


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "conf"
    (folder / "study").mkdir(parents=True)
    (folder / "study" / "own.yaml").write_text(STUDY)
    return folder


@pytest.fixture
def client(home):
    return MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")


def tag(run, name):
    return run.data.tags.get(f"medtransfer.{name}")


def by_phase(runs):
    found = defaultdict(list)
    for run in runs:
        found[tag(run, "phase")].append(run)
    return found


def files(client, run, folder):
    return {each.path for each in client.list_artifacts(run.info.run_id, folder)}


def test_cells_are_tuned_alike_on_validation_data_alone_and_tested_once(
    cli, tiny, own, list_runs, client
):
    done = cli("train", "-m", "--config-dir", own, "study=own", *tiny, *STEPS)
    assert done.code == 0, done.err
    found = by_phase(list_runs())

    # 2 settings x 2 arms with something to tune x 3 draws; a solved head has nothing to tune
    tuned = defaultdict(list)
    for run in found["tuning"]:
        tuned[tag(run, "arm")].append(run)
    assert {arm: len(runs) for arm, runs in tuned.items()} == {"FE": 6, "FT": 6}
    for costs in ("cost/steps", "cost/validations"):
        spent = {arm: [run.data.metrics[costs] for run in runs] for arm, runs in tuned.items()}
        assert set(spent["FE"]) == set(spent["FT"])
        assert len(set(spent["FE"])) == 1
    assert {tag(run, "seed") for run in found["tuning"]} == {"0"}
    for run in found["tuning"]:
        assert tag(run, "test_openings") == "0"
        assert not [name for name in run.data.metrics if name.startswith("test/")]
        assert files(client, run, "predictions") == {"predictions/val.parquet"}
        assert "best/auroc" in run.data.metrics

    assert len(found["final"]) == 2 * 3 * 2
    for run in found["final"]:
        assert tag(run, "test_openings") == "1"
        assert "predictions/test.parquet" in files(client, run, "predictions")
        of_cell = [each for each in found["tuning"] if tag(each, "cell") == tag(run, "cell")]
        best = max((each.data.metrics["best/auroc"] for each in of_cell), default=None)
        chosen = [each for each in of_cell if each.data.metrics["best/auroc"] == best]
        settings = [json.loads(tag(each, "settings")) for each in chosen]
        told = json.loads(tag(run, "settings"))
        assert told in (settings or [{}])
        for key, value in told.items():
            assert run.data.params[key] == str(value)

    summaries = {tag(run, "cell"): run for run in found["summary"]}
    assert summaries.keys() == {tag(run, "cell") for run in found["final"]}
    for cell, run in summaries.items():
        of_cell = [each for each in found["final"] if tag(each, "cell") == cell]
        mean = sum(each.data.metrics["test/auroc"] for each in of_cell) / len(of_cell)
        assert run.data.metrics["test/auroc"] == pytest.approx(mean, abs=2e-3)
        assert run.data.metrics["test/auroc_lo"] <= mean <= run.data.metrics["test/auroc_hi"]

    (parent,) = found["study"]
    assert "report/report.html" in files(client, parent, "report")
    path = client.download_artifacts(parent.info.run_id, "report/results.json")
    results = json.loads(Path(path).read_text())
    assert {(s["arm"], s["tuning_trials"], s["test_openings"]) for s in results["spent"]} == {
        ("FE", 6, 4),
        ("FT", 6, 4),
        ("LP", 0, 4),
    }
    assert (results["primary"]["a"], results["primary"]["b"]) in {("FT", "FE"), ("FE", "FT")}
    assert len(results["tuning"]) >= 4


def test_a_finished_study_takes_more_seeds_arms_and_settings_without_running_again(
    cli, tiny, own, list_runs
):
    small = ("train", "-m", "--config-dir", own, "study=own", *tiny, *STEPS)
    few = ("study.budget.trials=2", "study.axes={dataset.fraction: [1.0]}")
    assert cli(*small, *few, "study.seeds=1").code == 0
    first = by_phase(list_runs())
    assert {phase: len(runs) for phase, runs in first.items()} == {
        "study": 1,
        "tuning": 4,
        "final": 3,
        "summary": 3,
    }
    assert {tag(run, "cell") for run in first["final"]} == {
        f"{arm} @ dataset.fraction=1.0" for arm in ("FE", "FT", "LP")
    }
    done = cli(*small, *few, "study.seeds=2", "+study.arms.more=['strategy=lp_ft']")
    assert done.code == 0, done.err
    assert "7 of 14 trials had ended before" in done.out + done.err
    second = by_phase(list_runs())
    assert {phase: len(runs) for phase, runs in second.items()} == {
        "study": 1,
        "tuning": 6,
        "final": 8,
        "summary": 4,
    }
    before = {run.info.run_id for runs in first.values() for run in runs}
    assert before <= {run.info.run_id for runs in second.values() for run in runs}

    other = cli(*small, *few, "study.seeds=1", "dataset.difficulty=0.4")
    assert other.code == 0, other.err
    assert len(by_phase(list_runs())["study"]) == 2


def test_adaptive_search_and_pruning_go_round_by_round_and_are_declared(cli, tiny, own, list_runs):
    steps = ("trainer.max_epochs=100", "trainer.max_steps=6", "trainer.validate_every=1")
    search = ("study.search.sampler=tpe", "study.search.pruner=median", "study.budget.trials=5")
    few = ("study.axes={dataset.fraction: [1.0]}", "study.seeds=1")
    done = cli("train", "-m", "--config-dir", own, "study=own", *tiny, *steps, *search, *few)
    assert done.code == 0, done.err
    found = by_phase(list_runs())
    assert len(found["tuning"]) == 10
    assert {tag(run, "pruned") for run in found["tuning"]} <= {"True", "False"}
    for run in found["tuning"]:
        pruned = tag(run, "pruned") == "True"
        assert (run.data.metrics["cost/steps"] < 6) == pruned
    protocol = json.loads(tag(found["study"][0], "protocol"))
    assert protocol["search"] == {"sampler": "tpe", "pruner": "median"}


def test_a_dry_run_shows_the_plan_and_opens_no_run(cli, tiny, own, list_runs):
    done = cli("train", "-m", "--config-dir", own, "study=own", *tiny, "study.dry_run=true")
    assert done.code == 0, done.err
    assert "12" in done.out
    assert "24" in done.out
    assert list_runs() == []


def test_a_primary_contrast_of_no_arm_is_refused(cli, tiny, own, list_runs):
    done = cli("train", "-m", "--config-dir", own, "study=own", *tiny, "study.primary.a=nobody")
    assert done.code == 2
    assert "primary names arm 'nobody'" in done.err
    assert list_runs() == []


def test_another_site_tests_the_trained_trial(cli, tiny, list_runs, client):
    elsewhere = (
        "dataset.external=phantom",
        *(f"dataset.external.{key}" for key in ("patients=20", "size=32", "image_size=32")),
    )
    small = (*tiny, "trainer.max_epochs=1", "dataset.external.data_seed=9")
    done = cli("train", *small, *elsewhere)
    assert done.code == 0, done.err
    (run,) = list_runs()
    assert "external/auroc" in run.data.metrics
    path = client.download_artifacts(run.info.run_id, "predictions/external.parquet")
    frame = pd.read_parquet(path)
    assert set(frame["split"]) == {"external"}
    assert len(frame) == 20

    same = cli("train", *tiny, *elsewhere, "dataset.external.patients=36")
    assert same.code == 3
    assert "external images are in the trial's training" in same.err

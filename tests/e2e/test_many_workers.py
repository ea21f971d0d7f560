"""Many processes on one store that was not there before: nothing is lost, nothing is told twice.

Whoever starts eight jobs at once has all of them create the store's tables at once. Every value
follows from a trial's number, so that one of another trial, or of another step, would show.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

import servers
from medtransfer.tracking import records
from medtransfer.tracking.runs import open_run
from medtransfer.tracking.store import Store, open_store

WORKERS, STEPS, ROWS = 8, 20, 300
FEW, MANY = 32, 200  # trials
SECONDS = 120.0  # for all workers to come up: machines are shared

STUDY = """# @package _global_
defaults:
  - none@study
  - override /hydra/sweeper: study

study:
  name: crowded
  arms:
    gentle: [optimizer.lr=0.001]
    bold: [optimizer.lr=0.01]
  seeds: 8
"""


@contextmanager
def sqlite(folder):
    yield f"sqlite:///{folder}/fresh/mlflow.db"


@contextmanager
def postgresql(folder):
    with servers.postgres() as cluster:
        yield cluster.uri


STORES = pytest.mark.parametrize("kind", [sqlite, postgresql], ids=lambda kind: kind.__name__)


def params(trial):
    return {"model": {f"key{i}": f"{trial}/{i}" for i in range(60)}, "lr": trial / 7} | {
        f"other{i}": [trial, i] for i in range(59)
    }


def metrics(trial, step):
    return {"train/loss": trial + 1 / (1 + step), "val/auroc [macro]": step / 32, "cost/s": -trial}


def table(trial):
    scores = [trial + row / ROWS for row in range(ROWS)]
    return pd.DataFrame({"sample_id": [f"{trial}-{row}" for row in range(ROWS)], "score": scores})


def arrive(barrier):
    """Begin a process: it opens the store only when all others can."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  all reach the store at once

    barrier.wait(SECONDS)


def work(uri, folder, worker, trials):
    """Run a worker's share of the trials."""
    store = open_store(uri, "crowded", str(folder / "artifacts"), folder)
    for trial in range(worker, trials, WORKERS):
        with open_run(store, f"trial {trial}", {"trial": trial}) as run:
            run.params(params(trial))
            run.json({"trial": trial}, "certificate.json")
            for step in range(STEPS):
                run.metrics(metrics(trial, step), step)
            run.frames({"test": table(trial)}, "predictions")
            run.tags({"done": trial, "nothing": None})


def crowd(uri, folder, trials):
    """Run all trials in eight processes, and return the store."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(WORKERS)
    with ProcessPoolExecutor(WORKERS, context, arrive, (barrier,)) as pool:
        shares = [pool.submit(work, uri, folder, worker, trials) for worker in range(WORKERS)]
        for share in shares:
            share.result()
    return open_store(uri, "crowded", str(folder / "artifacts"), folder)


def check_all_there(store: Store, folder, trials):
    client = store.client
    names = sorted(each.name for each in client.search_experiments())
    assert names == ["Default", "crowded"]
    runs = records.search(client, "")
    numbers = Counter(run.data.tags["medtransfer.trial"] for run in runs)
    assert numbers == Counter(map(str, range(trials)))
    for run in runs:
        trial = int(run.data.tags["medtransfer.trial"])
        assert run.info.run_name == f"trial {trial}"
        assert run.info.status == "FINISHED"
        assert run.data.tags["medtransfer.done"] == str(trial)
        given = params(trial)
        told = {f"model.{key}": value for key, value in given.pop("model").items()} | given
        assert run.data.params == {key: str(value) for key, value in told.items()}
        check_metrics(client, run.info.run_id, trial)
        assert records.document(client, run.info.run_id, "certificate.json") == {"trial": trial}
        assert records.tables(client, run.info.run_id) == ["test"]
        found = records.table(client, run.info.run_id, "test")
        pd.testing.assert_frame_equal(found, table(trial))
    left = [path for path in (folder / "spool").rglob("*") if path.is_file()]
    assert left == []


def check_metrics(client, run_id, trial):
    expected = {}
    for step in range(STEPS):
        for name, value in metrics(trial, step).items():
            told = name.replace("[", "_").replace("]", "_")
            expected.setdefault(told, []).append((step, value))
    for name, values in expected.items():
        history = client.get_metric_history(run_id, name)
        assert sorted((each.step, each.value) for each in history) == values, name
    assert set(client.get_run(run_id).data.metrics) == set(expected)


@pytest.mark.enable_socket  # a free port is looked for
@STORES
def test_eight_processes_that_create_a_store_lose_nothing_in_it(kind, tmp_path):
    with kind(tmp_path) as uri:
        check_all_there(crowd(uri, tmp_path, FEW), tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.parametrize("repetition", range(5))
@STORES
def test_eight_processes_lose_none_of_two_hundred_trials(kind, repetition, tmp_path):
    with kind(tmp_path) as uri:
        check_all_there(crowd(uri, tmp_path, MANY), tmp_path, MANY)


@pytest.mark.slow
@pytest.mark.enable_socket
@STORES
def test_a_study_of_four_workers_is_whole_in_a_fresh_store(kind, tmp_path, tiny):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "conf" / "study").mkdir(parents=True)
    (tmp_path / "conf" / "study" / "own.yaml").write_text(STUDY)
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=4")
    short = ("trainer.max_epochs=3", "trainer.workers=0", "strategy=feature_extraction")
    with kind(tmp_path) as uri:
        told = (f"tracking.uri={uri}", f"tracking.artifacts={tmp_path / 'artifacts'}")
        done = subprocess.run(
            [
                *(sys.executable, "-m", "medtransfer", "train", "-m"),
                *("--config-dir", tmp_path / "conf", "study=own", *told, *launcher, *tiny, *short),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"MEDTRANSFER_HOME": str(tmp_path / "home")},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        client = open_store(uri, "medtransfer", None, Path(tmp_path)).client
        runs = records.search(client, "")
        assert {run.info.status for run in runs} == {"FINISHED"}
        phases = Counter(run.data.tags["medtransfer.phase"] for run in runs)
        assert phases["final"] == 16
        assert phases["study"] == 1
        final = [run for run in runs if run.data.tags["medtransfer.phase"] == "final"]
        cells = [(r.data.tags["medtransfer.arm"], r.data.tags["medtransfer.seed"]) for r in final]
        assert len(set(cells)) == 16
        for run in final:
            history = client.get_metric_history(run.info.run_id, "val/auroc")
            assert [each.step for each in history] == [0, 1, 2]
            assert "certificate.json" in {p.path for p in client.list_artifacts(run.info.run_id)}

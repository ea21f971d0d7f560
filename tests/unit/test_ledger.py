"""The ledger of a study: what goes in comes out, whoever writes and however often."""

import multiprocessing
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from medtransfer.errors import StoreError
from medtransfer.tracking import records
from medtransfer.tracking.ledger import COUNT, Ledger, ledger_path


def row(run_id, **given):
    return {"run_id": run_id, "status": "FINISHED", "start_time": 1000, **given}


def cases(seed=0, n=5, **columns):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(n)],
            "exam_id": None,
            "target": rng.integers(0, 2, n),
            "score_a": rng.random(n),
            **columns,
        }
    )


def same(found, expected):
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    return True


@pytest.mark.parametrize("consolidated", [False, True])
def test_what_was_appended_is_there_before_and_after(tmp_path, consolidated):
    ledger = Ledger(tmp_path / "new")
    ledger.append(
        row("r1", **{"metrics.test/auroc": 0.9, "tags.medtransfer.arm": "a"}),
        {"test": cases(1), "val": cases(2, 7), "detections": cases(3)},
    )
    ledger.append(row("r2", status="FAILED", **{"tags.medtransfer.failure": "no disk"}), {})
    if consolidated:
        ledger.consolidate()
        assert {path.name for path in ledger.folder.iterdir()} == {
            *(".lock", "parts", "trials.parquet", "cases.parquet", "detections.parquet"),
        }
        assert not list((ledger.folder / "parts").iterdir())
    again = Ledger(tmp_path / "new")
    first, second = again.trials().sort_values("run_id").to_dict("records")
    assert (first["metrics.test/auroc"], first["tags.medtransfer.arm"]) == (0.9, "a")
    assert "tags.medtransfer.failure" not in records.under("", first)
    assert (second["status"], second["tags.medtransfer.failure"]) == ("FAILED", "no disk")
    assert same(again.predictions("r1", "test"), cases(1))
    assert same(again.predictions("r1", "val"), cases(2, 7))
    assert same(again.predictions("r1", "detections"), cases(3))
    for missing in (("r1", "external"), ("r2", "test"), ("r3", "test"), ("r3", "detections")):
        assert again.predictions(*missing) is None


def test_a_ledger_that_nobody_wrote_is_empty(tmp_path):
    ledger = Ledger(tmp_path / "none")
    ledger.consolidate()
    assert ledger.trials().empty
    assert ledger.predictions("r", "test") is None
    assert not ledger.folder.exists()


def test_consolidating_again_changes_nothing_and_later_trials_are_added(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append(row("r1"), {"test": cases(1)})
    ledger.consolidate()
    before = (tmp_path / "cases.parquet").read_bytes()
    ledger.consolidate()
    assert (tmp_path / "cases.parquet").read_bytes() == before
    ledger.append(row("r2"), {"test": cases(2)})
    ledger.append(row("r1", status="KILLED"), {"test": cases(3)})
    assert same(ledger.predictions("r1", "test"), cases(3))
    ledger.consolidate()
    assert same(ledger.predictions("r1", "test"), cases(3))
    assert same(ledger.predictions("r2", "test"), cases(2))
    assert dict(ledger.trials()[["run_id", "status"]].to_numpy()) == {
        "r1": "KILLED",
        "r2": "FINISHED",
    }


def test_tables_that_differ_in_columns_and_types_come_back_as_they_were(tmp_path):
    tables = {
        "r1": cases(1, attribute_year=[1999, 2000, 2001, 2002, 2003]),
        "r2": cases(2, attribute_year=["a", "b", None, "d", "e"], score_b=0.5),
        "r3": cases(3).drop(columns="target").assign(dice=[0.1, np.nan, 0.3, 1.0, 0.0]),
        "r4": cases(4, n=0),
        "r5": cases(5, target=[0.5, 1.0, np.nan, 2.0, 3.0], flag=[True, False, True, True, False]),
    }
    ledger = Ledger(tmp_path)
    for name, frame in tables.items():
        ledger.append(row(name), {"test": frame})
        ledger.consolidate()
    for name, frame in tables.items():
        found = ledger.predictions(name, "test")
        assert list(found.columns) == list(frame.columns)
        assert same(found, frame)
        assert str(found["score_a"].dtype) == "float64"
    assert str(ledger.predictions("r1", "test")["attribute_year"].dtype) == "int64"
    assert str(ledger.predictions("r5", "test")["flag"].dtype) == "bool"
    together = pd.read_parquet(tmp_path / "cases.parquet")  # tidy for whoever opens it
    assert set(together["run_id"]) == {"r1", "r2", "r3", "r5"}
    assert set(together["table"]) == {"test"}


def test_a_reader_sees_what_another_process_has_consolidated(tmp_path):
    reader, writer = Ledger(tmp_path), Ledger(tmp_path)
    writer.append(row("r1"), {"test": cases(1)})
    writer.consolidate()
    assert same(reader.predictions("r1", "test"), cases(1))
    writer.append(row("r2"), {"test": cases(2)})
    writer.consolidate()
    assert same(reader.predictions("r2", "test"), cases(2))


def _write(folder, start):
    ledger = Ledger(folder)
    for k in range(start, start + 10):
        ledger.append(row(f"r{k}"), {"test": cases(k)})
        if k % 4 == 0:
            ledger.consolidate()


def test_several_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(tmp_path, 10 * k)) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    ledger = Ledger(tmp_path)
    ledger.consolidate()
    assert set(ledger.trials()["run_id"]) == {f"r{k}" for k in range(30)}
    for k in range(30):
        assert same(ledger.predictions(f"r{k}", "test"), cases(k))


def test_what_breaks_off_leaves_nothing_half(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    ledger.append(row("r1"), {"test": cases(1)})
    with pytest.raises(TypeError):
        ledger.append(row("r2", bad=object()), {"test": cases(2)})
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["r1"]

    def full(self, target):
        raise OSError("no space")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="no space"):
            ledger.consolidate()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "parts"}
    assert same(ledger.predictions("r1", "test"), cases(1))


def test_damage_is_told(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.append(row("r1"), {"test": cases(1)})
    ledger.consolidate()
    for name in ("trials", "cases"):
        (tmp_path / f"{name}.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(StoreError, match="delete it"):
        ledger.trials()
    with pytest.raises(StoreError, match="delete it"):
        ledger.predictions("r1", "test")


def test_it_lies_beside_a_file_and_else_with_the_output():
    assert ledger_path("sqlite:////a/b/mlflow.db", Path("/out"), "s") == Path("/a/b/ledger/s")
    assert ledger_path("http://host:5000", Path("/out"), "s") == Path("/out/ledger/s")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("e", artifact_location=(folder / "a").as_uri())
    return client, experiment, folder


def nested(client, experiment, folder, *, parent, seed, status="FINISHED"):
    tags = {
        "mlflow.parentRunId": parent,
        "medtransfer.phase": "final",
        "medtransfer.seed": f"{seed}",
    }
    run = client.create_run(experiment, tags=tags).info.run_id
    client.log_metric(run, "test/auroc", seed / 10)
    for name, frame in {"test": cases(seed), "detections": cases(seed + 1)}.items():
        frame.to_parquet(folder / f"{name}.parquet")
        client.log_artifact(run, str(folder / f"{name}.parquet"), "predictions")
    if status != "RUNNING":
        client.set_terminated(run, status)
    return run


def test_it_catches_up_with_the_store_and_can_be_made_anew(store, tmp_path):
    client, experiment, folder = store
    parent = client.create_run(experiment).info.run_id
    runs = [nested(client, experiment, folder, parent=parent, seed=seed) for seed in range(3)]
    dead = nested(client, experiment, folder, parent=parent, seed=3, status="RUNNING")
    summary = {"mlflow.parentRunId": parent, "medtransfer.phase": "summary"}
    client.create_run(experiment, tags=summary)
    ledger = Ledger(tmp_path / "ledger")
    # One was appended as it ended; the others died, or ran on another machine.
    ledger.append(records.row(client.get_run(runs[0])), {"test": cases(0)})
    ledger.catch_up(client, [parent])
    assert client.get_run(parent).data.tags[COUNT] == "4"
    assert set(ledger.trials()["run_id"]) == {*runs, dead}
    assert ledger.predictions(runs[0], "detections") is None
    assert same(ledger.predictions(runs[2], "test"), cases(2))

    client.set_terminated(dead, "FAILED")
    ledger.catch_up(client, [parent])
    status = dict(ledger.trials()[["run_id", "status"]].to_numpy())
    assert status[dead] == "FAILED"

    ledger.rebuild(client, [parent])
    assert set(ledger.trials()["run_id"]) == {*runs, dead}
    assert same(ledger.predictions(runs[0], "detections"), cases(1))
    by_run = {
        entry["run_id"]: records.under("", entry) for entry in ledger.trials().to_dict("records")
    }
    for run in runs:
        assert by_run[run] == records.row(client.get_run(run))

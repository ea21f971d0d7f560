from pathlib import Path

import pytest

from medtransfer.errors import ConfigError
from medtransfer.tracking.processes import Process
from medtransfer.tracking.runs import Interrupted, flatten, open_run, reason
from medtransfer.tracking.store import open_store

SECRET = "postgresql://me:secret@host/db"


@pytest.fixture
def store(home):
    return open_store(f"sqlite:///{home}/mlflow.db", "mine", None, home)


@pytest.fixture
def read(store):
    """Return a function that reads a run back."""
    return lambda run: store.client.get_run(run.run_id)


def artifact(store, run, name):
    return Path(store.client.download_artifacts(run.run_id, name)).read_text()


def test_a_run_that_ends_well_is_finished_with_all_that_was_logged(store, read):
    with open_run(store, "name", {"arm": "a", "none": None, "seed": 0}) as run:
        assert read(run).info.status == "RUNNING"
        run.metrics({"val/auroc": 0.5}, step=1)
        run.metrics({"val/auroc": 0.75}, step=2)
        run.params({"a": {"b": 1, "c": {}}, "d": [1, 2]})
        run.json({"x": Path("y")}, "x.json")
        with run.folder("deep") as folder:
            (folder / "file.txt").write_text("hello")
    found = read(run)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "name")
    assert found.info.end_time >= found.info.start_time
    history = store.client.get_metric_history(run.run_id, "val/auroc")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.75)]
    assert found.data.params == {"a.b": "1", "a.c": "{}", "d": "[1, 2]"}
    tags = {k: v for k, v in found.data.tags.items() if k.startswith("medtransfer.")}
    assert not Process.parse(tags.pop("medtransfer.process")).gone
    assert tags == {"medtransfer.arm": "a", "medtransfer.seed": "0", "medtransfer.key": run.key}
    assert artifact(store, run, "x.json") == '{\n  "x": "y"\n}\n'
    assert artifact(store, run, "deep/file.txt") == "hello"


def failed(store, error):
    runs = []
    with pytest.raises(type(error)) as caught, open_run(store, "name", {}) as run:  # noqa: PT012
        runs.append(run)
        raise error
    assert caught.value is error
    return runs[0]


def test_a_run_that_raises_is_failed_with_its_reason_and_traceback(store, read):
    run = failed(store, RuntimeError(f"cannot reach {SECRET}\nsecond line"))
    found = read(run)
    assert found.info.status == "FAILED"
    failure = found.data.tags["medtransfer.failure"]
    assert failure == "RuntimeError: cannot reach postgresql://me:***@host/db"
    text = artifact(store, run, "traceback.txt")
    assert text.startswith("Traceback")
    assert "in failed" in text
    assert "secret" not in text


def test_a_long_reason_hides_neither_the_error_nor_the_traceback(store, read):
    run = failed(store, RuntimeError("x" * 20_000))
    assert read(run).info.status == "FAILED"
    assert len(read(run).data.tags["medtransfer.failure"]) > 100
    assert "x" * 20_000 in artifact(store, run, "traceback.txt")


@pytest.mark.parametrize("error", [Interrupted(15), KeyboardInterrupt()], ids=repr)
def test_a_run_that_is_interrupted_is_killed(store, read, error):
    found = read(failed(store, error))
    assert found.info.status == "KILLED"
    assert "medtransfer.failure" not in found.data.tags


def test_an_exit_of_the_interpreter_is_a_failure(store, read):
    assert read(failed(store, SystemExit(1))).info.status == "FAILED"


def test_a_nested_run_names_its_parent_whatever_the_environment_says(store, read, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    with (
        open_run(store, "parent", {}) as parent,
        open_run(store, "child", {}, parent=parent.run_id) as child,
    ):
        pass
    assert read(child).data.tags["mlflow.parentRunId"] == parent.run_id
    assert read(child).info.experiment_id == store.experiment_id
    assert "mlflow.parentRunId" not in read(parent).data.tags


def test_params_are_redacted_cut_and_as_many_as_wanted(store, read):
    many = {f"p{i}": i for i in range(250)}
    with open_run(store, "name", {}) as run:
        run.params({"uri": SECRET, "long": "x" * 7000, "many": many})
    params = read(run).data.params
    assert params["uri"] == "postgresql://me:***@host/db"
    assert params["long"] == "x" * 6000
    assert {k: int(v) for k, v in params.items() if k.startswith("many.")} == {
        f"many.{k}": v for k, v in many.items()
    }


def test_names_that_mlflow_refuses_are_made_to_fit(store, read):
    with open_run(store, "trial", {}) as run:
        run.metrics({"test/dice_tumour (left), große*": 0.5})
        run.params({"dataset": {"values": {"<tumour>": 255}}})
    data = read(run).data
    assert data.metrics == {"test/dice_tumour _left__ große_": 0.5}
    assert data.params == {"dataset.values._tumour_": "255"}


def test_tags_may_be_more_than_one_call_takes(store, read):
    with open_run(store, "name", {f"t{i}": i for i in range(150)}) as run:
        pass
    assert sum(tag.startswith("medtransfer.t") for tag in read(run).data.tags) == 150


def test_nested_values_are_flat_under_dotted_names():
    assert flatten({"a": {"b": {"c": 1}}, "d": {}, "e": [{"f": 1}]}) == {
        "a.b.c": 1,
        "d": {},
        "e": [{"f": 1}],
    }


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ConfigError("no such thing", choices=["a"], remedy="b"), "no such thing"),
        (RuntimeError("first\nsecond"), "RuntimeError: first"),
        (ValueError(), "ValueError"),
        (OSError(f"cannot open {SECRET}"), "OSError: cannot open postgresql://me:***@host/db"),
    ],
)
def test_a_reason_is_one_line_without_passwords(error, line):
    assert reason(error) == line

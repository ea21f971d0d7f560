import multiprocessing
import os
import sys
from pathlib import Path

import pytest

from medtransfer.errors import StoreError
from medtransfer.secrets import redact
from medtransfer.tracking.store import open_client, open_store, resolve_uri


@pytest.fixture
def uri(home):
    return f"sqlite:///{home}/mlflow.db"


def test_a_given_uri_beats_the_environment_beats_the_default(tmp_path, monkeypatch):
    assert resolve_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from.environment")
    assert resolve_uri(None, tmp_path) == "http://from.environment"
    assert resolve_uri("http://given", tmp_path) == "http://given"


def test_a_relative_output_folder_names_one_store_wherever_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(None, Path("out")) == f"sqlite:///{tmp_path}/out/mlflow.db"


def test_a_store_has_its_experiment_once_with_artifacts_beside_it(uri, home):
    first, second = (open_store(uri, "mine", None, Path("out")) for _ in range(2))
    assert first.experiment_id == second.experiment_id
    found = first.client.get_experiment(first.experiment_id)
    assert found.name == "mine"
    assert found.artifact_location == str(home / "artifacts")


def test_artifacts_lie_where_they_were_asked_to(uri, tmp_path):
    store = open_store(uri, "mine", str(tmp_path / "elsewhere"), Path("out"))
    location = store.client.get_experiment(store.experiment_id).artifact_location
    assert location == str(tmp_path / "elsewhere")


def test_a_deleted_experiment_is_used_again(uri):
    store = open_store(uri, "mine", None, Path("out"))
    store.client.delete_experiment(store.experiment_id)
    again = open_store(uri, "mine", None, Path("out"))
    assert again.experiment_id == store.experiment_id
    assert again.client.get_experiment(again.experiment_id).lifecycle_stage == "active"


def open_mine(uri):
    return open_store(uri, "mine", None, Path("out"))


def _create(uri):
    return open_mine(uri).experiment_id


def test_processes_that_create_one_store_at_once_share_it(tmp_path):
    """The tables are created here for real: a copy of a store would not show a race."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  imported once, for all children

    uri = f"sqlite:///{tmp_path}/fresh/mlflow.db"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        ids = pool.map(_create, [uri] * 4, chunksize=1)
    assert len(set(ids)) == 1
    names = [experiment.name for experiment in open_client(uri).search_experiments()]
    assert sorted(names) == ["Default", "mine"]


def test_a_store_that_is_not_there_is_not_created_by_reading(tmp_path):
    with pytest.raises(StoreError, match="there is no tracking store") as caught:
        open_client(f"sqlite:///{tmp_path}/nope/mlflow.db")
    assert "run a trial first" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("open_it", [open_client, open_mine])
def test_a_file_that_is_no_store_is_said_so(tmp_path, open_it):
    (tmp_path / "x.db").write_text("hello")
    with pytest.raises(StoreError, match=r"x\.db' cannot be used: .*not a database"):
        open_it(f"sqlite:///{tmp_path}/x.db")
    assert (tmp_path / "x.db").read_text() == "hello"


@pytest.mark.parametrize("open_it", [open_client, open_mine])
def test_a_server_that_does_not_answer_is_asked_once(open_it, monkeypatch):
    asked = []

    def refuse(address, timeout):
        asked.append(address)
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr("socket.create_connection", refuse)
    with pytest.raises(StoreError, match=r"'http://example\.org:5000' .*: nobody there"):
        open_it("http://example.org:5000")
    assert asked == [("example.org", 5000)]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/mlflow\.db' cannot be used") as caught:
        open_store(f"sqlite:///{tmp_path}/file/mlflow.db", "mine", None, Path("out"))
    assert "tracking.uri" in caught.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be used"):
        open_store(f"sqlite:///{tmp_path}/mlflow.db", "mine", None, Path("out"))


def test_a_uri_that_nobody_knows_is_refused_without_its_password():
    with pytest.raises(StoreError) as caught:
        open_store("nonsense://me:secret@host/db", "mine", None, Path("out"))
    assert "nonsense://me:***@host/db" in caught.value.problem
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("mysql://me:p@ss:word@host/db", "mysql://me:***@host/db"),
        ("s3://:key@bucket", "s3://:***@bucket"),
        ("a http://u:p@h/x and http://v:q@i/y", "a http://u:***@h/x and http://v:***@i/y"),
        ("http://localhost:5000/x", "http://localhost:5000/x"),
        ("sqlite:////home/me@work/x.db", "sqlite:////home/me@work/x.db"),
        ("mail me@home: 10:30", "mail me@home: 10:30"),
    ],
)
def test_passwords_are_taken_out_and_nothing_else(text, expected):
    assert redact(text) == expected


def test_a_database_without_its_driver_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match="needs the module 'psycopg'") as caught:
        open_mine("postgresql+psycopg://me:secret@localhost/db")
    assert "postgresql+psycopg2://" in caught.value.remedy
    assert "secret" not in str(caught.value)

"""What a run has to say is kept until the store has it: in order, and once."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException

from medtransfer.errors import StoreError, UndeliveredError
from medtransfer.tracking import courier
from medtransfer.tracking.processes import Process
from medtransfer.tracking.runs import Earlier, Interrupted, open_run
from medtransfer.tracking.spool import Refused, Spool, deliver_abandoned, spools
from medtransfer.tracking.store import Store, open_store


@pytest.fixture
def store(home):
    return open_store(f"sqlite:///{home}/mlflow.db", "mine", None, home)


@pytest.fixture
def spool(store):
    spool = Spool.begin(store, "k" * 32, None)
    where = {"experiment_id": store.experiment_id, "name": "name", "start": 1}
    spool.put("create", {**where, "tags": {"medtransfer.key": spool.key}})
    return spool


class Flaky:
    """A client whose store takes what it is told, and then does not always say so."""

    def __init__(self, client, silent):
        self._client = client
        self._silent = iter(silent)

    def __getattr__(self, name):
        method = getattr(self._client, name)

        def call(*args, **kwargs):
            done = method(*args, **kwargs)
            if name not in {"get_run", "search_runs"} and next(self._silent, False):
                raise MlflowException("the server went away")
            return done

        return call


def history(store, run_id, name):
    return [(each.step, each.value) for each in store.client.get_metric_history(run_id, name)]


def until_delivered(spool, client):
    for _ in range(100):
        try:
            if spool.deliver(client):
                return
        except MlflowException:
            continue
    pytest.fail("never delivered")


@pytest.mark.parametrize("silent", [[], [True] * 12, [False, True] * 10], ids=["no", "all", "odd"])
def test_a_store_that_takes_and_does_not_answer_has_everything_once(store, spool, silent):
    for step in range(3):
        spool.put("metrics", [["val/dice", step / 2, 1000 + step, step]])
        spool.put("tags", {"at": str(step)})
    spool.put("params", {f"p{i}": "1" for i in range(150)})
    with spool.artifacts("deep") as folder:
        (folder / "file.txt").write_text("hello")
    spool.put("end", ["FINISHED", 9999])
    until_delivered(spool, Flaky(store.client, silent))
    (run,) = store.client.search_runs([store.experiment_id])
    assert (run.info.status, run.info.end_time) == ("FINISHED", 9999)
    assert history(store, run.info.run_id, "val/dice") == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert run.data.tags["at"] == "2"
    assert len(run.data.params) == 150
    assert [each.path for each in store.client.list_artifacts(run.info.run_id, "deep")] == [
        "deep/file.txt"
    ]
    assert not spool.folder.exists()


@given(cut=st.integers(1, 60))
def test_an_entry_that_was_not_written_whole_counts_for_nothing(tmp_path_factory, cut):
    root = tmp_path_factory.mktemp("spool")
    spool = Spool.begin(Store("sqlite:///nowhere", "0", root), "key", None)
    spool.put("tags", {"first": "1"})
    spool.put("tags", {"second": "a rather long value, of more than sixty characters in all"})
    log = spool.folder / "log.jsonl"
    os.truncate(log, log.stat().st_size - cut)
    seen = []

    class Client:
        def log_batch(self, _run_id, tags):
            seen.extend(tag.key for tag in tags)

        def set_terminated(self, _run_id, status, _end_time):
            seen.append(status)

    spool.created("id")
    spool.close()
    assert spool.deliver(Client())
    assert seen == ["first", "medtransfer.failure", "KILLED"]


def test_a_disk_that_is_full_takes_an_entry_whole_or_not_at_all(spool, monkeypatch):
    write = os.write
    before = (spool.folder / "log.jsonl").read_bytes()
    monkeypatch.setattr(os, "write", lambda descriptor, text: write(descriptor, text[:7]))
    with pytest.raises(OSError, match="No space left"):
        spool.put("tags", {"a": "b"})
    assert (spool.folder / "log.jsonl").read_bytes() == before


def test_what_the_store_refuses_is_set_aside_and_said(store, spool):
    assert not spool.deliver(store.client)
    store.client.delete_run(spool.run_id)
    spool.put("metrics", [["a", 1.0, 1, 0]])
    with pytest.raises(Refused, match="must be in the 'active' state"):
        spool.deliver(store.client)
    assert spools(store.spool) == []
    assert json.loads((store.spool / "refused" / spool.key / "about.json").read_text())


def test_what_a_dead_process_left_is_delivered_and_closed(store, spool):
    child = subprocess.Popen([sys.executable, "-c", ""])
    dead = Process(socket.gethostname(), child.pid, Process.this().started)
    child.wait()
    spool.put("metrics", [["a", 1.0, 1, 0]])
    assert deliver_abandoned(store) == 0  # this process may have more to say
    about = spool.about | {"process": str(dead)}
    (spool.folder / "about.json").write_text(json.dumps(about))
    assert deliver_abandoned(store) == 1
    (run,) = store.client.search_runs([store.experiment_id])
    assert (run.info.status, run.data.metrics) == ("KILLED", {"a": 1.0})
    assert run.data.tags["medtransfer.failure"] == "its process died"
    assert deliver_abandoned(store) == 0


class Gone:
    """A store that does not answer, until it does."""

    def __init__(self, store):
        self.uri, self.experiment_id, self.spool = store.uri, store.experiment_id, store.spool
        self.away, self._client = True, store.client

    @property
    def client(self):
        self.knock()
        return self._client

    def knock(self):
        if self.away:
            raise ConnectionError("nobody there")


def test_a_run_is_told_while_the_store_does_not_answer(store, monkeypatch, recwarn):
    monkeypatch.setattr(courier, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(courier.Courier, "_known", {})
    gone = Gone(store)
    with open_run(gone, "name", {"arm": "a"}, wait=False) as run:
        for step in range(5):
            run.metrics({"val/dice": step}, step=step)
        while courier.Courier.of(gone).trouble is None:
            time.sleep(0.01)
    assert run.blocked < 0.1
    assert store.client.search_runs([store.experiment_id]) == []
    gone.away = False
    run.settle()
    found = store.client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert history(store, run.run_id, "val/dice") == [(i, float(i)) for i in range(5)]
    assert [str(w.message) for w in recwarn if "does not answer" in str(w.message)]


def test_who_must_wait_is_told_what_to_do(store, monkeypatch):
    monkeypatch.setattr(courier.Courier, "_known", {})
    gone = Gone(store)
    with open_run(gone, "name", {}, wait=False) as run:
        pass
    silence = "does not answer: ConnectionError: nobody there"
    with pytest.raises(UndeliveredError, match=silence) as caught:
        run.settle(patience=0.3)
    assert "medtransfer sync" in caught.value.remedy
    assert isinstance(caught.value, StoreError)
    gone.away = False
    run.settle()


def test_an_interrupted_run_goes_on_under_its_key(store):
    with pytest.raises(Interrupted), open_run(store, "name", {"seed": 1}) as first:  # noqa: PT012
        first.params({"threads": 2, "lr": 0.1})
        first.metrics({"a": 1.0}, step=0)
        raise Interrupted(15)
    assert store.client.get_run(first.run_id).info.status == "KILLED"
    earlier = Earlier(first.run_id, first.key, last_step=0)
    with open_run(store, "name", {"seed": 1}, again=earlier) as second:
        second.params({"threads": 8, "lr": 0.1, "new": True})
        second.metrics({"a": 2.0}, step=1)
    assert (second.run_id, second.key, second.last_step) == (first.run_id, first.key, 0)
    run = store.client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"threads": "2", "lr": "0.1", "new": "True"}
    assert history(store, first.run_id, "a") == [(0, 1.0), (1, 2.0)]

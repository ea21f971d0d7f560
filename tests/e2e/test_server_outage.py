"""The tracking server dies in the middle of a study, by SIGKILL, and is there again later, or not.

What the store holds at the end is compared with the same study on a store that was never away:
every metric of every trial at every step, once. The trials' numbers are equal to the bit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from medtransfer.tracking import records
from medtransfer.tracking.store import open_client
from servers import tracking_server

pytestmark = pytest.mark.enable_socket

ARMS = 2
SECONDS = 240.0  # for a study to come so far: machines are shared
STUDY = """# @package _global_
defaults:
  - none@study
  - override /hydra/sweeper: study

study:
  name: outage
  arms:
    gentle: [optimizer.lr=0.001]
    bold: [optimizer.lr=0.01]
"""


class Program:
    """The program, as somebody starts it from a shell.

    Args:
        folder: Holds its home.
        uri: The tracking store.
        study: Overrides that choose the study.
    """

    def __init__(self, folder, uri, study):
        self.folder, self.uri, self.study = folder, uri, study
        folder.mkdir()

    def start(self, command):
        """Start a command; its output goes to files, since a full pipe would stop it."""
        words = [sys.executable, "-m", "medtransfer", *command, f"tracking.uri={self.uri}"]
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            surroundings = os.environ | {"MEDTRANSFER_HOME": str(self.folder / "home")}
            return subprocess.Popen(words, stdout=out, stderr=err, env=surroundings)

    def start_study(self):
        return self.start(["train", "-m", *self.study])

    def wait(self, process):
        """Wait for a command, and return its exit code and all that it has said."""
        try:
            code = process.wait(SECONDS)
        finally:
            process.kill()
        told = ((self.folder / name).read_text() for name in ("out", "err"))
        return code, " ".join(" ".join(told).split())


@pytest.fixture
def study(tiny, tmp_path):
    """Return a function that gives the overrides of a study: its seeds and its trials' epochs."""
    (tmp_path / "conf" / "study").mkdir(parents=True)
    (tmp_path / "conf" / "study" / "own.yaml").write_text(STUDY)
    fixed = ("strategy=fine_tuning", "weights=random", "transform=none", "trainer.precision=fp32")

    def give(seeds, epochs):
        own = ("--config-dir", str(tmp_path / "conf"), "study=own", f"study.seeds={seeds}")
        return [*own, *tiny, *fixed, "trainer.workers=0", f"trainer.max_epochs={epochs}"]

    return give


@pytest.fixture
def expected(cli, home, study):
    """Return a function that gives the histories of the study where nothing happens to it."""

    def run(seeds, epochs):
        done = cli("train", "-m", *study(seeds, epochs))
        assert done.code == 0, done.err
        found = histories(open_client(f"sqlite:///{home}/mlflow.db"))
        assert len(found) == ARMS * seeds
        for history in found.values():
            assert [step for step, _ in history["val/auroc"]] == list(range(epochs))
        return found

    return run


def trials_of(client):
    """Return the study's trials in the order in which they began."""
    found = records.search(client, "tags.`medtransfer.phase` = 'final'")
    return sorted(found, key=lambda run: run.info.start_time)


def histories(client):
    """Return all values of a study by trial and metric, each with its step; what they cost apart.

    A list, since what was told twice must not vanish here.
    """
    found = {}
    for run in trials_of(client):
        tags = run.data.tags
        key = (tags["medtransfer.arm"], tags["medtransfer.seed"])
        assert key not in found, "a trial is there twice"
        found[key] = {}
        for name in run.data.metrics:
            if not name.startswith(("cost/", "system/")):
                history = client.get_metric_history(run.info.run_id, name)
                found[key][name] = [(each.step, each.value) for each in history]
    return found


def wait_for_trials(client, count, process):
    """Wait until so many trials have ended."""
    deadline = time.monotonic() + SECONDS
    while sum(run.info.status == "FINISHED" for run in trials_of(client)) < count:
        assert process.poll() is None, "the study ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def milliseconds():
    return int(time.time() * 1000)


def check_whole(client, expected):
    runs = records.search(client, "")
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert histories(client) == expected
    for run in trials_of(client):
        paths = {each.path for each in client.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "certificate.json", "predictions"} <= paths
        assert len(records.table(client, run.info.run_id, "test")) > 0
        assert run.data.params["strategy._target_"].endswith("FineTuning")
        assert run.data.tags["medtransfer.trial_id"]


def blocked(runs):
    return sum(run.data.metrics["cost/tracking_seconds"] for run in runs)


# seeds and epochs: so many that trials of the study fall into the outage, and others after it
@pytest.mark.parametrize(
    ("outage", "size"),
    [
        pytest.param(5.0, (3, 60), id="5 s"),
        pytest.param(60.0, (5, 400), id="60 s", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_a_server_that_is_away_in_mid_study_loses_and_doubles_nothing(
    outage, size, expected, study, tmp_path
):
    calm = expected(*size)
    with tracking_server(tmp_path / "server") as server:
        program = Program(tmp_path / "away", server.uri, study(*size))
        client = open_client(server.uri)
        process = program.start_study()
        try:
            wait_for_trials(client, 1, process)
            server.kill()
            gone = milliseconds()
            time.sleep(outage)
            assert process.poll() is None
            back = milliseconds()
            server.start()
        except BaseException:
            process.kill()
            raise
        code, told = program.wait(process)
        assert code == 0, told
        assert "does not answer" in told
        check_whole(client, calm)
        trials = trials_of(client)
        within = [r for r in trials if gone < r.info.start_time and r.info.end_time < back]
        assert within, "training waited for the server"
        assert blocked(trials) < 1.0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_server_that_is_gone_for_good_was_not_told_is_delivered_later(
    expected, study, tmp_path
):
    seeds, epochs = 3, 60
    trials = ARMS * seeds
    calm = expected(seeds, epochs)
    with tracking_server(tmp_path / "server") as server:
        program = Program(tmp_path / "away", server.uri, study(seeds, epochs))
        client = open_client(server.uri)
        process = program.start_study()
        try:
            wait_for_trials(client, 1, process)
        except BaseException:
            process.kill()
            raise
        server.kill()
        code, told = program.wait(process)
        assert code == 1
        assert "does not answer" in told
        assert "medtransfer sync" in told

        code, told = program.wait(program.start(["sync"]))  # it is still away
        assert code != 0
        assert server.uri in told

        server.start()
        assert len(trials_of(client)) < trials
        code, told = program.wait(program.start(["sync"]))
        assert code == 0, told
        assert histories(client) == calm
        found = trials_of(client)
        assert {run.info.status for run in found} == {"FINISHED"}
        order = [int(run.data.tags["medtransfer.seed"]) for run in found]
        assert order == sorted(order)
        ends = [run.info.end_time for run in found]
        assert ends == sorted(ends)
        assert not [run for run in records.search(client, "") if run.info.status == "RUNNING"]

        before = [run.to_dictionary() for run in records.search(client, "")]
        code, told = program.wait(program.start(["sync"]))
        assert code == 0, told
        assert [run.to_dictionary() for run in records.search(client, "")] == before
        assert histories(client) == calm

        code, told = program.wait(program.start_study())
        assert code == 0, told
        assert f"{trials} of {trials} trials had ended before" in told
        check_whole(client, calm)

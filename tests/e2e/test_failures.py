"""What goes wrong in mid-work: told, recorded, and never left RUNNING."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

BROKEN = """
from dataclasses import dataclass
from medtransfer.strategies.feature_extraction import FeatureExtraction

@dataclass(kw_only=True)
class Broken(FeatureExtraction):
    def parameter_groups(self, model, optimizer):
        if self.head_lr == 2:
            raise RuntimeError("the coffee is cold")
        return super().parameter_groups(model, optimizer)
"""


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A strategy of the user's that fails in training when its learning rate is 2."""
    (tmp_path / "own" / "strategy").mkdir(parents=True)
    shipped = Path("conf/strategy/feature_extraction.yaml").read_text()
    own = shipped.replace(
        "medtransfer.strategies.feature_extraction.FeatureExtraction", "broken_strategy.Broken"
    )
    (tmp_path / "own" / "strategy" / "broken.yaml").write_text(own)
    (tmp_path / "broken_strategy.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return ("--config-dir", str(tmp_path / "own"), "trusted_modules=[broken_strategy]")


def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(cli, home, list_runs, broken, tiny):
    code, out, _ = cli(
        "train",
        "-m",
        *broken,
        *tiny,
        "strategy=broken",
        "strategy.head_lr=1,2,3",
        "trainer.max_epochs=1",
    )
    assert code == 1
    assert "the coffee is cold" in out
    client, found = MlflowClient(f"sqlite:///{home}/mlflow.db"), list_runs()
    found = [run for run in found if run.data.tags["medtransfer.phase"] != "summary"]
    by_status = {run.info.status: run for run in found}
    assert sorted(run.info.status for run in found) == [
        "FAILED",
        "FINISHED",
        "FINISHED",
        "FINISHED",
    ]
    failed = by_status["FAILED"]
    assert failed.data.tags["medtransfer.failure"] == "RuntimeError: the coffee is cold"
    trace = Path(client.download_artifacts(failed.info.run_id, "traceback.txt")).read_text()
    assert "parameter_groups" in trace
    (parent,) = [run for run in found if run.data.tags["medtransfer.phase"] == "study"]
    results = json.loads(
        Path(client.download_artifacts(parent.info.run_id, "report/results.json")).read_text()
    )
    assert [failure["reason"] for failure in results["failures"]] == [
        "RuntimeError: the coffee is cold"
    ]
    assert len(results["arms"]) == 3


def test_a_failed_single_trial_shows_its_traceback(cli, list_runs, broken, tiny):
    with pytest.raises(RuntimeError, match="the coffee is cold"):
        cli("train", *broken, *tiny, "strategy=broken", "strategy.head_lr=2")
    (run,) = list_runs()
    assert run.info.status == "FAILED"


@pytest.mark.parametrize(
    ("signum", "flags"),
    [(signal.SIGINT, ()), (signal.SIGTERM, ("-m", "seed=0,1"))],
    ids=["single", "sweep"],
)
def test_an_interrupted_run_is_killed_and_says_so(list_runs, tiny, signum, flags):
    command = [sys.executable, "-m", "medtransfer", "train", *flags, *tiny]
    with subprocess.Popen(
        [*command, "trainer.max_epochs=100000"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "epochs" in line:  # it says so once it has trained for a while
                process.send_signal(signum)
                break
        rest = process.stderr.read()
        code = process.wait(timeout=60)
    assert code == 128 + signum
    assert "Traceback" not in rest
    found = list_runs()
    assert {run.info.status for run in found} == {"KILLED"}
    assert len(found) == (2 if flags else 1)

"""A study, through the command line into a store."""

from __future__ import annotations

import pytest

FROZEN = "frozen, the network's own"
STUDY = """# @package _global_
defaults:
  - none@study
  - override /hydra/sweeper: study

study:
  arms:
    pixels: [backbone=pixels]
    "frozen, the network's own": [strategy=feature_extraction, weights=WEIGHTS]
  seeds: [3, 5]
"""


@pytest.fixture
def own(tmp_path):
    """Return a function that writes a study into a config folder of the user's."""

    def write(weights: str):
        folder = tmp_path / "conf"
        (folder / "study").mkdir(parents=True)
        (folder / "study" / "own.yaml").write_text(STUDY.replace("WEIGHTS", weights))
        return folder

    return write


def test_a_study_runs_its_arms_under_their_names(cli, list_runs, tiny, own):
    small = (*tiny, "trainer.max_epochs=1", "trainer.max_steps=2")
    done = cli("train", "-m", "--config-dir", own("random"), "study=own", *small)
    assert done.code == 0, done.err
    trials = [run for run in list_runs() if run.data.tags.get("medtransfer.phase") == "final"]
    told = {(r.data.tags["medtransfer.arm"], r.data.tags["medtransfer.seed"]) for r in trials}
    assert told == {("pixels", "3"), ("pixels", "5"), (FROZEN, "3"), (FROZEN, "5")}
    assert {r.data.tags["medtransfer.cell"] for r in trials} == {"pixels", FROZEN}
    assert "frozen" in done.out


def test_an_arm_that_cannot_be_composed_is_told_before_any_run_is_opened(cli, list_runs, tiny, own):
    done = cli("train", "-m", "--config-dir", own("nothing"), "study=own", *tiny)
    assert done.code == 2
    assert "weights 'nothing' is unknown" in done.err
    assert list_runs() == []


def test_steps_between_validations_are_counted_over_epochs(cli, list_runs, tiny):
    steps = ("trainer.max_epochs=100", "trainer.max_steps=7", "trainer.validate_every=3")
    done = cli("train", *tiny, *steps, "weights=random")
    assert done.code == 0, done.err
    (run,) = list_runs()
    assert run.data.metrics["cost/steps"] == 7

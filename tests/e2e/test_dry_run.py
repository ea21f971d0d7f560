"""A plan that is shown before it runs: trials, time and disk."""

from __future__ import annotations

import re

import pytest

UNITS = {"s": 1, "min": 60, "h": 3600}
STUDY = """# @package _global_
defaults:
  - none@study
  - override /hydra/sweeper: study

study:
  arms:
    FE: [strategy=feature_extraction]
    FT: [strategy=fine_tuning]
    LP: [strategy=linear_probe]
  axes:
    dataset.fraction: [0.5, 1.0]
  seeds: 2
  budget: {trials: 3, max_steps: 4}
"""


@pytest.fixture
def own(tmp_path):
    folder = tmp_path / "conf"
    (folder / "study").mkdir(parents=True)
    (folder / "study" / "own.yaml").write_text(STUDY)
    return folder


@pytest.fixture
def dry(cli, own, tiny):
    """Return a function that shows a plan."""

    def run(*overrides: str) -> str:
        given = ("--config-dir", own, "study=own", *tiny, "trainer.workers=0", *overrides)
        done = cli("train", "-m", *given, "study.dry_run=true")
        assert done.code == 0, done.err
        return done.out

    return run


def total(told: str) -> tuple[int, float]:
    """Return the number of trials of a plan, and their seconds."""
    (found,) = re.findall(r"^\s*together\s+(\d+)\s+([\d.]+) (s|min|h)\b", told, re.MULTILINE)
    return int(found[0]), float(found[1]) * UNITS[found[2]]


def test_a_plan_counts_trials_of_each_kind_and_writes_nothing(dry, list_runs, home):
    told = dry()
    rows = re.findall(r"(tuning|final)\s+(\S+) @.*?\s(\d+)\s+[\d.]+ s", told)
    assert sorted(rows) == sorted(
        [("tuning", arm, "3") for arm in ("FE", "FT")] * 2
        + [("final", arm, "2") for arm in ("FE", "FT", "LP")] * 2
    )
    assert total(told)[0] == 24
    assert "Nothing was run" in told
    assert "dataset.fraction" in told
    assert list_runs() == []
    assert not {"checkpoints", "spool", "reports"} & {path.name for path in home.iterdir()}
    assert not (home / "cache" / "features").exists()


def test_more_epochs_take_more_time(dry):
    short, long = dry("trainer.max_epochs=5"), dry("trainer.max_epochs=2000")
    assert total(long)[0] == total(short)[0]
    assert total(long)[1] > 10 * total(short)[1]


def test_an_adaptive_search_is_counted_whole(dry):
    told = dry("study.search.sampler=tpe", "study.budget.trials=7")
    assert total(told)[0] == 4 * 7 + 6 * 2


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_an_estimate_is_roughly_what_comes(cli, list_runs, tiny, strategy):
    given = (*tiny, f"strategy={strategy}", "trainer.max_epochs=40", "seed=1,2")
    done = cli("train", "-m", *given, "study.dry_run=true")
    assert done.code == 0, done.err
    trials, expected = total(done.out)
    assert cli("train", "-m", *given).code == 0
    runs = [run for run in list_runs() if run.data.tags.get("medtransfer.phase") == "final"]
    assert len(runs) == trials == 2
    taken = sum(run.info.end_time - run.info.start_time for run in runs) / 1000
    assert expected / 3 < taken < expected * 3

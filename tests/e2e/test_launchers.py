"""A study is the same whoever starts its trials."""

import pytest

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")

STUDY = """# @package _global_
defaults:
  - none@study
  - override /hydra/sweeper: study

study:
  arms:
    FE: [strategy=feature_extraction]
    FT: [strategy=fine_tuning]
  seeds: 2
  budget: {trials: 2}
"""


def test_two_processes_end_with_the_same_values_as_one(cli, tiny, list_runs, tmp_path):
    folder = tmp_path / "conf"
    (folder / "study").mkdir(parents=True)
    (folder / "study" / "own.yaml").write_text(STUDY)
    steps = ("trainer.max_epochs=100", "trainer.max_steps=3", "trainer.workers=0")
    found = {}
    for name, launcher in (
        ("one", ()),
        ("two", ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")),
    ):
        small = (*tiny, *steps, *launcher, f"study.name={name}")
        done = cli("train", "-m", "--config-dir", folder, "study=own", *small)
        assert done.code == 0, done.err
        found[name] = {}
    parents = {r.info.run_id: r.info.run_name for r in list_runs() if r.info.run_name in found}
    for run in list_runs():
        tags = run.data.tags
        name = parents.get(tags.get("mlflow.parentRunId"))
        if name and tags["medtransfer.phase"] != "summary":
            key = tuple(
                tags.get(f"medtransfer.{part}") for part in ("phase", "cell", "seed", "draw")
            )
            kept = {
                k: v for k, v in run.data.metrics.items() if not k.startswith(("cost/", "system/"))
            }
            found[name][key] = (tags["medtransfer.trial_id"], tags["medtransfer.settings"], kept)
    assert len(found["one"]) == 8
    assert found["one"] == found["two"]

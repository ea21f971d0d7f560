"""The program from Python: the same functions as the command line, with tables to go on with."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest
from PIL import Image as PILImage

import medtransfer
from medtransfer.errors import ConfigError, DataError, StoreError

SMALL = (
    *("backbone=timm", "backbone.name=test_resnet", "trainer=quick", "trainer.threads=1"),
    *("trainer.max_epochs=2", "dataset=phantom", "dataset.patients=36"),
    *("dataset.size=32", "dataset.image_size=32"),
)


def test_a_trial_is_what_the_command_line_would_have_run(home, cli, list_runs):
    config = medtransfer.compose(*SMALL, "strategy=fine_tuning")
    assert config.values.trainer.max_epochs == 2
    done = medtransfer.train(config)
    assert cli("train", *SMALL, "strategy=fine_tuning").code == 0
    runs = {run.info.run_id: run for run in list_runs()}
    (theirs,) = [run for run in runs.values() if run.info.run_id != done.run_id]
    mine = runs[done.run_id]
    assert mine.data.tags["medtransfer.trial_id"] == theirs.data.tags["medtransfer.trial_id"]
    assert done.metrics["test/auroc"] == theirs.data.metrics["test/auroc"]


def test_a_sweep_ends_in_tables(home):
    study = medtransfer.sweep(
        *SMALL, "strategy=feature_extraction,fine_tuning", "seed=0,1", "study.name=pilot"
    )
    arms = study.results()
    assert set(arms["arm"]) == {"feature_extraction/random", "fine_tuning/random"}
    assert (arms["lo"] <= arms["mean"]).all()
    assert (arms["n_seeds"] == 2).all()
    assert arms["cost/train_seconds"].notna().all()
    contrasts = study.contrasts()
    assert list(contrasts["verdict"].unique()) != []
    trials = study.trials()
    assert len(trials) == 4
    assert trials["test/auroc"].between(0, 1).all()
    again = medtransfer.Study.load("pilot")
    assert again.headline == study.headline
    pd.testing.assert_frame_equal(again.results(), arms)


def test_the_best_trial_of_a_study_judges_new_images(home, tmp_path):
    medtransfer.sweep(*SMALL, "strategy=feature_extraction,fine_tuning", "study.name=pilot")
    PILImage.effect_noise((40, 30), 60).save(tmp_path / "new.png")
    model = medtransfer.Model.load("pilot")
    (row,) = model.predict([tmp_path / "new.png"]).to_dict("records")
    assert row["sample_id"] == "new.png"
    scores = [value for name, value in row.items() if name.startswith("score_")]
    assert sum(scores) == pytest.approx(1, abs=1e-3)
    with pytest.raises(DataError):
        model.predict([tmp_path / "none.png"])


def test_mistakes_are_errors_of_the_family(home):
    with pytest.raises(ConfigError, match="strategy 'nonsense' is unknown"):
        medtransfer.compose("strategy=nonsense")
    with pytest.raises(ConfigError, match="batch_size"):
        medtransfer.compose("trainer.batch_size=none")
    with pytest.raises(StoreError, match="dry run"):
        medtransfer.sweep(*SMALL, "strategy=feature_extraction,fine_tuning", "study.dry_run=true")
    with pytest.raises(StoreError):
        medtransfer.Study.load("nothing")


def test_importing_the_package_loads_nothing():
    code = "import sys, medtransfer; print(sorted({'torch', 'pandas', 'hydra'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

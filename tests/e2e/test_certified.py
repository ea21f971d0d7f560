"""Features computed once, and the certificate, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medtransfer.backbones.timm import TimmBackbone
from medtransfer.backbones.weights import save

QUICK = ("trainer=quick", "trainer.max_epochs=3", "trainer.batch_size=6", "trainer.precision=fp32")

WRITER = """
from dataclasses import dataclass
import torch
from medtransfer.strategies.feature_extraction import FeatureExtraction

@dataclass(kw_only=True)
class Writer(FeatureExtraction):
    def before_step(self, model, optimizer):
        with torch.no_grad():
            model.backbone.model.conv1[0].weight[0, 0, 0, 0] += 1
"""


def artifact(run, name: str) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://")) / name


def certificate(run) -> dict:
    return json.loads(artifact(run, "certificate.json").read_text())


def predictions(run, split: str) -> pd.DataFrame:
    return pd.read_parquet(artifact(run, f"predictions/{split}.parquet"))


@pytest.fixture
def passes(monkeypatch):
    """Count the images that go through a network; what is black only takes its measure."""
    counted = []
    embed = TimmBackbone.embed

    def counting(self, images):
        if images.any():
            counted.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(TimmBackbone, "embed", counting)
    return counted


def test_cached_and_online_training_end_with_the_same_predictions(cli, tiny, list_runs):
    plain = (*tiny, *QUICK, "transform=none")
    for mode in ("cached", "online"):
        result = cli("train", *plain, f"features.mode={mode}")
        assert result.code == 0, result.err
    online, cached = list_runs()
    assert certificate(cached)["features"]["mode"] == "cached"
    assert certificate(online)["features"] == {"mode": "online", "why": "as configured"}
    for split in ("val", "test"):
        one, other = predictions(cached, split), predictions(online, split)
        assert list(one["sample_id"]) == list(other["sample_id"])
        scores = [name for name in one if name.startswith("score_")]
        np.testing.assert_allclose(one[scores], other[scores], atol=1e-5)


def test_a_sweep_runs_the_network_once_for_all_of_its_trials(cli, tiny, passes, tmp_path):
    path = tmp_path / "own.safetensors"
    known = {"source": "mine", "trained_on": "nothing", "licence": "none"}
    save(TimmBackbone("test_resnet", 3, 32), path, **known)
    sweep = (
        *(
            "train",
            "-m",
            *tiny,
            *QUICK,
            "weights=file",
            f"weights.path={path}",
            "seed=0,1",
            "dataset.fraction=0.5,1.0",
        ),
        *("strategy=feature_extraction,linear_probe", "transform=none"),
    )
    passes.clear()
    assert cli(*sweep).code == 0
    images = sum(passes)
    assert images == 36  # every image of the 36 patients, once
    assert cli(*sweep).code == 0
    assert sum(passes) == images


def test_views_are_fixed_and_as_many_as_configured(cli, tiny, passes, list_runs):
    result = cli("train", *tiny, *QUICK, "transform=light", "features.views=2", "test=false")
    assert result.code == 0, result.err
    (run,) = list_runs()
    told = certificate(run)["features"]
    assert told == {"mode": "cached", "dtype": "fp32", "views": 2}
    assert "2 views of each image" in result.err


def test_features_of_the_test_set_wait_until_it_is_opened(cli, tiny, home):
    count = lambda: len(list((home / "cache" / "features").glob("*/embedding.npy")))  # noqa: E731
    assert cli("train", *tiny, *QUICK, "test=false").code == 0
    assert count() == 2
    assert cli("train", *tiny, *QUICK).code == 0
    assert count() == 3


@pytest.mark.parametrize(
    ("strategy", "chosen"),
    [
        ("strategy=linear_probe", {"C"}),
        ("strategy=classic_head strategy.kind=knn", {"neighbours"}),
        ("strategy=classic_head strategy.kind=svm", {"C"}),
        ("strategy=classic_head strategy.trees=20", {"max_features", "trees"}),
    ],
)
def test_a_solved_head_is_trained_selected_and_tested(cli, tiny, list_runs, strategy, chosen):
    result = cli("train", *tiny, *QUICK, *strategy.split())
    assert result.code == 0, result.err
    (run,) = list_runs()
    assert run.data.metrics["cost/steps"] == 0
    assert 0 <= run.data.metrics["test/auroc"] <= 1
    assert set(certificate(run)["chosen"]) == chosen
    assert {name for name in run.data.params if name.startswith("chosen.")} == {
        f"chosen.{name}" for name in chosen
    }


def test_wise_ft_says_which_mixture_it_chose(cli, tiny, list_runs):
    result = cli("train", *tiny, *QUICK, "strategy=wise_ft")
    assert result.code == 0, result.err
    (run,) = list_runs()
    assert 0 <= certificate(run)["chosen"]["mixing"] <= 1


def test_every_trial_bears_a_certificate_and_the_screen_shows_it(cli, tiny, list_runs):
    result = cli("train", *tiny, *QUICK, "strategy=lp_ft")
    assert result.code == 0, result.err
    (run,) = list_runs()
    told = certificate(run)
    assert told["frozen"]["equal"] is True
    assert told["frozen"]["sha256_before"] == told["frozen"]["sha256_after"]
    assert [part["begin"] for part in told["parts"]] == [0.3] * 5 + [0.0]
    assert "LpFt: what learns" in result.err
    assert "30% of steps" in result.err
    learn = sum(part["learn"] for part in told["parts"])
    assert run.data.metrics["cost/trainable_parameters"] == learn


def test_a_trial_whose_frozen_part_changed_fails(cli, tiny, list_runs, tmp_path, monkeypatch):
    (tmp_path / "own" / "strategy").mkdir(parents=True)
    shipped = Path("conf/strategy/feature_extraction.yaml").read_text()
    own = shipped.replace(
        "medtransfer.strategies.feature_extraction.FeatureExtraction", "writer_strategy.Writer"
    )
    (tmp_path / "own" / "strategy" / "writer.yaml").write_text(own)
    (tmp_path / "writer_strategy.py").write_text(WRITER)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ("--config-dir", str(tmp_path / "own"), "trusted_modules=[writer_strategy]")

    result = cli("train", *given, *tiny, *QUICK, "strategy=writer", "features.mode=online")

    assert result.code == 1
    assert "1 of 92 frozen tensors changed" in result.err
    assert "backbone.model.conv1.0.weight" in result.err
    (run,) = list_runs()
    assert run.info.status == "FAILED"
    assert "test/auroc" not in run.data.metrics


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        (("features.mode=cached", "strategy=fine_tuning"), "changes the backbone"),
        (("features.views=0",), "features.views"),
        (("features.dtype=fp8",), "features.dtype"),
    ],
)
def test_what_cannot_be_cached_is_refused_before_any_run(cli, tiny, list_runs, choices, told):
    result = cli("train", *tiny, *QUICK, *choices)
    assert result.code == 2
    assert told in result.err
    assert not list_runs()


def test_features_that_would_take_too_much_room_are_computed_online(cli, tiny, list_runs):
    result = cli("train", *tiny, *QUICK, "features.max_gb=1e-6")
    assert result.code == 0, result.err
    (run,) = list_runs()
    told = certificate(run)["features"]
    assert told["mode"] == "online"
    assert "features.max_gb=1e-06" in told["why"]
    assert "features online (features would take 0.0 GB" in " ".join(result.err.split())
    refused = cli("train", *tiny, *QUICK, "features.max_gb=1e-6", "features.mode=cached")
    assert refused.code == 2

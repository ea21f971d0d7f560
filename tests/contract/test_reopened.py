"""What stays of a trial on disk is its model again, whatever its strategy, without its data."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lives import live
from medtransfer.app import config_dir
from medtransfer.deploy.trained import rebuild
from medtransfer.errors import WeightsError

STRATEGIES = sorted(path.stem for path in (config_dir() / "strategy").glob("*.yaml"))
KINDS = ("knn", "svm", "random_forest")


def reopened(prepared, tmp_path, *overrides):
    """Return a trial's model as it was tested, and what is made of its checkpoint."""
    lived = live(prepared, *overrides, "trainer.max_epochs=2")
    content = torch.load(tmp_path / "checkpoints" / "run" / "best.ckpt", weights_only=True)
    trial = prepared(*overrides, "trainer.max_epochs=2")
    again, _ = rebuild(trial.config, content, trial.provenance.sha256)
    return lived.model.eval(), again.eval(), content, trial


@pytest.mark.parametrize(
    "overrides",
    [
        *((f"strategy={name}",) for name in STRATEGIES),
        *(("strategy=classic_head", f"strategy.kind={kind}") for kind in KINDS),
        (
            *("strategy=linear_probe", "task=exam_classification", "dataset.images=2"),
            "head.pooling=mean",
        ),
        ("strategy=feature_extraction", "backbone.name=test_vit"),
    ],
    ids=" ".join,
)
def test_it_says_the_same(overrides, prepared, tmp_path):
    before, again, _, _ = reopened(prepared, tmp_path, *overrides)
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for expected, found in zip(
            before.outputs(images).values(), again.outputs(images).values(), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert dataclasses.asdict(again.spec) == dataclasses.asdict(before.spec)


def test_other_weights_than_it_started_from_are_refused(prepared, tmp_path):
    _, _, content, trial = reopened(prepared, tmp_path, "strategy=feature_extraction")
    with pytest.raises(WeightsError, match="not what the trial has started from"):
        rebuild(trial.config, content, "0" * 64)


def test_a_checkpoint_of_another_configuration_is_refused(prepared, tmp_path):
    _, _, content, _ = reopened(prepared, tmp_path, "strategy=fine_tuning")
    other = prepared("strategy=fine_tuning", "head.norm=none", "trainer.max_epochs=2")
    with pytest.raises(WeightsError, match="does not fit"):
        rebuild(other.config, content, other.provenance.sha256)

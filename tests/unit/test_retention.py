"""What stays on disk of a trial that is done, and what can be made of it."""

from __future__ import annotations

import pytest
import torch

from lives import Notebook, before_batch, live
from medtransfer import machine
from medtransfer.certificate import Certificate
from medtransfer.errors import StoreError
from medtransfer.execution import execute
from medtransfer.training import trainer_of

FROZEN, TUNED = "strategy=feature_extraction", "strategy=fine_tuning"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints" / "run"


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("strategy", [FROZEN, TUNED, "strategy=linear_probe"])
@pytest.mark.parametrize("kept", ["best", "last", "none"])
def test_one_file_stays_or_none(strategy, kept, prepared, folder):
    live(prepared, strategy, f"trainer.checkpoint={kept}", "trainer.save_every=0", first=3)
    assert names(folder) == ([] if kept == "none" else [f"{kept}.ckpt"])


@pytest.mark.parametrize(
    "overrides",
    [
        (FROZEN, "features.mode=online"),
        (FROZEN, "features.mode=online", "strategy.batchnorm=reestimate"),
        ("strategy=partial_fine_tuning",),
        ("strategy=lora",),
        ("strategy=linear_probe", "features.mode=online"),
    ],
    ids=" ".join,
)
def test_with_it_and_its_weights_the_model_is_what_it_was(overrides, prepared, folder):
    lived = live(prepared, *overrides)
    content = torch.load(folder / "best.ckpt", weights_only=True)
    assert set(content) == {"state_dict", "epoch", "frozen_sha256", "spec", "head", "near"}
    assert content["epoch"] == lived.final["best/epoch"]

    fresh = prepared(*overrides)
    _, unexpected = fresh.model.load_state_dict(content["state_dict"], strict=False)
    assert not unexpected
    settings = machine.resolve(fresh.config.trainer)
    images = fresh.data.loader("val", batch_size=5)
    fresh.model.to(memory_format=torch.channels_last)
    trainer_of(settings).validate(fresh.model, images, verbose=False)
    expected = lived.model.kept["val"]
    for name, value in fresh.model.kept["val"].items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


def test_of_an_untouched_backbone_nothing_stays(prepared, folder):
    trial = prepared(FROZEN, "strategy.batchnorm=frozen")
    execute(trial, Notebook())
    content = torch.load(folder / "best.ckpt", weights_only=True)
    assert not any(name.startswith("backbone.") for name in content["state_dict"])
    assert content["frozen_sha256"] == Certificate.of(trial.model, trial.model.strategy_).before


def test_the_last_is_what_training_ended_with(prepared, folder):
    best = live(prepared, TUNED, "optimizer.lr=0.05").final["best/epoch"]
    live(prepared, TUNED, "optimizer.lr=0.05", "trainer.checkpoint=last")
    kept = {path.stem: torch.load(path, weights_only=True) for path in folder.iterdir()}
    assert [kept["best"]["epoch"], kept["last"]["epoch"]] == [best, 3]
    states = (kept["best"]["state_dict"], kept["last"]["state_dict"])
    same = all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert same == (best == 3)


def test_the_last_stays_where_an_earlier_epoch_was_as_good(prepared, folder):
    still = (TUNED, "strategy.batchnorm=frozen", "optimizer.lr=0")
    lived = live(prepared, *still, "trainer.checkpoint=last")
    assert lived.final["best/epoch"] == 0
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] == 3


def test_what_shall_stay_and_cannot_fails_the_trial(prepared, folder):
    (folder / "partial-best.ckpt").parent.mkdir(parents=True)
    (folder / "partial-best.ckpt").symlink_to("/dev/full")
    with pytest.raises(StoreError, match="No space left on device") as error:
        execute(prepared(FROZEN), Notebook())
    assert "trainer.checkpoint=none" in error.value.remedy
    assert names(folder) == []


def test_a_trial_that_fails_leaves_no_state(prepared, folder):
    def fail(_):
        raise ValueError

    with before_batch(5, fail), pytest.raises(ValueError):  # noqa: PT011
        execute(prepared(TUNED, "trainer.save_every=0"), Notebook())
    assert names(folder) == []

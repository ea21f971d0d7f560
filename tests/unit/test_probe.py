"""What a few batches tell of a trial, and what that makes of a plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lives import SMALL, Notebook
from medtransfer.commands.plan import about, seconds_of, shared_by
from medtransfer.config import TrainConfig
from medtransfer.execution import execute
from medtransfer.probe import Probe, probe
from medtransfer.run import prepare

FOUND = Probe(
    setup=0.0,
    step=0.25,
    steps=10,
    passes={"val": 1.0, "test": 2.0},
    features={},
    kept=False,
    adapted=False,
    drawn=False,
    checkpoint=0,
    decoded={},
)
FEATURES = {"train": (8.0, 800), "val": (1.0, 100), "test": (2.0, 200)}
UNITS = {"s": 1, "min": 60, "h": 3600}


@pytest.fixture
def configured(compose, tmp_path):
    """Return a function that composes small trials of one home."""

    def make(*overrides: str) -> TrainConfig:
        return compose(*SMALL, f"paths.output={tmp_path}", *overrides).typed(TrainConfig)

    return make


def test_a_trial_takes_as_long_as_its_steps_and_passes(configured):
    config = configured("trainer.max_epochs=4")
    more = seconds_of(configured("trainer.max_epochs=8"), FOUND) - seconds_of(config, FOUND)
    assert more == pytest.approx(4 * (10 * 0.25 + 1.0), rel=0.1)


def test_steps_and_seconds_limit_what_epochs_allow(configured):
    long = configured("trainer.max_epochs=1000")
    few = configured("trainer.max_epochs=1000", "trainer.max_steps=20")
    short = configured("trainer.max_epochs=1000", "trainer.max_seconds=3")
    assert seconds_of(few, FOUND) == seconds_of(configured("trainer.max_epochs=2"), FOUND)
    assert 3 < seconds_of(short, FOUND) < 3 + 3 + 1 < seconds_of(long, FOUND)


def test_validating_less_often_takes_less(configured):
    usual = configured("trainer.max_epochs=10", "trainer.max_steps=100")
    rarely = configured(
        "trainer.max_epochs=10", "trainer.max_steps=100", "trainer.validate_every=50"
    )
    saved = seconds_of(usual, FOUND) - seconds_of(rarely, FOUND)
    assert saved == pytest.approx(8 * 1.0, rel=0.1)  # two passes for ten


def test_a_trial_that_may_not_be_tested_has_no_test_pass(configured):
    tested, untested = (seconds_of(configured(f"test={t}"), FOUND) for t in ("true", "false"))
    assert tested - untested == pytest.approx(2.0)


def test_features_that_nobody_shares_are_computed_in_each_trial(configured):
    alone = replace(FOUND, features=FEATURES)
    config = configured()
    assert seconds_of(config, alone) - seconds_of(config, FOUND) == pytest.approx(11.0)
    assert shared_by(config, alone, ["seed=0"]) == {}


def test_features_are_shared_as_far_as_they_are_the_same(configured):
    kept = replace(FOUND, features=FEATURES, kept=True)
    config, tenth = configured(), configured("dataset.fraction=0.1")
    both = ["seed=0", "seed=1"]
    one = shared_by(config, kept, both)
    assert sorted(one.values()) == sorted(FEATURES.values())
    assert shared_by(tenth, kept, both) == one
    assert shared_by(configured("strategy=linear_probe"), kept, both) == one
    assert len(shared_by(configured("test=false"), kept, both)) == 2
    other = shared_by(configured("backbone.name=test_vit"), kept, both)
    assert not other.keys() & one.keys()
    assert len(shared_by(config, replace(kept, drawn=True), both)) == 6
    adapted = replace(kept, adapted=True)
    assert not shared_by(tenth, adapted, both).keys() & shared_by(config, adapted, both).keys()


@given(st.floats(0.1, 1e7))
def test_a_time_is_told_in_one_unit_to_a_tenth(seconds):
    value, unit = about(seconds).split()
    assert float(value) * UNITS[unit] == pytest.approx(seconds, rel=0.06, abs=0.05)
    assert float(value) < 100 or unit == "h"


def test_times_are_short():
    told = [about(seconds) for seconds in (0.64, 12.3, 185.0, 8640.0, 360_000.0)]
    assert told == ["0.6 s", "12 s", "3.1 min", "2.4 h", "100 h"]


def test_a_network_that_learns_is_timed_on_images(configured):
    found = probe(configured("strategy=fine_tuning"))
    assert found.steps == 2  # 12 patients train, in batches of 5, the last of which is left out
    assert found.step > 0
    assert found.passes["val"] > 0
    assert found.features == {}


def test_parts_of_a_batch_are_one_step(configured):
    found = probe(configured("strategy=fine_tuning", "trainer.accumulate=2"))
    assert found.steps == 2
    assert found.step > 0


@pytest.mark.parametrize("strategy", ["feature_extraction", "linear_probe"])
def test_features_take_the_room_that_is_announced(configured, tmp_path, strategy):
    config = configured(f"strategy={strategy}", "features.views=3")
    found = probe(config)
    trial = prepare(config)
    assert found.kept
    values = trial.model.backbone.embedding_size * 4
    sizes = {split: size for split, (_, size) in found.features.items()}
    assert sizes["train"] == 3 * values * len(trial.data.division.train)
    assert not (tmp_path / "cache" / "features").exists()
    execute(trial, Notebook())
    held = sum(f.stat().st_size for f in (tmp_path / "cache" / "features").rglob("*.npy"))
    assert held == pytest.approx(sum(sizes.values()), abs=3 * 128)  # a header in each file


def test_a_head_that_is_solved_takes_no_steps(configured):
    found = probe(configured("strategy=linear_probe"))
    assert (found.step, found.steps, set(found.passes.values())) == (0, 0, {0.0})
    assert found.features["train"][0] > 0


def test_features_follow_the_seed_where_weights_or_statistics_do(configured, tmp_path):
    drawn = probe(configured("strategy=feature_extraction", "weights=random"))
    assert drawn.drawn
    from medtransfer.backbones.weights import save

    path = tmp_path / "w.safetensors"
    save(prepare(configured()).model.backbone, path, source="a test")
    kept = ("strategy=feature_extraction", "weights=file", f"weights.path={path}")
    assert not probe(configured(*kept)).drawn
    estimated = probe(configured(*kept, "strategy.batchnorm=reestimate"))
    assert (estimated.adapted, estimated.drawn) == (True, False)
    some = probe(configured(*kept, "strategy.batchnorm=reestimate", "dataset.fraction=0.5"))
    assert some.drawn


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning", "lora"])
def test_what_stays_of_a_trial_is_as_large_as_announced(configured, tmp_path, strategy):
    config = configured(f"strategy={strategy}", "trainer.max_epochs=1")
    found = probe(config)
    execute(prepare(config), Notebook())
    (path,) = (tmp_path / "checkpoints").rglob("best.ckpt")
    kept = torch.load(path, weights_only=True)["state_dict"]
    size = sum(value.nbytes for value in kept.values())
    assert found.checkpoint == pytest.approx(size, rel=0.01)


def test_a_probe_leaves_nothing_but_decoded_images(configured, tmp_path):
    threads = torch.get_num_threads()
    found = probe(configured("strategy=fine_tuning"))
    assert torch.get_num_threads() == threads
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"decoded"}
    (size,) = found.decoded.values()
    (images,) = (tmp_path / "cache").rglob("images.npy")
    assert images.stat().st_size == pytest.approx(size, abs=128)


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=lp_ft",),
        ("strategy=gradual_unfreezing",),
        ("strategy=l2_sp",),
        ("task=segmentation", "strategy=feature_extraction"),
        ("task=detection", "strategy=fine_tuning"),
        ("task=exam_classification", "dataset.images=2", "strategy=feature_extraction"),
    ],
    ids=" ".join,
)
def test_every_kind_of_trial_can_be_probed(configured, overrides):
    found = probe(configured(*overrides))
    assert found.step > 0
    assert found.passes["test"] > 0

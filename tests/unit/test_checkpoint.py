"""An interrupted training that goes on ends as if nothing had happened."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lives import Notebook, kill, live, require_same
from medtransfer.callbacks import Median
from medtransfer.checkpoint import Shelf
from medtransfer.errors import Note
from medtransfer.execution import execute

TUNED = "strategy=fine_tuning"
LONG = "trainer.max_epochs=100"
TRAININGS = {
    "features that were computed before": ("strategy=feature_extraction",),
    "all layers": (TUNED,),
    "layers that wake one by one": ("strategy=gradual_unfreezing",),
    "two phases": ("strategy=lp_ft",),
    "the start of the second phase": ("strategy=wise_ft",),
    "a pull to the start": ("strategy=l2_sp",),
    "dropout": ("strategy=lora", "strategy.dropout=0.5"),
    "rates that change within a step": ("strategy=auto_rgn",),
    "momentum": (TUNED, "optimizer=sgd"),
    "early stopping": (TUNED, "trainer.early_stopping.patience=2", LONG),
    "an end in mid-epoch": (TUNED, "trainer.max_steps=11", LONG),
    "validation in mid-epoch": ("strategy=lp_ft", "trainer.validate_every=3"),
    "both": (TUNED, "trainer.validate_every=3", "trainer.max_steps=13", LONG),
    "epochs without validation": (
        *(TUNED, "dataset.fraction=0.2", "trainer.validate_every=5"),
        "trainer.max_epochs=12",
    ),
    "parts of batches": (TUNED, "trainer.accumulate=2", "trainer.validate_every=3"),
    "exams": (TUNED, "task=exam_classification", "dataset.images=2"),
    "segmentation": (TUNED, "task=segmentation", "head.widths=[16,16,8,8,8]"),
    "boxes drawn at random": (
        *(TUNED, "task=detection", "head=faster_rcnn", "head.levels.width=32"),
        "trainer.max_epochs=3",
    ),
}


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "checkpoints" / "run", "one")


@pytest.mark.parametrize("overrides", TRAININGS.values(), ids=TRAININGS)
def test_interrupted_again_and_again_a_training_ends_where_it_would_have(overrides, prepared):
    alone = live(prepared, *overrides)
    again = live(prepared, *overrides, first=1)
    assert again.parts > 2
    require_same(again, alone)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_killed_it_goes_on_from_what_was_written(first, prepared):
    alone = live(prepared, TUNED)
    killed = live(prepared, TUNED, "trainer.save_every=0", first=first, death=kill)
    assert killed.parts == 6 - first  # parts that end within the first epoch begin anew
    require_same(killed, alone)


@pytest.mark.parametrize(("every", "written"), [("0", 4), ("3600", 0), ("null", 0)])
def test_states_are_written_as_often_as_wished(every, written, prepared, monkeypatch):
    usual, count = Shelf.write, []
    monkeypatch.setattr(Shelf, "write", lambda self: (count.append(1), usual(self)))
    live(prepared, TUNED, f"trainer.save_every={every}")
    assert len(count) == written


def test_of_a_frozen_backbone_nothing_is_kept(interrupted):
    state = interrupted("strategy=feature_extraction").read()
    best = state["callbacks"]["Best"]["state"]
    names = {*state["state_dict"], *best}
    assert any(name.startswith("head.") for name in names)
    assert not any(name.startswith("backbone.") for name in names)


def test_nothing_is_kept_where_none_is_wanted(interrupted):
    assert not interrupted(TUNED, "trainer.save_every=null").folder.exists()


def test_what_was_spent_before_an_interruption_counts(interrupted, prepared):
    shelf = interrupted(TUNED)
    shelf.latest = shelf.read()
    shelf.latest["seconds"] = {"train": 1000.0, "features": 2000.0}
    shelf.write()
    costs = execute(prepared(TUNED), Notebook())
    assert 1000 < costs["cost/train_seconds"] < 1100
    assert 2000 <= costs["cost/feature_seconds"] < 2100


def test_the_clock_of_a_training_is_stopped_with_it(interrupted, prepared):
    bounded = (TUNED, "trainer.max_seconds=1000", LONG)
    shelf = interrupted(*bounded)
    shelf.latest = shelf.read()
    shelf.latest["callbacks"]["Timer"]["time_elapsed"]["train"] = 999.999
    shelf.write()
    assert execute(prepared(*bounded), Notebook())["cost/steps"] == 5


def test_states_without_a_mistake_are_read_back(interrupted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert interrupted(TUNED).read()["should_stop"] is False


DAMAGE = {
    "torn": lambda content: content[: len(content) // 2],
    "empty": lambda _: b"",
    "a bit": lambda content: bytes([*content[:9000], content[9000] ^ 1, *content[9001:]]),
    "a pickle": lambda _: pickle.dumps({"version": "1"}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_told_and_training_starts_over(damage, interrupted, prepared):
    shelf = interrupted(TUNED)
    shelf.path.write_bytes(damage(shelf.path.read_bytes()))
    with pytest.warns(Note, match=r"resume.ckpt' is damaged; training starts over"):
        assert shelf.read() is None
    with pytest.warns(Note, match="is damaged"):
        final = execute(prepared(TUNED), Notebook())
    assert final["cost/validations"] == 5  # not 3 and 5


def test_code_in_a_state_is_not_executed(shelf, tmp_path):
    class Bad:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    shelf.folder.mkdir(parents=True)
    torch.save({"version": Bad(), "trial_id": "one"}, shelf.path)
    with pytest.warns(Note, match="is damaged"):
        assert shelf.read() is None
    assert not (tmp_path / "executed").exists()


def test_a_state_of_something_else_is_told_and_training_starts_over(interrupted, prepared):
    shelf = interrupted(TUNED)
    state = shelf.read()
    with pytest.warns(Note, match="is of another trial or version"):
        assert Shelf(shelf.folder, "another").read() is None
    shelf.latest = state | {"frozen_sha256": "another"}
    shelf.write()
    with pytest.warns(Note, match="is of another network"):
        assert execute(prepared(TUNED), Notebook())["cost/validations"] == 5


def test_a_full_disk_is_told_once_and_stops_nothing(shelf):
    shelf.folder.mkdir(parents=True)
    scratch = shelf.folder / "partial-resume.ckpt"
    shelf.latest = {"values": torch.zeros(9)}
    scratch.symlink_to("/dev/full")
    with pytest.warns(Note, match="No space left on device"):
        shelf.write()
    scratch.symlink_to("/dev/full")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shelf.write()
    shelf.write()  # somebody made room
    assert shelf.read()["values"].equal(torch.zeros(9))
    assert [path.name for path in shelf.folder.iterdir()] == ["resume.ckpt"]


def test_a_pruner_goes_on_where_it_was():
    others = [[0.5, 0.6, 0.7]] * 3
    first, second = (Median("val/auroc", "max", others) for _ in range(2))
    trainer = SimpleNamespace(callback_metrics={"val/auroc": 0.2}, should_stop=False)
    first.on_validation_end(trainer)  # which is spared
    second.load_state_dict(first.state_dict())
    assert not second.pruned
    second.on_validation_end(trainer)
    assert second.pruned
    third = Median("val/auroc", "max", others)
    third.load_state_dict(second.state_dict())
    assert third.pruned

"""The checks for choices of one's own find what is not kept."""

# ruff: noqa: ARG002  methods have the arguments of what they override
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medtransfer.data.phantom import Phantom
from medtransfer.errors import ConfigError
from medtransfer.strategies.base import names_under
from medtransfer.strategies.fine_tuning import FineTuning
from medtransfer.testing import check_dataset, check_strategy, check_study

RATES = "batchnorm: auto\nbackbone_lr: 1.0\nhead_lr: 1.0\n"


@dataclass(kw_only=True)
class Sound(FineTuning):
    """Keeps everything."""


@dataclass(kw_only=True)
class Undeclared(FineTuning):
    """Moves a parameter that it does not declare."""

    def learning(self, model):
        return names_under(model, "backbone")[4:]

    def before_step(self, model, optimizer):
        with torch.no_grad():
            next(model.backbone.parameters()).add_(1)


@dataclass(kw_only=True)
class Ungrouped(FineTuning):
    """Gives the optimizer less than it declares."""

    def parameter_groups(self, model, optimizer):
        groups = super().parameter_groups(model, optimizer)
        groups[0] = {**groups[0], "params": groups[0]["params"][1:]}
        return groups


@dataclass(kw_only=True)
class Headless(FineTuning):
    """Lets the new head rest."""

    def trainable(self, model):
        return set(self.learning(model))


@dataclass(kw_only=True)
class Restless(FineTuning):
    """Wakes what is frozen."""

    def learning(self, model):
        return names_under(model, "backbone")[-2:]

    def on_step_start(self, model, progress):
        super().on_step_start(model, progress)
        model.backbone.train()


@dataclass(kw_only=True)
class Forgetful(FineTuning):
    """Counts its steps, and keeps no count over an interruption."""

    def begin(self, model):
        self.steps = 0

    def before_step(self, model, optimizer):
        self.steps += 1
        for group in optimizer.param_groups:
            group["lr"] /= self.steps


@dataclass(kw_only=True)
class Spoiling(FineTuning):
    """Ends with another network than it has trained."""

    def finish(self, model, score):
        with torch.no_grad():
            next(model.backbone.parameters()).mul_(2)
        return {}


@pytest.fixture
def own(tmp_path):
    """Return a function that writes a choice of a class in this file; it returns its folder."""

    def write(group: str, cls: type, text: str) -> Path:
        folder = tmp_path / "conf" / group
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text(f"{text}_target_: test_checks.{cls.__name__}\n")
        return tmp_path / "conf"

    return write


def keep(own, cls, space: str = "{}") -> None:
    folder = own("strategy", cls, f"{RATES}search_space: {space}\n")
    check_strategy("mine", config_dir=folder, trusted=("test_checks",), networks=("test_resnet",))


def test_a_sound_strategy_passes(own):
    keep(own, Sound)


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Undeclared, "parameters that changed are those that learn: 1 too many"),
        (Ungrouped, "parameters that changed are those that learn: 1 lacking"),
        (Headless, "the head is new and has to learn"),
        (Restless, "modules in train mode at step 0"),
        (Forgetful, "resumed after epoch 0, tensors end as they would have"),
        (Spoiling, "finish.. leaves the outputs as they are"),
    ],
)
def test_a_strategy_that_does_not_keep_its_word_is_found(own, cls, said):
    with pytest.raises(AssertionError, match=said):
        keep(own, cls)


def test_a_search_space_of_keys_that_there_are_not_is_found(own):
    with pytest.raises(AssertionError, match=r"'optimizer\.rate', and there is no such key"):
        keep(own, Sound, "{optimizer.rate: {low: 0.1, high: 1.0}}")


def test_a_module_that_is_not_trusted_is_refused(own):
    folder = own("strategy", Sound, f"{RATES}search_space: {{}}\n")
    with pytest.raises(ConfigError, match="outside of the modules that may be run"):
        check_strategy("mine", config_dir=folder)


@dataclass(frozen=True, kw_only=True)
class Plain(Phantom):
    """Keeps everything."""


@dataclass(frozen=True, kw_only=True)
class Repeating(Phantom):
    """Has a sample twice."""

    def records(self):
        names, records = super().records()
        return names, [*records, records[0]]


@dataclass(frozen=True, kw_only=True)
class Shuffled(Phantom):
    """Lists its samples in another order each time."""

    def records(self):
        names, records = super().records()
        return names, [records[i] for i in np.random.default_rng().permutation(len(records))]


@dataclass(frozen=True, kw_only=True)
class Noisy(Phantom):
    """Reads other pixels each time."""

    def read(self, record):
        return np.random.default_rng().integers(0, 256, (32, 32), dtype=np.uint8)


@dataclass(frozen=True, kw_only=True)
class Halves(Phantom):
    """Reads numbers that are no pixels."""

    def read(self, record):
        return super().read(record) / 255


@dataclass(frozen=True, kw_only=True)
class Shifted(Phantom):
    """Marks in masks of another size."""

    def mask(self, record):
        return super().mask(record)[1:]


@dataclass(frozen=True, kw_only=True)
class Leaking(Phantom):
    """Has one exam of two patients."""

    def records(self):
        names, records = super().records()
        return names, [replace(record, exam_id=f"exam{i // 2}") for i, record in enumerate(records)]


def hold(own, cls) -> None:
    folder = own("dataset", cls, "defaults: [phantom]\npatients: 24\nsize: 32\nimage_size: 32\n")
    check_dataset("mine", config_dir=folder, trusted=("test_checks",))


def test_a_sound_dataset_passes(own):
    hold(own, Plain)


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (Repeating, "two samples have the id"),
        (Shuffled, "in another order"),
        (Noisy, "changes when read again"),
        (Halves, "is float64"),
        (Shifted, r"is \(31, 32\), and its image \(32, 32\)"),
        (Leaking, "is of two patients"),
    ],
)
def test_a_dataset_that_does_not_keep_its_word_is_found(own, cls, said):
    with pytest.raises(AssertionError, match=said):
        hold(own, cls)


STUDY = """\
# @package _global_
defaults:
  - none@study
{defaults}
study:
  name: mine
  arms: {arms}
  axes: {{dataset.fraction: [0.5, 1.0]}}
  seeds: 2
  primary: {primary}
"""
SWEEPER = "  - override /hydra/sweeper: study\n"
ARMS = "{a: [strategy=feature_extraction], b: [strategy=fine_tuning]}"


@pytest.fixture
def study(tmp_path):
    """Return a function that checks a study."""

    def run(defaults: str = SWEEPER, arms: str = ARMS, primary: str = "null"):
        (tmp_path / "study").mkdir()
        text = STUDY.format(defaults=defaults, arms=arms, primary=primary)
        (tmp_path / "study" / "mine.yaml").write_text(text)
        return check_study("mine", config_dir=tmp_path)

    return run


def test_a_sound_study_is_planned(study):
    plan = study(primary="{a: a, b: b, at: {dataset.fraction: 1.0}}")
    assert len(plan.jobs) == plan.trials == 2 * 2 * 2


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"defaults": ""}, "hydra/sweeper=basic"),
        ({"arms": "{a: [strategy=fine_tuning]}"}, "has 1 arms"),
        ({"arms": ARMS.replace("feature_extraction", "fine_tuning")}, "are the same"),
        ({"primary": "{a: a, b: b, at: {dataset.fraction: 0.7}}"}, r"the axis has 0\.5, 1\.0"),
    ],
)
def test_a_study_that_compares_nothing_is_found(study, told, said):
    with pytest.raises(AssertionError, match=said):
        study(**told)


def test_an_arm_that_could_not_start_is_refused(study):
    with pytest.raises(ConfigError, match="strategy 'fine_tunning' is unknown"):
        study(arms=ARMS.replace("fine_tuning", "fine_tunning"))

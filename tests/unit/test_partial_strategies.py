"""Strategies that let a part of the backbone learn, or each part at its own rate."""

from __future__ import annotations

import pytest
from torch import nn

from medtransfer.errors import ConfigError
from medtransfer.strategies.bitfit import BitFit
from medtransfer.strategies.layerwise_decay import LayerwiseDecay
from medtransfer.strategies.norm_tuning import NormTuning
from medtransfer.strategies.partial_fine_tuning import PartialFineTuning
from medtransfer.strategies.surgical import Surgical

BASE = {"batchnorm": "auto", "search_space": {}, "backbone_lr": 2.0, "head_lr": 3.0}
HEAD = {"head.weight", "head.bias"}


class Net(nn.Module):
    """Three groups: a convolution and its norm, a linear layer, a linear layer without bias."""

    def __init__(self, groups=None):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.mid = nn.Linear(4, 4)
        self.last = nn.Linear(4, 4, bias=False)
        own = ("stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias")
        self.groups = [own, ("mid.weight", "mid.bias"), ("last.weight",)]
        if groups is not None:
            self.groups = groups

    def layer_groups(self):
        return self.groups


def model(backbone=None) -> nn.Module:
    made = nn.Module()
    made.backbone = backbone or Net()
    made.head = nn.Linear(4, 2)
    return made


def names(*groups):
    return {f"backbone.{name}" for k in groups for name in Net().groups[k]}


@pytest.mark.parametrize(("k", "groups"), [(1, (2,)), (2, (1, 2)), (3, (0, 1, 2))])
def test_the_last_groups_learn(k, groups):
    assert PartialFineTuning(groups=k, **BASE).trainable(model()) == names(*groups) | HEAD


@pytest.mark.parametrize(("given", "groups"), [((0,), (0,)), ((-1,), (2,)), ((1, -3, 1), (0, 1))])
def test_chosen_groups_learn_each_once(given, groups):
    strategy = Surgical(groups=given, **BASE)
    assert strategy.trainable(model()) == names(*groups) | HEAD
    learning = strategy.learning(model())
    assert len(learning) == len(set(learning))


@pytest.mark.parametrize(
    "strategy", [PartialFineTuning(groups=4, **BASE), Surgical(groups=(0, 3), **BASE)]
)
def test_more_groups_than_there_are_is_a_mistake_that_tells_how_many_there_are(strategy):
    with pytest.raises(ConfigError, match=r"strategy\.groups.*\b3\b"):
        strategy.trainable(model())


@pytest.mark.parametrize(
    "strategy",
    [
        PartialFineTuning(groups=1, **BASE),
        Surgical(groups=(0,), **BASE),
        NormTuning(**BASE),
        BitFit(**BASE),
    ],
)
def test_a_backbone_without_parameters_has_nothing_to_tune(strategy):
    empty = nn.Identity()
    empty.layer_groups = tuple
    with pytest.raises(ConfigError):
        strategy.trainable(model(empty))


def test_rates_fall_from_the_head_to_the_stem():
    groups = LayerwiseDecay(decay=0.5, **BASE).parameter_groups(model(), {"lr": 0.1})
    assert [g["lr"] for g in groups] == pytest.approx([0.05, 0.1, 0.2, 0.3])
    assert [len(g["params"]) for g in groups] == [4, 2, 1, 2]


def test_a_decay_of_one_is_fine_tuning():
    groups = LayerwiseDecay(decay=1.0, **BASE).parameter_groups(model(), {"lr": 0.1})
    assert {g["lr"] for g in groups[:-1]} == {0.2}


def test_norms_alone_learn():
    found = NormTuning(**BASE).trainable(model())
    assert found == {"backbone.stem.1.weight", "backbone.stem.1.bias"} | HEAD


def test_biases_alone_learn():
    found = BitFit(**BASE).trainable(model())
    assert found == {f"backbone.{n}.bias" for n in ("stem.0", "stem.1", "mid")} | HEAD


def test_a_network_without_norms_or_biases_is_told_so_before_any_run(cli, list_runs, tiny):
    for strategy in ("norm_tuning", "bitfit"):
        done = cli("train", "backbone=pixels", f"strategy={strategy}", *tiny[3:])
        assert done.code == 2
        assert f"strategy={strategy} has nothing to tune" in done.err
    many = cli("train", "-m", "strategy=partial_fine_tuning", "strategy.groups=1,99", *tiny)
    assert many.code == 2
    assert "strategy.groups=99" in many.err
    assert list_runs() == []

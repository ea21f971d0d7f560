"""From `conf/optimizer` to an optimizer whose groups keep their proportions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from medtransfer.errors import ConfigError
from medtransfer.tasks.optimizing import optimizer_factory, scheduled
from medtransfer.tasks.schedulers import Cosine

FOLDER = Path(__file__).parents[2] / "conf" / "optimizer"
CHOICES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
every_choice = pytest.mark.parametrize("choice", CHOICES)


def read(choice: str, **changed):
    return {**OmegaConf.to_container(OmegaConf.load(FOLDER / f"{choice}.yaml")), **changed}


@pytest.fixture
def groups():
    """Return two groups, as a strategy would declare them."""
    slow, fast = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    return [{"params": [slow], "lr": 0.01}, {"params": [fast], "lr": 0.1}]


@every_choice
def test_every_choice_builds_with_groups_and_steps_them_at_their_own_rates(choice, groups):
    node = read(choice)
    optimizer = optimizer_factory(node, ())(params=groups)
    assert f"torch.optim.{type(optimizer).__name__}" == node["_target_"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.1]
    given = {key: value for key, value in node.items() if key not in {"_target_", "lr"}}
    for group in optimizer.param_groups:
        assert {key: group[key] for key in given} == given

    parameters = [group["params"][0] for group in optimizer.param_groups]
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    slow, fast = (float((1 - parameter.detach()).mean()) for parameter in parameters)
    assert fast == pytest.approx(10 * slow, rel=0.01)


@every_choice
def test_an_unknown_key_is_named_with_the_nearest(choice):
    with pytest.raises(ConfigError, match=r"'optimizer\.weightdecay'.*mean 'weight_decay'"):
        optimizer_factory(read(choice, weightdecay=0.1), ())


@every_choice
@pytest.mark.parametrize("value", ["abc", None, [0.1]])
def test_a_value_of_the_wrong_type_is_named(choice, value):
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        optimizer_factory(read(choice, lr=value), ())


@pytest.mark.parametrize(
    "target", ["torch.load", "torch.hub.load", "torch.optim.lr_scheduler.StepLR", "os.system"]
)
def test_only_optimizers_may_be_named(target):
    with pytest.raises(ConfigError, match=target):
        optimizer_factory({"_target_": target, "lr": 0.1}, ())


def test_a_schedule_moves_all_groups_by_the_same_factor_until_it_ends(groups):
    optimizer = optimizer_factory(read("sgd"), ())(params=groups)
    schedule = Cosine(warmup=0.2)
    trainer = SimpleNamespace(estimated_stepping_batches=10)
    scheduler = scheduled(optimizer, schedule.factor, trainer)["lr_scheduler"]["scheduler"]
    for step in range(13):
        factor = schedule.factor(min(step / 10, 1))
        assert scheduler.get_last_lr() == pytest.approx([0.01 * factor, 0.1 * factor])
        optimizer.step()
        scheduler.step()


def test_a_schedule_counts_steps_and_not_epochs(groups):
    trainer = SimpleNamespace(estimated_stepping_batches=0)
    optimizer = optimizer_factory(read("sgd"), ())(params=groups)
    assert (
        scheduled(optimizer, Cosine(warmup=0.0).factor, trainer)["lr_scheduler"]["interval"]
        == "step"
    )

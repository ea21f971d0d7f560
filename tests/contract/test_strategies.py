"""What every strategy in `conf/strategy` keeps to, on three kinds of network."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from medtransfer.components import build, locate
from medtransfer.errors import ConfigError
from medtransfer.strategies.base import Strategy
from medtransfer.strategies.solved import Solved
from medtransfer.testing import strategies as checks
from medtransfer.testing.small import SIGN_STEPS
from medtransfer.testing.watching import awake, batch_norms, changed

CONF = Path(__file__).parents[2] / "conf"
TARGETS = {p.stem: OmegaConf.load(p)._target_ for p in (CONF / "strategy").glob("*.yaml")}
STRATEGIES = sorted(TARGETS)
SOLVED = [name for name in STRATEGIES if issubclass(locate(TARGETS[name], Strategy), Solved)]
STEPPED = [name for name in STRATEGIES if name not in SOLVED]
NETWORKS = ("test_resnet", "test_convnext", "test_vit")
POLICIES = {"train", "frozen", "reestimate"}

every_stepped = pytest.mark.parametrize("name", STEPPED)
every_solved = pytest.mark.parametrize("name", SOLVED)
every_strategy = pytest.mark.parametrize("name", STRATEGIES)
every_network = pytest.mark.parametrize("network", NETWORKS)


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of what batch normalisation in the backbone has counted."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {
        f"{name}.{key}": getattr(layer, key).clone()
        for name, layer in batch_norms(model).items()
        for key in names
    }


@contextmanager
def inputs_of(layers: dict[str, nn.Module]):
    """Yield the tensors that each layer is given meanwhile."""
    seen = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kept=seen[name]: kept.append(args[0]))
        for name, layer in layers.items()
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@every_network
@every_stepped
def test_two_steps_change_what_is_declared_and_nothing_else(name, network, begun):
    checks.changes_what_it_declares(begun(name, network, SIGN_STEPS))


@every_network
@every_strategy
def test_frozen_parts_stay_in_eval_when_the_model_is_put_to_train_mode(name, network, begun):
    checks.rests_in_train_mode(begun(name, network))


@every_stepped
def test_a_callback_cannot_wake_what_rests(name, begun):
    checks.cannot_be_woken(begun(name, "test_resnet", SIGN_STEPS))


@every_strategy
def test_the_head_always_learns_and_in_the_end_all_that_is_declared(name, begun):
    checks.declares(begun(name, "test_vit"))


@every_network
@every_solved
def test_a_solved_head_changes_the_head_and_nothing_else(name, network, begun):
    checks.solves_the_head(begun(name, network))


@every_strategy
def test_learning_rates_are_multiples_of_the_optimizers(name, make_task, component):
    task = make_task(name, "test_resnet")
    task.strategy_.setup(task, [], statistics=True)

    def rates(strategy: Strategy, lr: float) -> dict[int, float]:
        groups = strategy.parameter_groups(task, {"lr": lr})
        return {id(p): group["lr"] for group in groups for p in group["params"]}

    plain = rates(task.strategy_, 0.01)
    assert rates(task.strategy_, 0.03) == {key: pytest.approx(3 * v) for key, v in plain.items()}

    node = component("strategy", name)
    for multiplier in node.keys() & {"backbone_lr", "head_lr"}:
        own = {id(p) for p in getattr(task, multiplier.removesuffix("_lr")).parameters()}
        tripled = rates(build({**node, multiplier: 3 * node[multiplier]}, Strategy), 0.01)
        assert tripled == {
            key: pytest.approx(v * (3 if key in own else 1)) for key, v in plain.items()
        }


@every_strategy
def test_a_learning_rate_multiplier_must_be_positive(name, component):
    for key in (key for key in component("strategy", name) if key.endswith("_lr")):
        with pytest.raises(ConfigError, match=rf"strategy\.{key}"):
            build(component("strategy", name, **{key: 0.0}), Strategy)


@every_strategy
def test_the_yaml_says_how_batch_normalisation_is_treated_and_what_to_tune(name, component):
    node = component("strategy", name)
    assert node["batchnorm"] == "auto"
    for key, space in node["search_space"].items():
        group, _, argument = key.partition(".")
        owner = node if group == "strategy" else component(group, "adamw")
        assert argument in owner
        assert ("choices" in space) or space["low"] < space["high"]
        assert space.keys() <= {"low", "high", "log", "choices"}


@pytest.mark.parametrize("policy", sorted(POLICIES))
@every_strategy
def test_a_policy_for_batch_normalisation_does_what_it_says(
    name, policy, make_task, component, fit
):
    if policy not in locate(component("strategy", name)["_target_"], Strategy).policies:
        pytest.skip(f"{name} refuses it, see the next test")
    strategy = build(component("strategy", name, batchnorm=policy), Strategy)
    task = make_task(strategy, "test_resnet")
    layers = batch_norms(task.backbone)
    images = [torch.rand(8, 3, 32, 32) for _ in range(3)]
    before = statistics(task.backbone)

    with inputs_of(layers) as inputs:
        strategy.setup(task, images, statistics=True)
    at_start = statistics(task.backbone)
    if policy == "reestimate":
        for layer in layers:
            means = torch.stack([x.mean((0, 2, 3)) for x in inputs[layer]])
            variances = torch.stack([x.var((0, 2, 3)) for x in inputs[layer]])
            assert len(means) == len(images)
            torch.testing.assert_close(at_start[f"{layer}.running_mean"], means.mean(0))
            torch.testing.assert_close(at_start[f"{layer}.running_var"], variances.mean(0))
    else:
        assert not changed(before, at_start)

    if not isinstance(strategy, Solved):
        fit(task)
    moved = changed(at_start, statistics(task.backbone))
    learning = awake(task, strategy.trainable(task), policy)
    assert moved == {n for n in at_start if f"backbone.{n.rpartition('.')[0]}" in learning}


@every_strategy
def test_an_unsupported_policy_names_the_choices(name, component):
    node = component("strategy", name)
    supported = set(locate(node["_target_"], Strategy).policies)
    for policy in POLICIES - supported | {"thawed"}:
        with pytest.raises(ConfigError, match=rf"strategy\.batchnorm.*{policy}") as error:
            build({**node, "batchnorm": policy}, Strategy)
        assert all(choice in str(error.value) for choice in supported)


@every_strategy
def test_layers_at_rest_never_keep_statistics_that_describe_nothing(name, make_task):
    task = make_task(name, "test_resnet")
    layers = list(batch_norms(task.backbone).values())  # in place, whatever is put around them
    before = [layer.running_mean.clone() for layer in layers]
    task.strategy_.setup(task, [torch.rand(8, 3, 32, 32)], statistics=False)
    task.train()
    for layer, mean in zip(layers, before, strict=True):
        assert layer.training or not torch.equal(layer.running_mean, mean)

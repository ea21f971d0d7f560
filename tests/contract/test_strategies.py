"""What every strategy in `conf/strategy` keeps to, on three kinds of network."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import nn

from medtransfer.components import build, locate
from medtransfer.errors import ConfigError
from medtransfer.strategies.base import Strategy
from medtransfer.strategies.solved import Solved

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


class Modes(pl.Callback):
    """Notes which modules train, in each step."""

    def __init__(self):
        self.seen = []

    def on_before_backward(self, _trainer, pl_module, *_):
        self.seen.append({name for name, module in pl_module.named_modules() if module.training})


class Waker(pl.Callback):
    """Puts the backbone to train mode between epochs, as some callbacks do."""

    def on_train_epoch_end(self, _trainer, pl_module):
        pl_module.backbone.train()


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of what batch normalisation in the backbone has counted."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {
        f"{name}.{key}": getattr(layer, key).clone()
        for name, layer in batch_norms(model).items()
        for key in names
    }


def copies(tensors) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors}


def changed(before, after) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


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


def awake_by_step(task, policy: str) -> list[set[str]]:
    """Return the modules that should train in each of the two steps that `fit` takes."""
    strategy = task.strategy_
    return [
        awake(task, strategy.trainable_in(task, strategy.phase(progress)), policy)
        for progress in (0.0, 0.5)
    ]


def awake(model: nn.Module, trainable: set[str], policy: str) -> set[str]:
    """Return the modules that should train: those outside of every wholly frozen subtree."""
    learning = {id(model.get_parameter(name)) for name in trainable}
    frozen_trees = []
    for name, module in model.named_modules():
        own = {id(p) for p in module.parameters()}
        if name and own and not learning & own:
            frozen_trees.append(name)
    resting = set() if policy == "train" else set(batch_norms(model.backbone))
    return {
        name
        for name, _ in model.named_modules()
        if not any(name == tree or name.startswith(f"{tree}.") for tree in frozen_trees)
        and name.removeprefix("backbone.") not in resting
    }


@every_network
@every_stepped
def test_two_steps_change_what_is_declared_and_nothing_else(name, network, make_task, fit):
    task = make_task(name, network)
    task.strategy_.setup(task, [], statistics=True)
    declared = task.strategy_.trainable(task)
    policy = task.strategy_.resolve_batchnorm(statistics=True)
    parameters, buffers = copies(task.named_parameters()), copies(task.named_buffers())
    modes = Modes()

    trainer = fit(task, modes)

    # Every parameter of these three networks takes part in the embedding, so all have a gradient.
    assert changed(parameters, dict(task.named_parameters())) == declared
    assert {n for n, p in task.named_parameters() if p.requires_grad} == declared

    held = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert len(held) == len(declared)
    assert {id(p) for p in held} == {id(task.get_parameter(n)) for n in declared}

    expected = awake_by_step(task, policy)
    assert modes.seen == expected

    moved = changed(buffers, dict(task.named_buffers())) - {"threshold"}
    assert moved == {
        n
        for n in buffers
        if "running" in n or "tracked" in n
        if n.rpartition(".")[0] in expected[0] | expected[1]
    }


@every_network
@every_strategy
def test_frozen_parts_stay_in_eval_when_the_model_is_put_to_train_mode(name, network, make_task):
    task = make_task(name, network)
    task.strategy_.setup(task, [], statistics=True)
    policy = task.strategy_.resolve_batchnorm(statistics=True)
    expected = awake_by_step(task, policy)[0]

    task.eval()
    assert not any(module.training for module in task.modules())
    task.train()
    assert {n for n, m in task.named_modules() if m.training} == expected


@every_stepped
def test_a_callback_cannot_wake_what_rests(name, make_task, fit):
    task = make_task(name, "test_resnet")
    task.strategy_.setup(task, [], statistics=True)
    policy = task.strategy_.resolve_batchnorm(statistics=True)
    modes = Modes()
    fit(task, Waker(), modes)
    assert modes.seen == awake_by_step(task, policy)


@every_strategy
def test_the_head_always_learns(name, make_task):
    task = make_task(name, "test_vit")
    task.strategy_.setup(task, [], statistics=True)
    head = {n for n, _ in task.named_parameters() if n.startswith("head.")}
    assert head <= task.strategy_.trainable(task)


@every_network
@every_solved
def test_a_solved_head_changes_the_head_and_nothing_else(name, network, make_task):
    task = make_task(name, network)
    task.strategy_.setup(task, [], statistics=True)
    before = copies(task.backbone.state_dict().items())
    features = torch.randn(40, task.backbone.embedding_size)
    targets = torch.arange(40) % 2
    features[:, 0] += 5 * targets  # two clusters

    def score() -> float:
        return float((task.head.eval()(features).argmax(1) == targets).float().mean())

    chosen = task.strategy_.fit_head(task, features, targets, None, score)

    assert chosen
    assert score() == 1
    assert not changed(before, task.backbone.state_dict())


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

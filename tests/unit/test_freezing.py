"""Frozen means: no gradient, and in eval mode, whatever mode the model is put to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from medtransfer.strategies import freezing


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.bn(self.conv(x)))


class Network(nn.Module):
    """A token of its own, a stem, two blocks."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(3))
        self.stem = Block()
        self.blocks = nn.Sequential(Block(), Block())

    def embed(self, x):
        return self.blocks(self.stem(x)).mean((2, 3)) + self.token


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Network()
        self.head = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def under(model: nn.Module, *prefixes: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def training(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if module.training}


HEAD = {"", "head", "head.0", "head.1"}


def test_a_frozen_subtree_rests_with_its_dropout(model):
    freezing.freeze(model, under(model, "head"), batchnorm="frozen")
    assert training(model) == HEAD
    assert {n for n, p in model.named_parameters() if p.requires_grad} == under(model, "head")


def test_only_wholly_frozen_subtrees_rest(model):
    freezing.freeze(model, under(model, "head", "backbone.blocks.1"), batchnorm="train")
    last = {f"backbone.blocks.1{part}" for part in ("", ".conv", ".bn", ".drop")}
    assert training(model) == HEAD | {"backbone", "backbone.blocks"} | last


def test_a_parameter_beside_modules_keeps_only_its_owner_awake(model):
    freezing.freeze(model, under(model, "head", "backbone.token"), batchnorm="train")
    assert training(model) == HEAD | {"backbone"}
    assert model.backbone.token.requires_grad
    assert not model.backbone.stem.conv.weight.requires_grad


def test_a_frozen_parameter_beside_modules_gets_no_gradient(model):
    freezing.freeze(model, under(model, "head", "backbone.b", "backbone.s"), batchnorm="train")
    model.backbone.embed(torch.rand(4, 3, 2, 2)).sum().backward()
    assert model.backbone.token.grad is None
    assert model.backbone.stem.conv.weight.grad is not None


@pytest.mark.parametrize("policy", ["frozen", "reestimate"])
def test_batch_normalisation_rests_in_a_learning_backbone_but_not_in_the_head(policy, model):
    everything = {name for name, _ in model.named_parameters()}
    freezing.freeze(model, everything, batchnorm=policy)
    resting = {name for name, _ in model.named_modules()} - training(model)
    assert resting == {f"backbone.{n}.bn" for n in ("stem", "blocks.0", "blocks.1")}
    assert model.backbone.stem.bn.weight.requires_grad


def test_rest_puts_back_what_train_has_woken(model):
    freezing.freeze(model, under(model, "head"), batchnorm="frozen")
    model.train()
    assert len(training(model)) == len(list(model.modules()))
    freezing.rest(model)
    assert training(model) == HEAD


def test_freezing_again_forgets_what_rested_before(model):
    freezing.freeze(model, under(model, "head"), batchnorm="frozen")
    freezing.freeze(model, under(model, "head", "backbone"), batchnorm="train")
    model.train()
    freezing.rest(model)
    assert len(training(model)) == len(list(model.modules()))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_unknown_parameter_is_named(model):
    with pytest.raises(KeyError, match=r"backbone\.blocks\.7\.weight"):
        freezing.freeze(model, {"backbone.blocks.7.weight"}, batchnorm="train")
    assert all(parameter.requires_grad for parameter in model.parameters())


def by_hand(network: Network, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the statistics of one batch, layer after layer, without `nn.BatchNorm2d`."""
    found, x = {}, images
    for name in ("stem", "blocks.0", "blocks.1"):
        block = network.get_submodule(name)
        x = block.conv(x)
        mean = x.mean((0, 2, 3), keepdim=True)
        found[f"{name}.bn.running_mean"] = mean.flatten()
        found[f"{name}.bn.running_var"] = x.var((0, 2, 3), unbiased=True)
        x = (x - mean) / (x.var((0, 2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
    return found


@pytest.mark.parametrize("times", [1, 4])
def test_statistics_become_those_of_the_images(times, model):
    network, images = model.backbone, 5 + 3 * torch.rand(8, 3, 4, 4)
    network.embed(100 * images)  # what was counted before is forgotten
    freezing.reestimate_batchnorm(network, [images] * times)
    for name, expected in by_hand(network, images).items():
        torch.testing.assert_close(network.get_buffer(name), expected)


def test_statistics_of_several_batches_are_averaged(model):
    network, batches = model.backbone, [torch.rand(8, 3, 4, 4), 9 * torch.rand(8, 3, 4, 4)]
    freezing.reestimate_batchnorm(network, batches)
    each = [network.stem.conv(images).mean((0, 2, 3)) for images in batches]
    torch.testing.assert_close(network.stem.bn.running_mean, (each[0] + each[1]) / 2)


def test_estimation_leaves_values_modes_and_momentum_as_they_were(model):
    network = model.backbone
    network.stem.eval()
    network.blocks[0].bn.momentum = 0.3
    modes, parameters = training(network), copy.deepcopy(list(network.parameters()))
    freezing.reestimate_batchnorm(network, [torch.rand(4, 3, 2, 2)])
    assert training(network) == modes
    assert network.blocks[0].bn.momentum == 0.3
    assert network.blocks[1].bn.momentum == 0.1
    for before, after in zip(parameters, network.parameters(), strict=True):
        assert torch.equal(before, after)
        assert after.grad is None


def test_a_batch_of_one_is_left_out(model):
    images, single = torch.rand(8, 3, 4, 4), torch.full((1, 3, 4, 4), 100.0)
    freezing.reestimate_batchnorm(model.backbone, [images, single])
    for name, expected in by_hand(model.backbone, images).items():
        torch.testing.assert_close(model.backbone.get_buffer(name), expected)


def test_estimation_reads_no_more_than_it_needs(model):
    batches = iter([torch.rand(2, 3, 2, 2)] * (freezing.ESTIMATION_BATCHES + 3))
    freezing.reestimate_batchnorm(model.backbone, batches)
    assert len(list(batches)) == 3


def test_a_network_without_batch_normalisation_reads_no_image():
    def images():
        raise AssertionError
        yield

    freezing.reestimate_batchnorm(nn.Linear(3, 2), images())

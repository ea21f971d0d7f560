"""What of a model changes, and which of its modules train."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from medtransfer.strategies.base import Strategy

STEPS = (0.0, 0.5)  # progress at each of the two steps of a small training


class Modes(pl.Callback):
    """Notes which modules train, in each step."""

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def on_before_backward(self, _: pl.Trainer, pl_module: pl.LightningModule, *__: Any) -> None:
        """See Lightning's `Callback`."""
        self.seen.append(training(pl_module))


class Waker(pl.Callback):
    """Puts the backbone to train mode between epochs, as some callbacks do."""

    def on_train_epoch_end(self, _: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See Lightning's `Callback`."""
        pl_module.get_submodule("backbone").train()


def training(model: nn.Module) -> set[str]:
    """Return the names of the modules that are in train mode."""
    return {name for name, module in model.named_modules() if module.training}


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Return the layers of batch normalisation by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def copies(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return copies of named tensors."""
    return {name: tensor.detach().clone() for name, tensor in tensors}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the tensors that are not the same to the bit."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def awake(model: nn.Module, trainable: set[str], policy: str) -> set[str]:
    """Return the modules that should train: those outside of every wholly frozen subtree.

    Args:
        model: A module with the child `backbone`.
        trainable: Names of the parameters that learn.
        policy: For batch normalisation, resolved.
    """
    learning = {id(model.get_parameter(name)) for name in trainable}
    frozen_trees = []
    for name, module in model.named_modules():
        own = {id(p) for p in module.parameters()}
        if name and own and not learning & own:
            frozen_trees.append(name)
    backbone = model.get_submodule("backbone")
    resting = set() if policy == "train" else set(batch_norms(backbone))
    return {
        name
        for name, _ in model.named_modules()
        if not any(name == tree or name.startswith(f"{tree}.") for tree in frozen_trees)
        and name.removeprefix("backbone.") not in resting
    }


def awake_by_step(model: nn.Module, strategy: Strategy, policy: str) -> list[set[str]]:
    """Return the modules that should train in each of the two steps of a small training."""
    return [
        awake(model, strategy.trainable_in(model, strategy.phase(progress)), policy)
        for progress in STEPS
    ]

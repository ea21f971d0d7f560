"""What the contract tests share: the choices in `conf/`, and a small task to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from medtransfer.components import build
from medtransfer.strategies.base import Strategy
from medtransfer.tasks.classification import Classification
from medtransfer.testing.small import ADAM, SIGN_STEPS, begin, small_loader, small_task, train

CONF = Path(__file__).parents[2] / "conf"


@cache
def _compose(group: str, choice: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(overrides=[f"+{group}={choice}"])[group]


@pytest.fixture
def component() -> Callable[..., dict[str, Any]]:
    """Return a choice of a group as its YAML says it, with some keys changed."""

    def read(group: str, choice: str, **changed: Any) -> dict[str, Any]:
        return {**OmegaConf.to_container(_compose(group, choice), resolve=False), **changed}

    return read


@pytest.fixture
def make_task(component) -> Callable[..., Classification]:
    """Return a small task with the strategy of a YAML, not set up."""

    def make(
        strategy: str | Strategy, network: str, optimizer: Mapping[str, Any] = SIGN_STEPS
    ) -> Classification:
        if isinstance(strategy, str):
            strategy = build(component("strategy", strategy), Strategy)
        return small_task(strategy, network, optimizer)

    return make


@pytest.fixture
def begun(make_task) -> Callable[..., Classification]:
    """Return a function that makes a task and has its strategy set it up, always alike."""

    def make(
        strategy: str | Strategy, network: str, optimizer: Mapping[str, Any] = ADAM
    ) -> Classification:
        return begin(make_task(strategy, network, optimizer))

    return make


@pytest.fixture
def loader() -> DataLoader[dict[str, torch.Tensor]]:
    """Return one batch of images of two classes."""
    return small_loader()


@pytest.fixture
def fit(loader) -> Callable[..., pl.Trainer]:
    """Return what trains a task for two epochs of one step, each followed by validation."""

    def run(task: pl.LightningModule, *callbacks: pl.Callback) -> pl.Trainer:
        return train(task, loader, callbacks)

    return run


@pytest.fixture
def makes(make_task) -> Callable[..., Callable[..., Classification]]:
    """Return a function that returns what makes one task anew, given an optimizer."""
    return lambda name, network: partial(make_task, name, network)

"""What the contract tests share: the choices in `conf/`, and a small task to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from medtransfer.backbones.timm import TimmBackbone
from medtransfer.components import build
from medtransfer.data.base import DataSpec
from medtransfer.heads.linear import Linear
from medtransfer.quiet import quiet_libraries
from medtransfer.strategies.base import Strategy
from medtransfer.tasks.classification import Classification
from medtransfer.tasks.losses import CrossEntropy
from medtransfer.tasks.optimizing import optimizer_factory
from medtransfer.tasks.schedulers import Constant

CONF = Path(__file__).parents[2] / "conf"
SIZE = 32
SPEC = DataSpec(("benign", "malignant"), 3, SIZE, (8, 8), "data", "split")
# Moves every element that has a gradient by `lr`, however small the gradient is.
SIGN_STEPS = {"_target_": "torch.optim.Rprop", "lr": 0.01}

Parameters = dict[str, torch.Tensor]


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
        strategy: str | Strategy, backbone: str, optimizer: Mapping[str, Any] = SIGN_STEPS
    ) -> Classification:
        torch.manual_seed(0)
        if isinstance(strategy, str):
            strategy = build(component("strategy", strategy), Strategy)
        network = TimmBackbone(backbone, SPEC.channels, SPEC.image_size)
        with (
            torch.no_grad()
        ):  # layers that timm initialises to zero would keep others from learning
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return Classification(
            backbone=network,
            head=Linear(network.embedding_size, 2, norm="batch", dropout=0.0),
            loss=CrossEntropy(SPEC.train_counts, "none", label_smoothing=0.0),
            strategy=strategy,
            schedule=Constant(),
            optimizer=optimizer,
            make_optimizer=optimizer_factory(dict(optimizer), ()),
            spec=SPEC,
        )

    return make


@pytest.fixture
def loader() -> DataLoader[dict[str, torch.Tensor]]:
    """Return one batch of sixteen images of two classes."""
    generator = torch.Generator().manual_seed(1)
    cases = [
        {
            "image": torch.rand(3, SIZE, SIZE, generator=generator),
            "target": torch.tensor(index % 2),
            "index": torch.tensor(index),
        }
        for index in range(16)
    ]
    return DataLoader(cases, batch_size=16)  # type: ignore[arg-type]


@pytest.fixture
def fit(loader) -> Callable[..., pl.Trainer]:
    """Return what trains a task for two epochs of one step, each followed by validation."""

    def run(task: Classification, *callbacks: pl.Callback) -> pl.Trainer:
        quiet_libraries()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            callbacks=list(callbacks),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, loader, loader)
        return trainer

    return run

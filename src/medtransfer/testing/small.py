"""A task so small that it is trained within a second."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from medtransfer.backbones.timm import TimmBackbone
from medtransfer.data.base import DataSpec
from medtransfer.heads.linear import Linear
from medtransfer.quiet import quiet_libraries
from medtransfer.strategies.base import Strategy
from medtransfer.tasks.classification import Classification
from medtransfer.tasks.losses import CrossEntropy
from medtransfer.tasks.optimizing import optimizer_factory
from medtransfer.tasks.schedulers import Constant

SIZE = 32  # pixels
SPEC = DataSpec(("benign", "malignant"), 3, SIZE, (8, 8), "data", "split")
# Moves every element that has a gradient by `lr`, however small the gradient is.
SIGN_STEPS = {"_target_": "torch.optim.Rprop", "lr": 0.01}
ADAM = {"_target_": "torch.optim.AdamW", "lr": 0.003, "weight_decay": 0.01}


def small_task(
    strategy: Strategy, network: str, optimizer: Mapping[str, Any] = SIGN_STEPS
) -> Classification:
    """Return a task of two classes, always with the same values, its strategy not set up.

    Args:
        strategy: What learns; a new one for each task.
        network: Name of a small timm model.
        optimizer: The keys of its configuration.
    """
    torch.manual_seed(0)
    backbone = TimmBackbone(network, SPEC.channels, SPEC.image_size)
    with torch.no_grad():  # layers that timm initialises to zero would keep others from learning
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Classification(
        backbone=backbone,
        head=Linear(backbone.embedding_size, len(SPEC.class_names), norm="batch", dropout=0.0),
        loss=CrossEntropy(SPEC.train_counts, "none", label_smoothing=0.0),
        strategy=strategy,
        schedule=Constant(),
        optimizer=optimizer,
        make_optimizer=optimizer_factory(dict(optimizer), ()),
        spec=SPEC,
    )


def begin(task: Classification) -> Classification:
    """Have the strategy set a task up, always alike, and return it."""
    torch.manual_seed(1)
    task.strategy_.setup(task, [torch.rand(8, 3, SIZE, SIZE)], statistics=True)
    return task


def small_loader() -> DataLoader[dict[str, Tensor]]:
    """Return one batch of sixteen images of two classes, always the same."""
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


def train(
    task: pl.LightningModule,
    loader: DataLoader[Any],
    callbacks: Sequence[pl.Callback] = (),
    *,
    epochs: int = 2,
    keep: Path | None = None,
    resume: Path | None = None,
) -> pl.Trainer:
    """Train a task in steps, with a validation after each epoch.

    Args:
        task: The task, set up.
        loader: Its batches, for training and validation.
        callbacks: Of Lightning.
        epochs: How many.
        keep: A folder for a checkpoint of each epoch.
        resume: A checkpoint to go on from.
    """
    quiet_libraries()
    states = [ModelCheckpoint(keep, filename="{epoch}", save_top_k=-1)] if keep else []
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[*callbacks, *states],
        enable_checkpointing=keep is not None,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():  # whoever goes on keeps no states of its own
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")
        trainer.fit(task, loader, loader, ckpt_path=resume, weights_only=True)
    return trainer

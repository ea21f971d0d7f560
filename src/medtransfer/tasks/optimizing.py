"""From the configuration to an optimizer that Lightning steps and schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.types import OptimizerLRScheduler

from medtransfer.components import Component, build, check_arguments, locate

LIBRARIES = ("torch.optim",)  # whose classes the group may name directly

MakeOptimizer = Callable[..., torch.optim.Optimizer]


def optimizer_factory(node: Component, trusted: Iterable[str]) -> MakeOptimizer:
    """Return what builds the optimizer from `params`, its other arguments checked now.

    Raises:
        ConfigError: If the class may not be used, or an argument is unknown or mistyped.
    """
    base = torch.optim.Optimizer
    cls = locate(node["_target_"], base, trusted=trusted, extra=LIBRARIES)
    check_arguments(cls, base, node, injected=("params",))
    return partial(build, node, base, trusted=trusted, extra=LIBRARIES)


def total_steps(trainer: Trainer) -> int:
    """Return how many steps a training takes, as epochs and steps limit it."""
    return max(1, int(trainer.estimated_stepping_batches))


def scheduled(
    optimizer: torch.optim.Optimizer, factor: Callable[[float], float], trainer: Trainer
) -> OptimizerLRScheduler:
    """Return an optimizer whose learning rates are multiplied by `factor` of the share done."""
    total = total_steps(trainer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factor(min(step / total, 1.0))
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

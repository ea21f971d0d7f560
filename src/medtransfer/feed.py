"""Where a trial's batches come from: images, or features that were computed before."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from medtransfer.data.sampling import Parts
from medtransfer.errors import ConfigError
from medtransfer.features import (
    Extractor,
    Features,
    FeatureStore,
    Split,
    open_features,
    size_estimate,
)
from medtransfer.heads.exam import ExamHead
from medtransfer.machine import Machine
from medtransfer.run import Trial
from medtransfer.strategies.solved import Solved

SPLITS: tuple[Split, ...] = ("train", "val", "test")
LARGE = 1024  # embeddings at once


class Feed:
    """Gives the batches of a trial, of a model that its strategy has set up.

    Features stand in for images where the strategy leaves the backbone as it is. Those of a split
    do not exist before the split is asked for.

    Args:
        trial: Whose.
        machine: How it computes.

    Raises:
        ConfigError: If features are to be cached and would take more room than they may.
    """

    def __init__(self, trial: Trial, machine: Machine) -> None:
        self.trial = trial
        self.workers = int(machine.workers.value)
        self.seconds = 0.0
        """Spent on opening features, or computing them."""
        self._opened: dict[Split, Features] = {}
        config = trial.config.features
        self.extractor = Extractor(
            backbone=trial.model.backbone,
            part=trial.model.represents,
            device=device_of(machine),
            precision="bf16" if machine.precision.value == "bf16" else "fp32",
            dtype=config.dtype,
            batch_size=trial.config.trainer.batch_size,
            workers=self.workers,
            # whoever loaded the weights has hashed them, and nothing has changed them since
            known=None if trial.model.strategy_.reestimated else trial.provenance.sha256,
        )
        self.store: FeatureStore | None = None
        self.why_online = self._why_online()
        if self.why_online is None:
            self.store = FeatureStore(trial.config.paths.cache / "features", config.max_gb)

    @property
    def from_features(self) -> bool:
        """Whether batches hold features; heads that are solved take nothing else."""
        return self.store is not None or isinstance(self.trial.model.strategy_, Solved)

    @property
    def light(self) -> bool:
        """Whether steps are so small that threads would spend them waiting for each other."""
        return self.store is not None and self.extractor.part == "embedding"

    def train(self, parts: Parts | None = None) -> DataLoader[Any]:
        """Return shuffled batches of the training subset, or parts of them."""
        config = self.trial.config.trainer
        images = self.trial.data.train_loader(
            self.trial.transform,
            batch_size=config.batch_size,
            workers=0 if self.from_features else self.workers,
            sampler=config.sampler,
            parts=parts,
        )
        return self._features("train").in_place_of(images) if self.from_features else images

    def ordered(self, split: Split) -> DataLoader[Any]:
        """Return batches of a split in its own order, as they are."""
        size = self.trial.config.trainer.batch_size
        if self.from_features and self.extractor.part == "embedding":
            size = max(size, LARGE)  # a network is dear, a head is not
        images = self.trial.data.loader(split, batch_size=size)
        return self._features(split).in_place_of(images) if self.from_features else images

    def table(self) -> tuple[Tensor, Tensor]:
        """Return the features of the training subset, (n, D), and its targets, (n,).

        Those of an exam are what its head makes of the features of its images.
        """
        data, features = self.trial.data, self._features("train")
        if data.spec.annotation != "exam":
            return features.table(data.train)
        exams = data.cases(data.train)
        members = [data.members[int(first)] for first in exams]
        embeddings, _ = features.table(np.concatenate(members))
        number = torch.from_numpy(np.repeat(np.arange(len(exams)), [len(m) for m in members]))
        views = embeddings.unflatten(0, (-1, features.views)).unbind(1)
        head = cast("ExamHead", self.trial.model.head)
        pooled = [head.pool(view, number) for view in views]
        targets = torch.from_numpy(data.targets[exams])
        return torch.cat(pooled), targets.repeat(features.views)

    def describe(self) -> dict[str, Any]:
        """Return how features come to the head, in plain values."""
        if self.store is None:
            told: dict[str, Any] = {"mode": "online", "why": self.why_online}
        else:
            told = {"mode": "cached", "dtype": self.trial.config.features.dtype}
        if self.from_features:
            told["views"] = self._features("train").views
        return told

    def _features(self, split: Split) -> Features:
        if split not in self._opened:
            started = time.perf_counter()
            self._opened[split] = open_features(
                self.trial.data,
                split,
                self.extractor,
                transform=self.trial.transform,
                views=self.trial.config.features.views,
                store=self.store,
            )
            self.seconds += time.perf_counter() - started
        return self._opened[split]

    def _why_online(self) -> str | None:
        config = self.trial.config.features
        if not self.trial.model.strategy_.cacheable:
            return "the backbone learns"
        if config.mode == "online":
            return "as configured"
        if not self.trial.model.whole:
            return "training takes patches"
        views, transform = config.views, self.trial.transform
        size = sum(
            size_estimate(self.trial.data, split, self.extractor, transform=transform, views=views)
            for split in SPLITS
        )
        if size <= config.max_gb * 1e9:
            return None
        why = f"features would take {size / 1e9:.1f} GB, and features.max_gb={config.max_gb:g}"
        if config.mode == "cached":
            raise ConfigError(why, remedy="raise features.max_gb, or features.mode=auto")
        return why


def device_of(machine: Machine) -> torch.device:
    """Return the device that a machine's accelerator is."""
    return torch.device("cuda" if machine.accelerator.value == "gpu" else "cpu")

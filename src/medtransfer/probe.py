"""What a trial will take in time and on disk, told from a few of its batches."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice, repeat

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning.callbacks import LambdaCallback
from torch.utils.data import DataLoader

from medtransfer import machine
from medtransfer.backbones.weights import Weights
from medtransfer.certificate import Certificate
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data.loading import Batch
from medtransfer.data.sampling import Parts
from medtransfer.features import Features, Split, size_estimate
from medtransfer.feed import SPLITS, Feed, device_of
from medtransfer.run import Trial, prepare
from medtransfer.seeding import seed_part
from medtransfer.strategies.freezing import ESTIMATION_BATCHES
from medtransfer.strategies.solved import Solved
from medtransfer.training import trainer_of

BATCHES = 3  # that are read: the first one warms up, the others are timed


@dataclass(frozen=True)
class Probe:
    """What a few batches of a trial have shown.

    Attributes:
        setup: Seconds until the model is set up, its statistics re-estimated if they are to be.
        step: Seconds of an optimizer step; 0 where the head is solved.
        steps: Optimizer steps in an epoch; 0 where the head is solved.
        passes: Seconds of a pass over each split that is scored: `val`, `test`, `external`.
        features: Seconds and bytes of those of each split; empty where steps look at images.
        kept: Whether features are kept for other trials.
        adapted: Whether they depend on the training subset, and the size of a batch.
        drawn: Whether they depend on the seed.
        checkpoint: Bytes of what stays of a trial: all that its weights did not bring.
        decoded: Bytes of the decoded images of each dataset, by what tells them apart.
    """

    setup: float
    step: float
    steps: int
    passes: dict[str, float]
    features: dict[Split, tuple[float, int]]
    kept: bool
    adapted: bool
    drawn: bool
    checkpoint: int
    decoded: dict[str, int]


def probe(config: TrainConfig) -> Probe:
    """Prepare a trial, read a few of its batches, and leave nothing but the decoded images.

    Raises:
        MedtransferError: For anything that would keep the trial from running.
    """
    gc.collect()  # networks lie in cycles: the one before may still fill the memory
    trial, settings = prepare(config), machine.resolve(config.trainer)
    data, model, strategy = trial.data, trial.model, trial.model.strategy_
    with machine.threads(int(settings.threads.value)):
        setup = _set_up(trial)
        feed = _Rehearsal(trial, settings)
        features = feed.extract() if feed.from_features else {}
        solved = isinstance(strategy, Solved)
        step, steps = (0.0, 0) if solved else _step(feed, settings)
        image = 0.0 if solved else _judged(feed, settings)
    passes = {split: len(getattr(data.division, split)) * image for split in ("val", "test")}
    if trial.external is not None:  # nobody keeps features of its images
        passes["external"] = len(trial.external.division.test) * (image + feed.view)
    frozen = Certificate.of(model, strategy).frozen
    strategy.finish(model, lambda: 0.0)  # as it would be kept
    moved = dict(model.named_buffers()) if strategy.reestimated else {}
    stay = (v for name, v in model.state_dict().items() if name not in frozen or name in moved)
    near, trusted = trial.facts()["near"], config.trusted_modules
    version = build(config.weights, Weights, trusted=trusted, near=near).version
    subset = strategy.reestimated and len(data.train) < len(data.division.train)
    decoded = [each.decoded for each in (data, trial.external) if each is not None]
    return Probe(
        setup=setup,
        step=step,
        steps=steps,
        passes=passes,
        features=features,
        kept=feed.store is not None,
        adapted=strategy.reestimated,
        drawn=subset or version(model.backbone, 0) != version(model.backbone, 1),
        checkpoint=sum(value.nbytes for value in stay),
        decoded={f"{each.images_hash} {each.images.shape}": each.images.nbytes for each in decoded},
    )


def _set_up(trial: Trial) -> float:
    """Set the model up as a training does, and return the seconds that this takes there."""
    seed_part(trial.config.seed, "training")
    trial.model.to(memory_format=torch.channels_last)
    loader = trial.data.loader("train", batch_size=trial.config.trainer.batch_size)
    images = (batch["image"] for batch in islice(loader, 2))
    started = _now()
    trial.model.strategy_.setup(trial.model, images, statistics=trial.provenance.statistics)
    few, many = min(2, len(loader)), min(ESTIMATION_BATCHES, len(loader))
    taken = _now() - started
    return taken * many / few if trial.model.strategy_.reestimated else taken


class _Rehearsal(Feed):
    """A feed whose features are those of a single image, which stands for all others."""

    view = 0.0  # seconds in which the features of one are computed

    def extract(self) -> dict[Split, tuple[float, int]]:
        """Return the seconds and bytes that the features of each split will take."""
        data, how, views = self.trial.data, self.trial.transform, self._views("train")
        batch = self.trial.config.trainer.batch_size
        few = data.division.train[: BATCHES * batch]
        loader = data.views(few, how, count=views, batch_size=batch, workers=self.workers)
        self.view = _timed(self._look, loader)
        features = {}
        for split in SPLITS:
            count = len(getattr(data.division, split)) * self._views(split)
            size = size_estimate(data, split, self.extractor, transform=how, views=views)
            features[split] = (count * self.view, size)
        return features

    def _look(self, batch: Batch) -> None:
        self.found = self.extractor(batch["image"])

    def _views(self, split: Split) -> int:
        random = split == "train" and self.trial.transform.random
        return self.trial.config.features.views if random else 1

    def _features(self, split: Split) -> Features:
        views, data = self._views(split), self.trial.data
        arrays = {k: np.repeat(v[:1, None], views, axis=1) for k, v in self.found.items()}
        rows = np.zeros(len(data.decoded.records), dtype=np.int64)
        return Features(arrays, rows, data, self.trial.transform if split == "train" else None)


def _step(feed: Feed, settings: machine.Machine) -> tuple[float, int]:
    """Return the seconds of an optimizer step, and how many there are in an epoch."""
    config = feed.trial.config.trainer
    ends: list[float] = []  # of each part of a batch
    loader = feed.train(Parts(config.accumulate, config.devices))
    trainer = trainer_of(
        settings,
        max_epochs=-1,
        max_steps=BATCHES,  # a strategy goes through its phases, as if these were all
        limit_val_batches=0,
        gradient_clip_val=config.gradient_clip,
        accumulate_grad_batches=config.accumulate,
        callbacks=[LambdaCallback(on_train_batch_end=lambda *_: ends.append(_now()))],
    )
    with machine.threads(1 if feed.light else torch.get_num_threads()):
        trainer.fit(feed.trial.model, loader, feed.ordered("val"))
    taken = (ends[-1] - ends[config.accumulate - 1]) / (BATCHES - 1)
    return taken, len(loader) // config.accumulate


def _judged(feed: Feed, settings: machine.Machine) -> float:
    """Return the seconds in which the model judges one image, or its features."""
    device, bf16 = device_of(settings), settings.precision.value == "bf16"
    model = feed.trial.model.to(device).eval()

    @torch.no_grad()
    def work(batch: Batch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            model.step(move_data_to_device(batch, device))

    return _timed(work, feed.ordered("val"))


def _timed(work: Callable[[Batch], None], loader: DataLoader[Batch]) -> float:
    """Return the seconds for one image, reading included."""
    batches = islice(chain.from_iterable(repeat(loader)), BATCHES)  # there may be a single one
    work(next(batches))
    started, count = _now(), 0
    for batch in batches:
        work(batch)
        count += len(batch["index"])
    return (_now() - started) / count


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()  # it may not have done yet what it was told
    return time.perf_counter()

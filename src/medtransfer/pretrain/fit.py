"""One pre-training: built before a run is opened, executed inside it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from medtransfer import machine
from medtransfer.backbones import weights
from medtransfer.backbones.base import Backbone
from medtransfer.config import PretrainConfig, build
from medtransfer.console import Reporter
from medtransfer.pretrain.base import Batches, Pretraining, Source
from medtransfer.quiet import quiet_libraries
from medtransfer.seeding import seed_part
from medtransfer.tasks.optimizing import optimizer_factory
from medtransfer.tasks.schedulers import Scheduler
from medtransfer.tracking.runs import Run

LOG_EVERY = 20  # steps


@dataclass(frozen=True)
class Prepared:
    """A pre-training that is ready to run."""

    source: Source
    backbone: Backbone
    module: Pretraining


def prepare(config: PretrainConfig) -> Prepared:
    """Build every part.

    Raises:
        MedtransferError: For anything that the user can mend.
    """
    quiet_libraries()
    make = partial(build, trusted=config.trusted_modules)
    source = make(config.source, Source)
    seed_part(config.seed, "backbone")
    backbone = make(config.backbone, Backbone, image_size=source.image_size)
    seed_part(config.seed, "head")
    module = Pretraining(
        source.learner(backbone),
        make(config.scheduler, Scheduler),
        optimizer_factory(config.optimizer, config.trusted_modules),
    )
    return Prepared(source, backbone, module)


def fit(
    config: PretrainConfig, prepared: Prepared, run: Run, path: Path, **known: str
) -> dict[str, Any]:
    """Train, and write the backbone to one file.

    Args:
        config: The configuration.
        prepared: What `prepare` built.
        run: The open MLflow run.
        path: Where the weights go.
        **known: What else to write into the header of the file.

    Returns:
        The provenance that the file carries.
    """
    settings = machine.resolve(config.trainer)
    torch.set_num_threads(int(settings.threads.value))
    backbone = prepared.backbone.to(memory_format=torch.channels_last)
    steps, size = config.trainer.max_steps, config.trainer.batch_size
    batches = Batches(prepared.source, size, backbone.channels_in, steps, config.seed)
    trainer = pl.Trainer(
        accelerator=str(settings.accelerator.value),
        devices=config.trainer.devices,
        precision=machine.lightning_precision(settings.precision.value),
        max_steps=steps,
        max_epochs=1,
        gradient_clip_val=config.trainer.gradient_clip,
        callbacks=[Recorder(run)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started = time.perf_counter()
    seed_part(config.seed, "training")
    trainer.fit(prepared.module, batches.loader(int(settings.workers.value)))
    seconds = time.perf_counter() - started
    run.metrics({"cost/train_seconds": seconds, "cost/steps": float(steps)})

    provenance = {
        **known,
        "trained_on": prepared.source.trained_on,
        "licence": prepared.source.licence,
        "images": steps * size,
    }
    weights.save(backbone.cpu(), path, **provenance)
    return {**provenance, "file": str(path), "file_sha256": weights.hash_file(path)}


class Recorder(Callback):
    """Sends the loss to the run and to the screen."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """See Lightning's hook of this name."""
        step = trainer.global_step
        if step % LOG_EVERY and step != trainer.max_steps:
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.run.metrics(values, step=step)
        if Reporter.active is not None:
            Reporter.active.advance(step, trainer.max_steps, values)

"""One pre-training: built before a run is opened, executed inside it, resumed where it ended."""

from __future__ import annotations

import hashlib
import json
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
from medtransfer.backbones.load import load_backbone
from medtransfer.components import build
from medtransfer.config import PretrainConfig
from medtransfer.console import Reporter
from medtransfer.data.base import Dataset
from medtransfer.data.loading import Data
from medtransfer.data.seen import Seen
from medtransfer.errors import WeightsError
from medtransfer.pretrain.base import Batches, Learner, Material, Pretraining, Source
from medtransfer.pretrain.images import Images
from medtransfer.quiet import quiet_libraries
from medtransfer.seeding import derive, seed_part
from medtransfer.tasks.optimizing import MakeOptimizer, optimizer_factory
from medtransfer.tasks.schedulers import Scheduler
from medtransfer.tracking.runs import Run, open_run

LOG_EVERY = 20  # steps
MEASURED = 512  # images, at most, that a learnt stage is measured on

RECIPE = ("seed", "backbone", "source", "optimizer", "scheduler", "trainer")
NOT_RECIPE = ("accelerator", "devices", "threads", "workers", "checkpoint_every")


@dataclass(frozen=True)
class Prepared:
    """A pre-training that is ready to run.

    Attributes:
        config: Its configuration.
        material: What the batches are made of.
        learner: The backbone, with whatever it needs to learn.
        schedule: How the learning rate moves, in each stage.
        make_optimizer: Builds each stage's optimizer.
        provenance: What is known of the weights that it makes.
        recipe: Hash of what decides them.
    """

    config: PretrainConfig
    material: Material
    learner: Learner
    schedule: Scheduler
    make_optimizer: MakeOptimizer
    provenance: dict[str, Any]
    recipe: str


def prepare(config: PretrainConfig) -> Prepared:
    """Build every part.

    Raises:
        MedtransferError: For anything that the user can mend.
    """
    quiet_libraries()
    make = partial(build, trusted=config.trusted_modules)
    source = make(config.source, Source)
    images = None
    if config.dataset is not None:
        dataset = make(config.dataset, Dataset)
        data = Data.open(
            dataset, cache=config.paths.cache, seed=config.seed, waived=config.audit.waive
        )
        images = Images(data, config.seed)
    material = source.material(images)
    known = material.describe()
    near = known.get("data_hash", ""), known.get("split_hash", "")
    backbone, start = load_backbone(
        config.backbone,
        config.weights,
        image_size=material.image_size,
        channels=images.data.spec.channels if images else None,
        near=near,
        seed=config.seed,
        trusted=config.trusted_modules,
    )
    seed_part(config.seed, "head")
    learner = source.learner(backbone, material)
    values = config.model_dump(mode="json", include=set(RECIPE))
    values["trainer"] = {k: v for k, v in values["trainer"].items() if k not in NOT_RECIPE}
    counts = images.data.spec.train_counts if images else None
    content = [near, counts, material.image_size, start.sha256]
    text = json.dumps([values, content], sort_keys=True, default=str)
    provenance = {
        **known,
        "images": config.trainer.max_steps * config.trainer.batch_size * len(learner.stages),
        "started_from": start.source,
        "seen": _merged(known.get("seen", {}), start.seen),
    }
    return Prepared(
        config=config,
        material=material,
        learner=learner,
        schedule=make(config.scheduler, Scheduler),
        make_optimizer=optimizer_factory(config.optimizer, config.trusted_modules),
        provenance=provenance,
        recipe=hashlib.sha256(text.encode()).hexdigest()[:12],
    )


def progress(path: Path) -> tuple[int, int]:
    """Return the stage and the step at which a file's pre-training goes on; zeros from the start.

    Args:
        path: Where the weights go; the checkpoint lies beside it.

    Raises:
        WeightsError: If the checkpoint is damaged.
    """
    kept = _kept(path)
    if not kept.is_file():
        return 0, 0
    try:
        content = torch.load(kept, map_location="cpu", weights_only=True)
        return int(content["stage"]), int(content["global_step"])
    except Exception as error:  # the unpickler stumbles over damaged files in many ways
        lines = str(error).splitlines()
        raise WeightsError(
            f"checkpoint '{kept}' of an interrupted pre-training is damaged:"
            f" {lines[0] if lines else type(error).__name__}",
            remedy="delete it: the pre-training then starts anew",
        ) from None


def fit(
    prepared: Prepared, run: Run, path: Path, *, begin: tuple[int, int] = (0, 0), **known: str
) -> dict[str, Any]:
    """Train stage after stage, and write the backbone to one file.

    A checkpoint lies beside the file until it is there: what was interrupted goes on from it, to
    the same weights.

    Args:
        prepared: What `prepare` built.
        run: The open MLflow run; each of several stages has a run of its own below it.
        path: Where the weights go.
        begin: The stage and the step to go on from, as `progress` tells them.
        **known: What else to write into the header of the file.

    Returns:
        The provenance that the file carries.
    """
    settings = machine.resolve(prepared.config.trainer)
    torch.set_num_threads(int(settings.threads.value))
    learner = prepared.learner.to(memory_format=torch.channels_last)
    kept = _kept(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    at, done = begin
    started = time.perf_counter()
    for stage in range(at, len(learner.stages)):
        resumed = done if stage == at else 0
        if len(learner.stages) == 1:
            _learn(prepared, stage, settings, run, kept, done=resumed)
            continue
        name = learner.stages[stage]
        with open_run(run.store, name, {"phase": "pretrain"}, parent=run.run_id) as nested:
            _learn(prepared, stage, settings, nested, kept, done=resumed)
    steps = prepared.config.trainer.max_steps * len(learner.stages)
    run.metrics({"cost/train_seconds": time.perf_counter() - started, "cost/steps": float(steps)})
    provenance = {**prepared.provenance, **known, "recipe": prepared.recipe}
    weights.save(learner.backbone.cpu(), path, **provenance)
    kept.unlink(missing_ok=True)
    return {**provenance, "file": str(path), "file_sha256": weights.hash_file(path)}


def _learn(
    prepared: Prepared,
    stage: int,
    settings: machine.Machine,
    run: Run,
    kept: Path,
    *,
    done: int,
) -> None:
    """Train one stage, from its start or, where some steps are done, from the checkpoint."""
    config, learner = prepared.config, prepared.learner
    seed = derive(config.seed, "stage", stage)
    numbers = range(done, config.trainer.max_steps)
    channels = learner.backbone.channels_in
    batches = Batches(prepared.material, config.trainer.batch_size, channels, numbers, seed)
    seed_part(config.seed, f"stage {stage}")
    module = Pretraining(learner, stage, prepared.schedule, prepared.make_optimizer, seed)
    trainer = pl.Trainer(
        accelerator=str(settings.accelerator.value),
        devices=config.trainer.devices,
        precision=machine.lightning_precision(settings.precision.value),
        max_steps=config.trainer.max_steps,
        max_epochs=1,
        gradient_clip_val=config.trainer.gradient_clip,
        callbacks=[Recorder(run), Keeper(kept, config.trainer.checkpoint_every)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = batches.loader(int(settings.workers.value))
    trainer.fit(module, loader, ckpt_path=kept if done else None)
    material = prepared.material
    if isinstance(material, Images):
        learner.eval()
        with torch.no_grad():
            seen, unseen = (material.some(split, MEASURED) for split in ("train", "val"))
            run.metrics(learner.measure(seen, unseen))


class Recorder(Callback):
    """Sends what a learner tells of its steps to the run and to the screen."""

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


class Keeper(Callback):
    """Keeps a checkpoint of the stage, from which an interrupted pre-training goes on.

    Args:
        path: The file; it is replaced whole.
        every: Steps between two checkpoints; one more is kept at the end of the stage.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path = path
        self.every = every

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """See Lightning's hook of this name."""
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            partial = self.path.with_suffix(".partial")
            trainer.save_checkpoint(partial)
            partial.replace(self.path)


def _kept(path: Path) -> Path:
    """Return where the checkpoint of a file's pre-training lies."""
    return path.with_suffix(".ckpt")


def _merged(*seen: Seen) -> Seen:
    keys = {key for part in seen for key in part}
    return {key: sorted({v for part in seen for v in part.get(key, ())}) for key in sorted(keys)}

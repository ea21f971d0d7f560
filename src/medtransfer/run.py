"""The composition root: the only file that knows every part.

A trial is prepared before any run is opened, so that a user's mistake leaves nothing behind:
seed, data, backbone and weights, head, strategy, task. Then it is executed inside one MLflow run.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from medtransfer import machine
from medtransfer.backbones.base import Backbone
from medtransfer.backbones.weights import Provenance, Weights
from medtransfer.config import Component, TrainConfig, build, check_arguments, locate
from medtransfer.console import Reporter
from medtransfer.data.base import Dataset
from medtransfer.data.loading import Data
from medtransfer.data.transforms import Transform
from medtransfer.errors import ConfigError
from medtransfer.heads.base import Head
from medtransfer.quiet import quiet_libraries
from medtransfer.seeding import seed_part
from medtransfer.strategies.base import Strategy
from medtransfer.tasks.base import Direction, Stage, Task, metric_name
from medtransfer.tasks.losses import Loss
from medtransfer.tasks.optimizing import MakeOptimizer, optimizer_factory
from medtransfer.tasks.schedulers import Scheduler
from medtransfer.tracking import environment
from medtransfer.tracking.runs import Run

# What decides a trial's result. Places, names and the machine's own settings do not.
IDENTITY = (
    "seed",
    "test",
    "task",
    "dataset",
    "transform",
    "backbone",
    "strategy",
    "head",
    "loss",
    "optimizer",
    "scheduler",
    "trainer",
)
NOT_IDENTITY = {
    "dataset": ("root", "split"),  # their content is hashed instead
    "strategy": ("search_space",),
    "trainer": ("accelerator", "devices", "threads", "workers", "checkpoint"),
}


@dataclass(frozen=True)
class Trial:
    """A trial that is ready to run.

    Attributes:
        config: Its configuration.
        data: Its data, decoded and divided.
        transform: What is done to training images.
        model: The task, with its backbone, weights and head.
        provenance: Of the weights.
        metric: The validation metric that picks the epoch, without its prefix.
        mode: Whether more or less of it is better.
        trial_id: Hash of what decides the result.
    """

    config: TrainConfig
    data: Data
    transform: Transform
    model: Task
    provenance: Provenance
    metric: str
    mode: Direction
    trial_id: str


@dataclass(frozen=True)
class Choices:
    """The light parts of a trial, checked; without data or weights."""

    task: type[Task]
    dataset: Dataset
    transform: Transform
    strategy: Strategy
    schedule: Scheduler
    make_optimizer: MakeOptimizer
    metric: str
    mode: Direction


def check(config: TrainConfig) -> Choices:
    """Check a configuration and the fit of its choices to each other.

    Raises:
        ConfigError: For the first thing that is wrong.
    """
    make = partial(build, trusted=config.trusted_modules)
    task, dataset = check_fit(config)
    make_optimizer = optimizer_factory(config.optimizer, config.trusted_modules)
    metric = (config.trainer.selection.metric or task.headline).removeprefix("val/")
    direction = task.direction(metric)
    return Choices(
        task=task,
        dataset=dataset,
        transform=make(config.transform, Transform),
        strategy=make(config.strategy, Strategy),
        schedule=make(config.scheduler, Scheduler),
        make_optimizer=make_optimizer,
        metric=metric,
        mode=config.trainer.selection.mode or direction,
    )


def check_all(configs: Iterable[TrainConfig]) -> None:
    """Check every trial of a sweep, and prepare one of each kind.

    Trials that share data, network and weights are one kind: if one can be prepared, all can.

    Raises:
        MedtransferError: For the first trial that could not start.
    """
    kinds: dict[str, TrainConfig] = {}
    for config in configs:
        check(config)
        parts = {"paths", "dataset", "backbone", "weights", "head", "loss"}
        kinds.setdefault(config.model_dump_json(include=parts), config)
    for config in kinds.values():
        prepare(config)


def prepare(config: TrainConfig) -> Trial:
    """Build every part of a trial.

    Raises:
        MedtransferError: For anything that the user can mend.
    """
    quiet_libraries()
    chosen = check(config)
    make = partial(build, trusted=config.trusted_modules)
    data = Data.open(chosen.dataset, cache=config.paths.cache, seed=config.seed)
    backbone, provenance = load_backbone(
        config.backbone, config.weights, data.spec.image_size, config.seed, config.trusted_modules
    )
    if backbone.channels_in != data.spec.channels:
        raise ConfigError(
            f"backbone.channels={backbone.channels_in} and dataset.channels={data.spec.channels}"
            " differ",
            remedy="set dataset.channels; the backbone follows it",
        )
    seed_part(config.seed, "head")
    head = make(
        config.head,
        Head,
        in_features=backbone.embedding_size,
        outputs=chosen.task.outputs_for(data.spec),
    )
    model = chosen.task(
        backbone=backbone,
        head=head,
        loss=make(config.loss, Loss, counts=data.spec.train_counts),
        strategy=chosen.strategy,
        schedule=chosen.schedule,
        optimizer=config.optimizer,
        make_optimizer=chosen.make_optimizer,
        spec=data.spec,
    )
    return Trial(
        config=config,
        data=data,
        transform=chosen.transform,
        model=model,
        provenance=provenance,
        metric=chosen.metric,
        mode=chosen.mode,
        trial_id=identify(config, data, provenance),
    )


def check_fit(config: TrainConfig) -> tuple[type[Task], Dataset]:
    """Return the task and the dataset, provided that the one can learn from the other.

    Raises:
        ConfigError: If the dataset lacks the annotation that the task needs.
    """
    task_class = locate(config.task["_target_"], Task, trusted=config.trusted_modules)
    check_arguments(task_class, Task, config.task, injected=inspect.signature(Task).parameters)
    dataset = build(config.dataset, Dataset, trusted=config.trusted_modules)
    if task_class.requires not in dataset.provides:
        raise ConfigError(
            f"task {task_class.__name__} learns from annotation '{task_class.requires}', which"
            f" dataset {type(dataset).__name__} lacks",
            choices=sorted(dataset.provides),
            remedy="choose a task for one of these annotations, or another dataset",
        )
    return task_class, dataset


def load_backbone(
    backbone: Component, weights: Component, image_size: int, seed: int, trusted: tuple[str, ...]
) -> tuple[Backbone, Provenance]:
    """Return a backbone with its weights, and where they come from."""
    source = build(weights, Weights, trusted=trusted)
    seed_part(seed, "backbone")
    built = build(backbone, Backbone, trusted=trusted, image_size=image_size)
    return built, source.load(built)


def execute(trial: Trial, run: Run) -> dict[str, float]:
    """Train, select and test a prepared trial, and log all of it.

    Args:
        trial: What to run.
        run: The open MLflow run.

    Returns:
        All final metrics, by their full names.
    """
    config, model = trial.config, trial.model
    settings = machine.resolve(config.trainer)
    torch.set_num_threads(int(settings.threads.value))
    _log_start(trial, run, settings)

    environment.reset_peak_memory()
    started = time.perf_counter()
    seed_part(config.seed, "training")
    model.to(memory_format=torch.channels_last)
    plain = partial(trial.data.loader, batch_size=config.trainer.batch_size)
    model.strategy_.setup(model, _images(plain("train")), statistics=trial.provenance.statistics)
    folder = config.paths.output / "checkpoints" / run.run_id
    best = ModelCheckpoint(
        dirpath=folder,
        filename="best",
        monitor=metric_name("val", trial.metric),
        mode=trial.mode,
        save_weights_only=True,
        enable_version_counter=False,
    )
    trainer = _trainer(trial, settings, [best, Recorder(run)])
    train_loader = trial.data.train_loader(
        trial.transform,
        batch_size=config.trainer.batch_size,
        workers=int(settings.workers.value),
        sampler=config.trainer.sampler,
    )
    trainer.fit(model, train_loader, plain("val"))
    seconds = time.perf_counter() - started

    saved = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
    model.load_state_dict(saved["state_dict"])
    if config.trainer.checkpoint == "none":
        Path(best.best_model_path).unlink()
        folder.rmdir()
    final = {"best/epoch": float(saved["epoch"])}
    final |= _evaluate(trial, run, trainer, "val", prefix="best")
    if config.test:
        final |= _evaluate(trial, run, trainer, "test", prefix="test")
        run.tags({"test_openings": 1})
    final |= {
        "cost/train_seconds": seconds,
        "cost/steps": float(trainer.global_step),
        "cost/trainable_parameters": float(_count(model, trainable=True)),
        "cost/parameters": float(_count(model, trainable=False)),
        "cost/peak_memory_mb": _peak_memory_mb(settings),
    }
    run.metrics(final)
    return final


class Recorder(Callback):
    """Sends the metrics of each epoch to the run and to the screen."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See Lightning's hook of this name."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values["train/lr"] = trainer.optimizers[0].param_groups[-1]["lr"]
        self.run.metrics(values, step=trainer.current_epoch)
        if Reporter.active is not None:
            assert isinstance(pl_module, Task)
            shown = ("train/loss", metric_name("val", pl_module.headline))
            Reporter.active.advance(
                trainer.current_epoch + 1,
                trainer.max_epochs or 0,
                {name: values[name] for name in shown if name in values},
            )


def identify(config: TrainConfig, data: Data, provenance: Provenance) -> str:
    """Return a hash of what decides a trial's result: white-listed keys, data, weights."""
    values = config.model_dump(mode="json", include=set(IDENTITY))
    for section, keys in NOT_IDENTITY.items():
        values[section] = {k: v for k, v in values[section].items() if k not in keys}
    content = [data.spec.data_hash, data.spec.split_hash, provenance.sha256]
    text = json.dumps([values, content], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _trainer(trial: Trial, settings: machine.Machine, callbacks: list[Callback]) -> pl.Trainer:
    config = trial.config.trainer
    if config.early_stopping.patience is not None:
        stop = EarlyStopping(
            metric_name("val", trial.metric),
            mode=trial.mode,
            patience=config.early_stopping.patience,
            min_delta=config.early_stopping.min_delta,
        )
        callbacks = [*callbacks, stop]
    return pl.Trainer(
        accelerator=str(settings.accelerator.value),
        devices=config.devices,
        precision=machine.lightning_precision(settings.precision.value),
        max_epochs=config.max_epochs,
        max_steps=config.max_steps or -1,
        gradient_clip_val=config.gradient_clip,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _evaluate(
    trial: Trial, run: Run, trainer: pl.Trainer, split: Stage, *, prefix: str
) -> dict[str, float]:
    """Score one split with the selected model and log the predictions of each of its cases."""
    loader = trial.data.loader(
        "test" if split == "test" else "val", batch_size=trial.config.trainer.batch_size
    )
    method = trainer.test if split == "test" else trainer.validate
    values = method(trial.model, loader, verbose=False)[0]
    with run.folder("predictions") as folder:
        predictions(trial, split).to_parquet(folder / f"{split}.parquet", index=False)
    return {f"{prefix}/{name.partition('/')[2]}": float(value) for name, value in values.items()}


def predictions(trial: Trial, split: Stage) -> pd.DataFrame:
    """Return one row for each case of a split that was just scored."""
    kept = trial.model.kept[split]
    records = [trial.data.decoded.records[i] for i in kept["index"].tolist()]
    frame = pd.DataFrame(
        {
            "sample_id": [record.sample_id for record in records],
            "group_id": [record.group_id for record in records],
            "exam_id": [record.exam_id for record in records],
            "split": split,
            "target": kept["target"].numpy(),
        }
    )
    for k, name in enumerate(trial.data.spec.class_names):
        frame[f"score_{name}"] = kept["scores"][:, k].float().numpy()
    return frame


def _log_start(trial: Trial, run: Run, settings: machine.Machine) -> None:
    spec = trial.data.spec
    run.tags(
        {
            "trial_id": trial.trial_id,
            "split_hash": spec.split_hash,
            "data_hash": spec.data_hash,
            "weights_sha256": trial.provenance.sha256,
            "test_openings": 0,
        }
    )
    resolved = {
        name: {"value": choice["value"], "why": choice["why"]}
        for name, choice in asdict(settings).items()
    }
    around = {**environment.describe(), "machine": resolved}
    run.store.client.set_tag(
        run.run_id, "mlflow.source.git.commit", around["git_commit"] or "not a repository"
    )
    run.json(around, "environment.json")
    run.json(asdict(trial.provenance), "weights.json")
    ids = [record.sample_id for record in trial.data.decoded.records]
    run.json(trial.data.division.ids(ids), "split.json")
    summary = {**asdict(spec), "skipped": trial.data.decoded.skipped}
    run.json(summary, "data.json")


def _images(loader: torch.utils.data.DataLoader[Any]) -> Iterator[Tensor]:
    return (batch["image"] for batch in loader)


def _count(model: Task, *, trainable: bool) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def _peak_memory_mb(settings: machine.Machine) -> float:
    if settings.accelerator.value == "gpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return environment.peak_memory_mb()

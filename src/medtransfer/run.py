"""The composition root: the only file that knows every part.

A trial is prepared before any run is opened, so that a user's mistake leaves nothing behind:
seed, data, backbone and weights, head, strategy, task. `execution` runs it inside one MLflow run.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from medtransfer import machine
from medtransfer.app import config_dir
from medtransfer.backbones.base import Backbone
from medtransfer.backbones.load import load_backbone
from medtransfer.backbones.weights import Provenance
from medtransfer.components import build, check_arguments, locate
from medtransfer.config import TrainConfig
from medtransfer.data.base import Dataset, DataSpec
from medtransfer.data.external import open_external
from medtransfer.data.loading import Data
from medtransfer.data.seen import refuse_seen
from medtransfer.data.transforms import Transform
from medtransfer.errors import ConfigError
from medtransfer.heads.base import Head
from medtransfer.heads.exam import ExamHead
from medtransfer.quiet import quiet_libraries
from medtransfer.seeding import seed_part
from medtransfer.strategies.base import Strategy
from medtransfer.strategies.solved import Solved
from medtransfer.tasks.base import Direction, Task
from medtransfer.tasks.losses import Loss
from medtransfer.tasks.optimizing import optimizer_factory
from medtransfer.tasks.schedulers import Scheduler

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
    "features",
)
NOT_IDENTITY = {
    # what they lead to is hashed instead
    "dataset": ("root", "file", "split", "identifiers", "salt", "download"),
    "strategy": ("search_space",),
    "features": ("max_gb",),
    "trainer": ("accelerator", "devices", "threads", "workers", "save_every", "checkpoint"),
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
            external: Data of another site, for a second test.
        head_arguments: What the head was told of the backbone and the data.
    """

    config: TrainConfig
    data: Data
    transform: Transform
    model: Task
    provenance: Provenance
    metric: str
    mode: Direction
    trial_id: str
    external: Data | None = None
    head_arguments: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return what must be known beside the configuration to build the model without data.

        Keys: `spec`, the `DataSpec`; `head`, what the head was told; `near`, where weights that
        were pre-trained on these data are found.
        """
        plain = {k: _tensor(v) for k, v in self.head_arguments.items()}
        return {"spec": asdict(self.data.spec), "head": plain, "near": _near(self.data)}


@dataclass(frozen=True)
class Choices:
    """The light parts of a trial, checked; without data or weights."""

    task: type[Task]
    dataset: Dataset
    transform: Transform
    strategy: Strategy
    metric: str
    mode: Direction


def check(config: TrainConfig) -> Choices:
    """Check a configuration and the fit of its choices to each other.

    Raises:
        ConfigError: For the first thing that is wrong.
    """
    make = partial(build, trusted=config.trusted_modules)
    task, dataset = check_fit(config)
    strategy = make(config.strategy, Strategy)
    _check_strategy(strategy, task, config.features.mode)
    if config.trainer.sampler == "balanced" and task.requires == "labels":
        raise ConfigError(
            "trainer.sampler=balanced draws classes alike, and an image has several labels",
            remedy="loss.class_weights=balanced",
        )
    _check_devices(config)
    optimizer_factory(config.optimizer, config.trusted_modules)
    make(config.scheduler, Scheduler)
    metric = (config.trainer.selection.metric or task.headline).removeprefix("val/")
    direction = task.direction(metric)
    if task.requires in {"mask", "boxes"}:
        _check_class_of(metric, task, dataset.foreground())
    return Choices(
        task=task,
        dataset=dataset,
        transform=make(config.transform, Transform),
        strategy=strategy,
        metric=metric,
        mode=config.trainer.selection.mode or direction,
    )


def check_all(configs: Iterable[TrainConfig]) -> None:
    """Check every trial of a sweep, and prepare one of each kind.

    Trials that share task, data, network and weights are one kind: if one can be prepared, all can,
    provided that the network bears their strategies.

    Raises:
        MedtransferError: For the first trial that could not start.
    """
    kinds: dict[str, tuple[TrainConfig, list[Strategy]]] = {}
    for config in configs:
        strategy = check(config).strategy
        parts = {"paths", "task", "dataset", "backbone", "weights", "head", "loss"}
        kinds.setdefault(config.model_dump_json(include=parts), (config, []))[1].append(strategy)
    for config, strategies in kinds.values():
        model = prepare(config).model
        for strategy in strategies:
            strategy.trainable(model)


def prepare(config: TrainConfig) -> Trial:
    """Build every part of a trial.

    Raises:
        MedtransferError: For anything that the user can mend.
    """
    quiet_libraries()
    chosen = check(config)
    data = Data.open(
        chosen.dataset,
        chosen.task.requires,
        cache=config.paths.cache,
        seed=config.seed,
        waived=config.audit.waive,
        test=config.test,
    )
    external = _external(config, data)
    backbone, provenance = load_backbone(
        config.backbone,
        config.weights,
        image_size=data.spec.image_size,
        channels=data.spec.channels,
        near=_near(data),
        seed=config.seed,
        trusted=config.trusted_modules,
    )
    refuse_seen(data, provenance.seen, f"the weights of '{provenance.source}'")
    told = chosen.task.head_arguments(backbone, data)
    model = assemble(config, data.spec, backbone, told, chosen.strategy)
    head = model.head
    model.require_metric(chosen.metric)
    if isinstance(chosen.strategy, Solved) and isinstance(head, ExamHead) and not head.fixed:
        raise ConfigError(
            f"strategy {type(chosen.strategy).__name__} solves a head from one vector for each"
            " exam, and this pooling learns how to make it",
            remedy="head.pooling=mean or max, or a strategy that trains in steps",
        )
    chosen.strategy.trainable(model)  # a network may lack what the strategy asks for
    if config.features.mode == "cached" and not model.whole:
        raise ConfigError(
            "features.mode=cached, and training takes patches, of which there are too many to keep",
            remedy="features.mode=auto",
        )
    return Trial(
        config=config,
        data=data,
        transform=chosen.transform,
        model=model,
        provenance=provenance,
        metric=chosen.metric,
        mode=chosen.mode,
        trial_id=identify(config, data, provenance, external),
        external=external,
        head_arguments=told,
    )


def assemble(
    config: TrainConfig,
    spec: DataSpec,
    backbone: Backbone,
    head_arguments: Mapping[str, Any],
    strategy: Strategy,
) -> Task:
    """Return a task with its backbone, a new head, and all that it trains by."""
    make = partial(build, trusted=config.trusted_modules)
    seed_part(config.seed, "head")
    return make(
        config.task,
        Task,
        backbone=backbone,
        head=make(config.head, Head, **head_arguments),
        loss=None if config.loss is None else make(config.loss, Loss, counts=spec.train_counts),
        strategy=strategy,
        schedule=make(config.scheduler, Scheduler),
        optimizer=config.optimizer,
        make_optimizer=optimizer_factory(config.optimizer, config.trusted_modules),
        spec=spec,
    )


def _near(data: Data) -> tuple[str, str]:
    return data.decoded.images_hash, data.spec.split_hash


def _tensor(value: Any) -> Any:
    """Return an array as a tensor, and all else as it is: what can be read without being run."""
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _external(config: TrainConfig, data: Data) -> Data | None:
    if config.external is None or not config.test:
        return None
    dataset = build(config.external, Dataset, trusted=config.trusted_modules)
    return open_external(dataset, data, cache=config.paths.cache, waived=config.audit.waive)


def check_fit(config: TrainConfig) -> tuple[type[Task], Dataset]:
    """Return the task and the dataset, provided that the one can learn from the other.

    Raises:
        ConfigError: If the dataset lacks the annotation that the task needs.
    """
    task_class = locate(config.task["_target_"], Task, trusted=config.trusted_modules)
    check_arguments(task_class, Task, config.task, injected=inspect.signature(Task).parameters)
    dataset = build(config.dataset, Dataset, trusted=config.trusted_modules)
    name = task_class.__name__
    _check_part(config, "head", task_class.head_base)
    if config.loss is None and task_class.loss_base is not None:
        raise ConfigError(f"task {name} wants a loss", remedy="medtransfer list loss")
    if config.loss is not None and task_class.loss_base is None:
        raise ConfigError(
            f"task {name} has losses of its own, weighed by head.weights",
            remedy="leave loss=... out",
        )
    if config.loss is not None and task_class.loss_base is not None:
        _check_part(config, "loss", task_class.loss_base)
    if task_class.requires not in dataset.provides:
        raise ConfigError(
            f"task {name} learns from annotation '{task_class.requires}', which"
            f" dataset {type(dataset).__name__} lacks",
            choices=sorted(dataset.provides),
            remedy="choose a task for one of these annotations, or another dataset",
        )
    return task_class, dataset


def _check_part(config: TrainConfig, group: Literal["head", "loss"], wanted: type) -> None:
    """Refuse a head or a loss that was made for another task."""

    def found(node: Any) -> type[nn.Module]:
        return locate(node["_target_"], nn.Module, trusted=config.trusted_modules)

    part = found(getattr(config, group))
    if not issubclass(part, wanted):
        files = sorted((config_dir() / group).glob("*.yaml"))
        raise ConfigError(
            f"{group} {part.__name__} was not made for this task",
            choices=[f.stem for f in files if issubclass(found(OmegaConf.load(f)), wanted)],
            remedy=f"choose one of these, or leave {group}=... out",
        )


def _check_class_of(metric: str, task: type[Task], names: tuple[str, ...]) -> None:
    """Refuse the metric of a class that there is not; a task knows its classes only from data."""
    whole, _, name = metric.partition("_")
    choices = [f"{whole}_{each}" for each in names]
    try:
        task.direction(choices[0])
    except ConfigError:
        return  # it has no metric of this name for each class
    if name and name not in names:
        raise ConfigError(f"there is no class '{name}'", value=metric, choices=choices)


def _check_devices(config: TrainConfig) -> None:
    wanted = config.trainer.devices
    if wanted > 1 and machine.resolve(config.trainer).accelerator.value == "gpu":
        there = torch.cuda.device_count()
        if there < wanted:
            raise ConfigError(
                f"trainer.devices={wanted}, and there are {there} GPUs",
                remedy=f"trainer.devices={max(1, there)}",
            )


def _check_strategy(strategy: Strategy, task: type[Task], mode: str) -> None:
    name = type(strategy).__name__
    if isinstance(strategy, Solved) and task.requires == "labels":
        raise ConfigError(
            f"strategy {name} solves for one class of each image, and task {task.__name__} has"
            " several labels",
            remedy="choose a strategy that trains in steps, such as feature_extraction",
        )
    if isinstance(strategy, Solved) and task.represents != "embedding":
        raise ConfigError(
            f"strategy {name} solves a head from one vector for each image, and task"
            f" {task.__name__} has none",
            remedy="choose a strategy that trains in steps, such as feature_extraction",
        )
    if mode == "cached" and not strategy.cacheable:
        raise ConfigError(
            f"features.mode=cached, and strategy {name} changes the backbone",
            remedy="features.mode=auto computes features once where that is possible",
        )


def identify(
    config: TrainConfig, data: Data, provenance: Provenance, external: Data | None = None
) -> str:
    """Return a hash of what decides a trial's result: white-listed keys, data, weights."""
    values = config.model_dump(mode="json", include=set(IDENTITY))
    for section, keys in NOT_IDENTITY.items():
        values[section] = {k: v for k, v in values[section].items() if k not in keys}
    if config.trainer.accumulate == 1:  # as it was before there was such a key
        del values["trainer"]["accumulate"]
    content = [data.spec.data_hash, data.spec.split_hash, provenance.sha256]
    content += [] if external is None else [external.spec.data_hash]
    text = json.dumps([values, content], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

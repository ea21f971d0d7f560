"""A trial that is done, opened again: from its run and what it left on disk, without its data."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from medtransfer import config as schema
from medtransfer import machine
from medtransfer.analysis.load import load_study
from medtransfer.backbones.load import load_backbone
from medtransfer.backbones.weights import Provenance
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data.base import DataSpec
from medtransfer.errors import ConfigError, StoreError, WeightsError
from medtransfer.feed import device_of
from medtransfer.quiet import quiet_libraries
from medtransfer.run import assemble
from medtransfer.strategies.base import Strategy
from medtransfer.tasks.base import Task
from medtransfer.tracking.runs import TAG
from medtransfer.tracking.spool import KEY

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KEPT = ("best.ckpt", "last.ckpt")


@dataclass(frozen=True)
class Trained:
    """A trained model that can be used.

    Attributes:
        run: Its run in the store.
        config: What it was trained by.
        model: In eval mode, on the device that this machine offers.
        spec: Of the data that it was trained on.
        provenance: Of the weights that its backbone started from.
        settings: How it computes here.
    """

    run: Run
    config: TrainConfig
    model: Task
    spec: DataSpec
    provenance: Provenance
    settings: machine.Machine

    @property
    def run_id(self) -> str:
        """MLflow's id."""
        return str(self.run.info.run_id)

    @property
    def name(self) -> str:
        """What MLflow's pages call the run."""
        return str(self.run.info.run_name)

    @property
    def task(self) -> str:
        """The choice of group `task`."""
        return str(self.run.data.tags.get(TAG + "task", ""))


def open_trained(
    client: MlflowClient, name: str, output: Path, *, trusted: Collection[str] = ()
) -> Trained:
    """Return the model of a finished trial, as it was tested.

    Args:
        client: Of the store that knows the run.
        name: Id of the trial; or id or name of a study, whose trial with the best score on
            validation data is meant.
        output: Where this program keeps its files; the run's own place is looked into as well.
        trusted: Modules, besides this package, that may be run.

    Raises:
        StoreError: If there is no such run, it is no finished trial, or nothing was kept of it.
        ConfigError: If it wants modules that are not trusted, or is of another version.
        WeightsError: If what its backbone started from cannot be had any more.
    """
    quiet_libraries()
    run = _find(client, name)
    config = _config(client, run, trusted)
    content = _content(run, [output, config.paths.output])
    model, provenance = rebuild(config, content, run.data.tags.get(TAG + "weights_sha256"))
    settings = machine.resolve(config.trainer)
    torch.set_num_threads(int(settings.threads.value))
    model.to(device_of(settings), memory_format=torch.channels_last).eval()
    return Trained(run, config, model, model.spec, provenance, settings)


def rebuild(
    config: TrainConfig, content: dict[str, Any], weights_sha256: str | None
) -> tuple[Task, Provenance]:
    """Return the model that a checkpoint holds, and where its backbone's values come from.

    Args:
        config: Of the trial.
        content: Of the checkpoint; see `Trial.facts` and `Shelf.keep`.
        weights_sha256: What the weights must be, where the checkpoint does not hold them.

    Raises:
        WeightsError: If the weights cannot be had any more, or do not belong to it.
    """
    spec = DataSpec(**content["spec"])
    backbone, provenance = load_backbone(
        config.backbone,
        config.weights,
        image_size=spec.image_size,
        channels=spec.channels,
        near=tuple(content["near"]),
        seed=config.seed,
        trusted=config.trusted_modules,
    )
    strategy = build(config.strategy, Strategy, trusted=config.trusted_modules)
    model = assemble(config, spec, backbone, content["head"], strategy)
    strategy.reopen(model)
    _fill(model, content["state_dict"], weights_sha256, provenance)
    return model, provenance


def find_config(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """Return the configuration that a run has logged, as plain values.

    Raises:
        StoreError: If it has logged none.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = client.download_artifacts(run_id, "config.yaml", scratch)
        except Exception:  # stores say in many ways that there is no such file
            raise StoreError(
                f"run '{run_id}' has no configuration", remedy="give the id of a trial"
            ) from None
        values: dict[str, Any] = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return values


def _find(client: MlflowClient, name: str) -> Run:
    """Return the run of a trial, or of the trial of a study that was best on validation data."""
    study = load_study(client, name)
    finished = [trial for trial in study.trials if trial.status == "FINISHED"]
    if not finished:
        raise StoreError(f"'{name}' has no finished trial", remedy="give one that is FINISHED")
    best = max(finished, key=lambda trial: trial.best.get(study.metric, -math.inf))
    run = client.get_run(best.run_id)
    if (phase := run.data.tags.get(TAG + "phase")) not in {"final", "tuning"}:
        raise StoreError(
            f"run '{name}' is no trial: it is of phase '{phase}'",
            remedy="give the id of a trial, or of a study",
        )
    return run


def _config(client: MlflowClient, run: Run, trusted: Collection[str]) -> TrainConfig:
    config = schema.check(TrainConfig, find_config(client, run.info.run_id))
    # the store is no command line: what it names is not run because it names it
    strange = [name for name in config.trusted_modules if name not in trusted]
    if strange:
        raise ConfigError(
            f"trial '{run.info.run_id}' was trained with code of {', '.join(strange)}",
            remedy=f"if you trust it, add 'trusted_modules=[{','.join(config.trusted_modules)}]'",
        )
    return config


def _content(run: Run, outputs: Collection[Path]) -> dict[str, Any]:
    """Return what was kept of a trial."""
    key = run.data.tags.get(KEY, run.info.run_id)
    places = [output / "checkpoints" / key / name for output in outputs for name in KEPT]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise StoreError(
            f"no checkpoint of trial '{run.info.run_id}' is in '{places[0].parent}'",
            remedy="train with trainer.checkpoint=best, and set paths.output to where it was"
            " trained",
        )
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # there is no end to what a damaged file can be
        raise WeightsError(
            f"'{path}' is damaged: {type(error).__name__}", remedy="train again"
        ) from None
    if "spec" not in content:
        raise WeightsError(
            f"'{path}' was written by an earlier version, which kept too little of the model",
            remedy="train again, or use that version",
        )
    return content


def _fill(
    model: Task, values: dict[str, Any], expected: str | None, provenance: Provenance
) -> None:
    """Put what was kept into a model whose backbone has its weights.

    Raises:
        WeightsError: If the two do not belong together.
    """
    missing, unexpected = model.load_state_dict(values, strict=False)
    brought = [name for name in missing if name.startswith("backbone.")]
    if unexpected or len(brought) < len(missing):
        name = next(iter([*unexpected, *(set(missing) - set(brought))]))
        raise WeightsError(
            f"what was kept of the trial does not fit its configuration (first '{name}')",
            remedy="use the version of this program that it was trained with",
        )
    if brought and provenance.sha256 != expected:
        raise WeightsError(
            f"weights '{provenance.source}' are not what the trial has started from",
            remedy="put back the weights with which it was trained",
        )

"""Training a backbone on other images; what is kept is one weights file with its provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medtransfer import console
from medtransfer.app import App, Composed
from medtransfer.commands.train import log_config, open_configured
from medtransfer.config import PretrainConfig
from medtransfer.console import Reporter
from medtransfer.tracking.runs import open_run, reason

if TYPE_CHECKING:
    from omegaconf import DictConfig

RECIPE = ("seed", "backbone", "source", "optimizer", "scheduler", "trainer")
MACHINE = ("accelerator", "devices", "threads", "workers")


def pretrain(app: App, overrides: Sequence[str]) -> int:
    """Train a backbone, or say that this very recipe has been followed before.

    Returns:
        The exit code.
    """
    path, fresh = app.run(_pretrain, overrides)
    console.say(f"weights: {path}" + ("" if fresh else " (made before; delete the file to redo)"))
    console.say(f"use:     {console.program()} train weights=file weights.path={path}")
    return 0


def pretrain_many(app: App, overrides: Sequence[str]) -> int:
    """Train several backbones, one after the other; one that fails does not end the rest.

    Returns:
        The exit code: 0, or 1 when one failed.
    """
    plan = app.plan(overrides)
    for job in plan.jobs:
        app.compose(job).typed(PretrainConfig)
    failed = 0
    for done in app.multirun(_caught, overrides):
        console.say(f"weights: {done}" if isinstance(done, Path) else f"failed: {done}")
        failed += not isinstance(done, Path)
    return min(failed, 1)


def recipe(config: PretrainConfig) -> str:
    """Return a hash of what decides the weights."""
    values = config.model_dump(mode="json", include=set(RECIPE))
    values["trainer"] = {k: v for k, v in values["trainer"].items() if k not in MACHINE}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _caught(values: DictConfig) -> Path | str:
    try:
        return _pretrain(values)[0]
    except Exception as error:  # told at the end, and the others go on
        return reason(error)


def _pretrain(values: DictConfig) -> tuple[Path, bool]:
    composed = Composed.of_job(values)
    config = composed.typed(PretrainConfig)
    source = composed.choices["source"]
    backbone = config.backbone.get("name", composed.choices["backbone"])
    path = config.paths.output / "weights" / f"{source}-{backbone}-{recipe(config)}.safetensors"
    if path.is_file():
        path.touch()  # what is asked for last is what `weights=file` takes by default
        return path, False

    from medtransfer.pretrain.fit import fit, prepare

    prepared = prepare(config)
    tags = {"phase": "pretrain", "backbone": backbone, "weights": source, "seed": config.seed}
    label = f"pretrain {source}/{backbone} seed={config.seed}"
    with (
        Reporter(1, unit="steps") as reporter,
        open_run(open_configured(config), label, tags) as run,
    ):
        log_config(run, composed)
        reporter.start(label)
        known = fit(config, prepared, run, path, source=source, recipe=recipe(config))
        run.json(known, "weights.json")
        run.params({"weights_file": str(path)})
        reporter.finish("finished")
    return path, True

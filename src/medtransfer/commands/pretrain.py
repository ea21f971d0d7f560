"""Training a backbone on other images; what is kept is one weights file with its provenance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medtransfer import console
from medtransfer.app import App, Composed
from medtransfer.commands.trials import log_config, open_configured
from medtransfer.config import PretrainConfig
from medtransfer.console import Reporter
from medtransfer.tracking.runs import open_run, reason

if TYPE_CHECKING:
    from omegaconf import DictConfig


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


def _caught(values: DictConfig) -> Path | str:
    try:
        return _pretrain(values)[0]
    except Exception as error:  # told at the end, and the others go on
        return reason(error)


def _pretrain(values: DictConfig) -> tuple[Path, bool]:
    composed = Composed.of_job(values)
    config = composed.typed(PretrainConfig)
    from medtransfer.pretrain.fit import fit, prepare, progress

    prepared = prepare(config)
    choices = composed.choices
    backbone = prepared.learner.backbone.name
    dataset = choices["dataset"] if config.dataset is not None else None
    parts = [choices["source"], backbone, dataset, prepared.recipe]
    name = "-".join(part for part in parts if part)
    path = config.paths.output / "weights" / f"{name}.safetensors"
    if path.is_file():
        path.touch()  # what is asked for last is what `weights=file` takes by default
        return path, False
    begin = progress(path)

    tags = {
        "phase": "pretrain",
        "backbone": backbone,
        "weights": choices["source"],
        "dataset": dataset,
        "seed": config.seed,
    }
    label = "pretrain " + "/".join(part for part in parts[:3] if part) + f" seed={config.seed}"
    with (
        Reporter(1) as reporter,
        open_run(open_configured(config), label, tags) as run,
    ):
        log_config(run, composed)
        reporter.start(label, unit="steps")
        known = fit(prepared, run, path, begin=begin, source=choices["source"])
        run.json(known, "weights.json")
        run.params({"weights_file": str(path)})
        reporter.finish("finished")
    return path, True

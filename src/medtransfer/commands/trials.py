"""One trial of a sweep, in whatever process a launcher starts it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from medtransfer.app import Composed
from medtransfer.config import BaseConfig, TrainConfig
from medtransfer.console import Reporter
from medtransfer.secrets import redact
from medtransfer.tracking import records
from medtransfer.tracking.ledger import Ledger
from medtransfer.tracking.runs import TAG, Run, flatten, open_run, reason
from medtransfer.tracking.store import Store, open_store, resolve_uri

if TYPE_CHECKING:
    import pandas as pd

    from medtransfer.run import Trial

DATA_KEYS = ("dataset", "task")  # what is swept here makes a row of its own, not an arm


@dataclass(frozen=True)
class Sweep:
    """What a trial must know of the sweep that it belongs to.

    Attributes:
        study_id: Shared by all of its trials.
        run_id: The parent run.
        swept: Keys that differ between trials.
        trials: How many there are; 0 when nobody knows yet.
        ledger: The folder that holds all results of the study.
        resumed: Whether the study was there before: what is finished in it stays as it is.
    """

    study_id: str
    run_id: str
    swept: tuple[str, ...]
    trials: int
    ledger: Path
    resumed: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        label: What it was.
        status: `FINISHED` or `FAILED`.
        run_id: Its run; empty where none could be opened.
        reason: Why it failed.
        score: Of its selected epoch on validation data, more being better; None if it failed.
        kept: Whether it had ended before.
    """

    label: str
    status: str
    run_id: str
    reason: str = ""
    score: float | None = None
    kept: bool = False


def run_in_sweep(values: DictConfig, sweep: Sweep) -> Outcome:
    """Run one trial of a sweep; what goes wrong is its outcome and ends nothing else."""
    composed = Composed.of_job(values)
    config = composed.typed(TrainConfig)
    from medtransfer.execution import execute
    from medtransfer.run import prepare

    store = open_configured(config)
    tags = trial_tags(config, composed, sweep.study_id, sweep.swept)
    label = label_of(tags)
    reporter = Reporter.active or Reporter(sweep.trials)
    reporter.start(label, composed.number, unit_of(config))
    run_id, tables = "", {}
    try:
        trial = prepare(config) if sweep.resumed else None
        if trial is not None and (found := _ended(store, sweep, trial, tags)) is not None:
            reporter.finish(f"{found.status.lower()} before")
            return found
        with open_run(store, label, tags, parent=sweep.run_id) as run:
            run_id, tables = run.run_id, run.tables
            log_config(run, composed)
            trial = trial or prepare(config)
            run.tags({"metric": trial.model.headline, "trial_id": trial.trial_id})
            others = _others(store, sweep, trial, tags)
            metrics = execute(trial, run, others)
    except Exception as error:  # whatever a trial raises is told, and the sweep goes on
        reporter.finish(f"failed: {reason(error)}")
        return Outcome(label, "FAILED", run_id, reason(error))
    finally:
        if run_id:
            _enter(store, sweep, run_id, tables)
    split = "test" if config.test else "best"
    value = metrics.get(f"{split}/{trial.model.headline}")
    reporter.finish("finished" if value is None else f"{split}/{trial.model.headline} {value:.3f}")
    return Outcome(label, "FINISHED", run_id, score=_score(trial, metrics))


def _enter(store: Store, sweep: Sweep, run_id: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Enter a trial that ended into the study's ledger."""
    with suppress(OSError):  # the study's end fetches from the store what is not there
        Ledger(sweep.ledger).append(records.row(store.client.get_run(run_id)), tables)


def _score(trial: Trial, metrics: Mapping[str, float]) -> float | None:
    """Return what tuning goes by, more being better."""
    value = metrics.get(f"best/{trial.metric}")
    return None if value is None else value if trial.mode == "max" else -value


def _ended(store: Store, sweep: Sweep, trial: Trial, tags: Mapping[str, Any]) -> Outcome | None:
    """Return the outcome of the same trial, if the study holds it already.

    One that failed counts too, unless failures are to be tried again.
    """
    same, label = ("cell", "phase", "draw"), label_of(tags)
    here = [None if tags[name] is None else str(tags[name]) for name in same]
    runs = _search(store, sweep, {"trial_id": trial.trial_id})
    runs = [run for run in runs if [run.data.tags.get(TAG + name) for name in same] == here]
    for run in runs:
        if run.info.status == "FINISHED":
            score = _score(trial, run.data.metrics)
            return Outcome(label, "FINISHED", run.info.run_id, score=score, kept=True)
    for run in runs:
        if run.info.status == "FAILED" and not trial.config.study.retry_failed:
            why = run.data.tags.get(TAG + "failure", "")
            return Outcome(label, "FAILED", run.info.run_id, why, kept=True)
    return None


def _others(
    store: Store, sweep: Sweep, trial: Trial, tags: Mapping[str, Any]
) -> list[list[float]] | None:
    """Return the curves of the cell's earlier draws, where trials are given up by them."""
    if tags["phase"] != "tuning" or trial.config.study.search.pruner is None:
        return None
    curves = []
    for run in _search(store, sweep, {"phase": "tuning"}):
        told = run.data.tags
        if told[TAG + "cell"] != tags["cell"] or int(told[TAG + "draw"]) >= tags["draw"]:
            continue
        history = store.client.get_metric_history(run.info.run_id, f"val/{trial.metric}")
        if history:
            curves.append([each.value for each in sorted(history, key=lambda each: each.step)])
    return curves


def _search(store: Store, sweep: Sweep, tags: Mapping[str, str]) -> list[Any]:
    """Return the trials of the sweep with these tags, whose values hold no quotes."""
    told = {"mlflow.parentRunId": sweep.run_id} | {TAG + k: v for k, v in tags.items()}
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in told.items())
    return list(records.search(store.client, query))


def trial_tags(
    config: TrainConfig, composed: Composed, study_id: str, swept: Sequence[str]
) -> dict[str, Any]:
    """Return the tags that place a trial: its arm, its cell, its choices."""
    choices = composed.choices
    overrides = dict(o.partition("=")[::2] for o in composed.overrides)
    arm = config.study.arm or f"{choices['strategy']}/{choices['weights']}"
    told = {o.partition("=")[0] for overrides in config.study.arms.values() for o in overrides}
    axes = []
    for key in swept:
        if key in {"seed", "strategy", "weights", "study.arm"} | told:
            continue
        value = f"{key.rpartition('@')[2]}={overrides.get(key, choices.get(key))}"
        if re.split("[.@]", key)[0] in DATA_KEYS:
            axes.append(value)
        else:
            arm += f" {value}"
    settings = {key: OmegaConf.select(composed.values, key) for key in config.study.tuned}
    return {
        "study_id": study_id,
        "phase": config.study.phase,
        "arm": arm,
        "cell": f"{arm} @ {', '.join(axes)}" if axes else arm,
        "task": choices["task"],
        "dataset": choices["dataset"],
        "backbone": config.backbone.get("name", choices["backbone"]),
        "weights": choices["weights"],
        "strategy": choices["strategy"],
        "seed": config.seed,
        "fraction": config.dataset.get("fraction"),
        "draw": config.study.draw,
        "settings": json.dumps(settings, default=list),
        "tuned": "yes" if config.study.phase == "final" and config.study.budget.trials else "no",
    }


def label_of(tags: Mapping[str, Any]) -> str:
    """Return what a trial is called on the screen and by MLflow."""
    draw = "" if tags["draw"] is None else f" draw={tags['draw']}"
    return f"{tags['cell']} seed={tags['seed']}{draw}"


def unit_of(config: TrainConfig) -> str:
    """Return what a trial counts as it goes."""
    return "epochs" if config.trainer.max_steps is None else "steps"


def log_config(run: Run, composed: Composed) -> None:
    """Log a configuration whole, as an artifact, and flattened, as parameters."""
    plain = composed.plain()
    run.text(redact(OmegaConf.to_yaml(OmegaConf.create(plain))), "config.yaml")
    declared = ("study.arms", "study.axes")  # of the whole study, in names that MLflow may refuse
    run.params({k: v for k, v in flatten(plain).items() if not k.startswith(declared)})


def open_configured(config: BaseConfig) -> Store:
    """Return the store that a configuration names, created if it was not there."""
    uri = resolve_uri(config.tracking.uri, config.paths.output)
    return open_store(uri, config.tracking.experiment, config.tracking.artifacts)

"""One trial of a sweep, in whatever process a launcher starts it."""

from __future__ import annotations

import atexit
import gc
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from medtransfer.app import Composed
from medtransfer.commands.formers import Former, formers, identity
from medtransfer.config import BaseConfig, TrainConfig
from medtransfer.console import Reporter
from medtransfer.errors import LaunchError, Note
from medtransfer.secrets import redacted
from medtransfer.signals import obey_signals
from medtransfer.tracking import records
from medtransfer.tracking.ledger import Ledger
from medtransfer.tracking.runs import (
    PARENT,
    TAG,
    Earlier,
    Interrupted,
    Run,
    flatten,
    open_run,
    reason,
)
from medtransfer.tracking.store import Store, open_store, resolve_uri

if TYPE_CHECKING:
    from medtransfer.run import Trial

_loading = iter(("before the first trial", "before the second"))  # when there are new libraries
DATA_KEYS = ("dataset", "task")  # what is swept here makes a row of its own, not an arm


@dataclass(frozen=True)
class Sweep:
    """What a trial must know of the sweep that it belongs to.

    Attributes:
        study_id: Shared by all of its trials.
        run_id: The parent run.
        experiment_id: Of all runs.
        swept: Keys that differ between trials.
        trials: How many there are; 0 when nobody knows yet.
        ledger: The folder that holds all results of the study.
        before: The file that tells what the study held already; None: nothing.
    """

    study_id: str
    run_id: str
    experiment_id: str
    swept: tuple[str, ...]
    trials: int
    ledger: Path
    before: Path | None = None

    def store(self, config: TrainConfig) -> Store:
        """Return the store, without a word to it: it may not answer now."""
        uri = resolve_uri(config.tracking.uri, config.paths.output)
        return Store(uri, self.experiment_id, config.paths.output / "spool")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        label: What it was.
        status: `FINISHED` or `FAILED`.
        reason: Why it failed.
        score: Of its selected epoch on validation data, more being better; None if it failed.
        kept: Whether it had ended before.
    """

    label: str
    status: str
    reason: str = ""
    score: float | None = None
    kept: bool = False


def run_in_sweep(values: DictConfig, sweep: Sweep) -> Outcome:
    """Run one trial of a sweep; what goes wrong is its outcome and ends nothing else."""
    obey_signals()
    composed = Composed.of_job(values)
    config = composed.typed(TrainConfig)
    from medtransfer.execution import execute

    _forget_the_last()
    store = sweep.store(config)
    tags = trial_tags(config, composed, sweep.study_id, sweep.swept)
    label = label_of(tags)
    reporter = Reporter.active or Reporter(sweep.trials)
    reporter.start(label, composed.number, unit_of(config))
    prunes = config.study.phase == "tuning" and config.study.search.pruner is not None
    try:
        trial = _prepared(config)
        before = _before(sweep, trial, tags)
        if before is not None and (found := _ended(before, trial, label)) is not None:
            reporter.finish(f"{found.status.lower()} before")
            return found
        opened = open_run(
            store,
            label,
            tags | _known(trial),
            parent=sweep.run_id,
            again=_earlier(before),
            wait=prunes,  # the next one is compared with it
            ended=partial(_enter, store, sweep),
        )
        with opened as run:
            log_config(run, composed)
            if isinstance(trial, Exception):
                raise trial
            metrics = execute(trial, run, _others(store, sweep, trial, tags) if prunes else None)
            run.metrics({"cost/tracking_seconds": run.blocked})
    except Interrupted as interrupted:
        if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":  # only an Exception becomes a result
            raise LaunchError(f"a job was told to end: {interrupted}") from None
        raise
    except Exception as error:  # whatever a trial raises is told, and the sweep goes on
        reporter.finish(f"failed: {reason(error)}")
        return Outcome(label, "FAILED", reason(error))
    split = "test" if config.test else "best"
    value = metrics.get(f"{split}/{trial.model.headline}")
    reporter.finish("finished" if value is None else f"{split}/{trial.model.headline} {value:.3f}")
    return Outcome(label, "FINISHED", score=_score(trial, metrics))


def _forget_the_last() -> None:
    """Free what the trial before has left: networks lie in cycles, which Python leaves for long."""
    gc.collect()
    if next(_loading, None) is not None:
        gc.freeze()  # libraries stay, and are not gone through each time
        atexit.register(gc.unfreeze)  # some of them complain of what was not freed in the end


def _prepared(config: TrainConfig) -> Trial | Exception:
    """Return the trial, or what is wrong with it, to be told in its run."""
    from medtransfer.run import prepare

    try:
        return prepare(config)
    except Exception as error:
        return error


def _known(trial: Trial | Exception) -> dict[str, str]:
    """Return the tags by which a trial is found again."""
    if isinstance(trial, Exception):
        return {}
    return {"metric": trial.model.headline, "trial_id": trial.trial_id}


def _enter(store: Store, sweep: Sweep, run: Run) -> None:
    """Enter a trial that ended into the study's ledger."""
    with suppress(OSError):  # the study's end fetches from the store what is not there
        Ledger(sweep.ledger).append(records.row(store.client.get_run(run.run_id)), run.tables)


def _score(trial: Trial, metrics: Mapping[str, float]) -> float | None:
    """Return what tuning goes by, more being better."""
    value = metrics.get(f"best/{trial.metric}")
    return None if value is None else value if trial.mode == "max" else -value


def _before(sweep: Sweep, trial: Trial | Exception, tags: Mapping[str, Any]) -> Former | None:
    """Return what the study holds of the same trial already."""
    if sweep.before is None or isinstance(trial, Exception):
        return None
    names = (trial.trial_id, tags["cell"], tags["phase"], tags["draw"])
    return formers(sweep.before).get(identity(*names))


def _ended(before: Former, trial: Trial | Exception, label: str) -> Outcome | None:
    """Return the outcome of the same trial, if it has one.

    A failure counts too, unless failures are to be tried again.
    """
    assert not isinstance(trial, Exception)
    if before.status == "FINISHED":
        return Outcome(label, "FINISHED", score=_score(trial, before.best), kept=True)
    if before.status == "FAILED" and not trial.config.study.retry_failed:
        return Outcome(label, "FAILED", before.failure, kept=True)
    return None


def _earlier(before: Former | None) -> Earlier | None:
    """Return the run that a trial goes on in: a failure stays on record beside its repetition."""
    if before is None or before.status == "FAILED":
        return None
    return Earlier(before.run_id, before.key, before.last_step)


def _others(store: Store, sweep: Sweep, trial: Trial, tags: Mapping[str, Any]) -> list[list[float]]:
    """Return the curves of the cell's earlier draws; none where the store does not answer."""
    told = {PARENT: sweep.run_id, TAG + "phase": "tuning"}
    query = " and ".join(f"tags.`{name}` = '{value}'" for name, value in told.items())
    curves = []
    try:
        for run in records.search(store.client, query):
            told = run.data.tags
            if told[TAG + "cell"] != tags["cell"] or int(told[TAG + "draw"]) >= tags["draw"]:
                continue
            history = store.client.get_metric_history(run.info.run_id, f"val/{trial.metric}")
            if history:
                curves.append([each.value for each in sorted(history, key=lambda each: each.step)])
    except Exception as error:  # clients raise whatever their transports raise
        warnings.warn(Note(f"nothing is given up early: {reason(error)}"), stacklevel=2)
    return curves


def trial_tags(
    config: TrainConfig, composed: Composed, study_id: str, swept: Sequence[str]
) -> dict[str, Any]:
    """Return the tags that place a trial: its arm, its cell, its choices."""
    choices = composed.choices
    overrides = dict(o.partition("=")[::2] for o in composed.overrides)
    arm = config.study.arm or f"{choices['strategy']}/{choices['weights']}"
    named = {o.partition("=")[0] for overrides in config.study.arms.values() for o in overrides}
    axes = []
    for key in swept:
        if key in {"seed", "strategy", "weights", "study.arm"} | named:
            continue
        value = f"{key.rpartition('@')[2]}={overrides.get(key, choices.get(key))}"
        if re.split("[.@]", key)[0] in DATA_KEYS:
            axes.append(value)
        else:
            arm += f" {value}"
    settings = {key: OmegaConf.select(composed.values, key) for key in config.study.tuned}
    told = {
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
    return {name: redacted(value) for name, value in told.items()}


def label_of(tags: Mapping[str, Any]) -> str:
    """Return what a trial is called on the screen and by MLflow."""
    draw = "" if tags["draw"] is None else f" draw={tags['draw']}"
    return " ".join(f"{tags['cell']} seed={tags['seed']}{draw}".split())  # in one line


def unit_of(config: TrainConfig) -> str:
    """Return what a trial counts as it goes."""
    return "epochs" if config.trainer.max_steps is None else "steps"


def log_config(run: Run, composed: Composed) -> None:
    """Log a configuration whole, as an artifact, and flattened, as parameters."""
    plain = composed.plain()
    run.text(OmegaConf.to_yaml(OmegaConf.create(redacted(plain))), "config.yaml")
    declared = ("study.arms", "study.axes")  # of the whole study, in names that MLflow may refuse
    run.params({k: v for k, v in flatten(plain).items() if not k.startswith(declared)})


def open_configured(config: BaseConfig) -> Store:
    """Return the store that a configuration names, created if it was not there."""
    uri, output = resolve_uri(config.tracking.uri, config.paths.output), config.paths.output
    return open_store(uri, config.tracking.experiment, config.tracking.artifacts, output)

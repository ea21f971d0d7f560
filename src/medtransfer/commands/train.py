"""Trials under Hydra: one alone, or many under one parent run that ends with an answer."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medtransfer import console
from medtransfer.app import App, Composed, Plan
from medtransfer.components import build
from medtransfer.config import BaseConfig, TrainConfig
from medtransfer.console import Reporter
from medtransfer.tracking.runs import Run, flatten, open_run, reason
from medtransfer.tracking.store import Store, open_store, redact, resolve_uri

if TYPE_CHECKING:
    from medtransfer.gate import Inspection

SEED = re.compile(r"seed=\d+")  # what else a seed is given as is checked like any other value
DATA_KEYS = ("dataset", "task")  # what is swept here makes a row of its own, not an arm


@dataclass(frozen=True)
class Sweep:
    """What a trial must know of the sweep that it belongs to.

    Attributes:
        study_id: Shared by all of its trials.
        run_id: The parent run.
        swept: Keys that differ between trials.
        trials: How many there are; 0 when nobody knows yet.
    """

    study_id: str
    run_id: str
    swept: tuple[str, ...]
    trials: int


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    label: str
    status: str
    run_id: str
    reason: str = ""


def train(app: App, overrides: Sequence[str]) -> int:
    """Run one trial and show its metrics.

    Returns:
        The exit code.
    """
    done: _Done = app.run(_alone, overrides)
    console.out.print(_metrics_table(done.label, done.metrics))
    _say_where(done.store, done.config, done.run_id)
    return 0


def train_many(app: App, overrides: Sequence[str]) -> int:
    """Run a sweep under one parent run, and end it with the answer.

    A trial that fails does not end the sweep.

    Returns:
        The exit code: 0, or 1 when a trial failed.
    """
    from medtransfer.commands.report import answer

    plan = app.plan(overrides)
    config, metric, found = _check_all(app, plan)
    store = open_configured(config)
    study_id = new_id()
    tags = {
        "study_id": study_id,
        "phase": "study",
        "metric": metric,
        "rope": config.study.rope,
        "waivers": json.dumps(found.waivers),
        "notes": json.dumps(found.notes),
    }
    with open_run(store, config.study.name or f"sweep-{study_id}", tags) as parent:
        parent.text(redact("\n".join(overrides)) + "\n", "overrides.txt")
        for name, inspection in found.inspections.items():
            with parent.folder(f"audit/{name}") as folder:
                inspection.save(folder)
        trials = len(plan.jobs) if plan.complete else 0
        sweep = Sweep(study_id, parent.run_id, plan.swept, trials)
        with Reporter(sweep.trials):
            outcomes: list[Outcome] = app.multirun(partial(_in_sweep, sweep=sweep), overrides)
        out = config.paths.output / "reports" / study_id
        answer(store.client, parent.run_id, out)
        store.client.log_artifacts(parent.run_id, str(out), "report")
    failed = any(outcome.status != "FINISHED" for outcome in outcomes)
    _say_where(store, config, study_id)
    return 1 if failed else 0


@dataclass(frozen=True)
class _Done:
    label: str
    run_id: str
    metrics: dict[str, float]
    store: Store
    config: TrainConfig


def _alone(values: DictConfig) -> _Done:
    composed = Composed.of_job(values)
    config = composed.typed(TrainConfig)
    from medtransfer.execution import execute
    from medtransfer.run import prepare

    trial = prepare(config)
    store = open_configured(config)
    told = {"metric": trial.model.headline, "notes": json.dumps(trial.data.notes)}
    tags = _tags(config, composed, new_id(), ()) | told
    label = _label(tags)
    with Reporter(1) as reporter, open_run(store, label, tags) as run:
        log_config(run, composed)
        reporter.start(label, unit=_unit(config))
        metrics = execute(trial, run)
        reporter.finish("finished")
    return _Done(label, run.run_id, metrics, store, config)


def _in_sweep(values: DictConfig, sweep: Sweep) -> Outcome:
    """Run one trial of a sweep; what goes wrong is its outcome and ends nothing else."""
    composed = Composed.of_job(values)
    config = composed.typed(TrainConfig)
    from medtransfer.execution import execute
    from medtransfer.run import prepare

    store = open_configured(config)
    tags = _tags(config, composed, sweep.study_id, sweep.swept)
    label = _label(tags)
    reporter = Reporter.active or Reporter(sweep.trials)
    reporter.start(label, composed.number, _unit(config))
    run_id = ""
    try:
        with open_run(store, label, tags, parent=sweep.run_id) as run:
            run_id = run.run_id
            log_config(run, composed)
            trial = prepare(config)
            run.tags({"metric": trial.model.headline})
            metrics = execute(trial, run)
    except Exception as error:  # whatever a trial raises is told, and the sweep goes on
        reporter.finish(f"failed: {reason(error)}")
        return Outcome(label, "FAILED", run_id, reason(error))
    score = metrics.get(f"test/{trial.model.headline}")
    reporter.finish("finished" if score is None else f"test/{trial.model.headline} {score:.3f}")
    return Outcome(label, "FINISHED", run_id)


@dataclass(frozen=True)
class _Found:
    """What the gate let through, by the name of each dataset that a sweep learns from."""

    inspections: dict[str, Inspection]
    waivers: list[str]
    notes: list[str]


def _check_all(app: App, plan: Plan) -> tuple[TrainConfig, str, _Found]:
    """Check every job, and audit its data, before any run is opened.

    Returns:
        The first one's configuration, its headline, and what the audit has found.
    """
    distinct = _without_repeats_over_seeds(plan.jobs)
    composed = [app.compose(job) for job in distinct]
    configs = [each.typed(TrainConfig) for each in composed]
    from medtransfer.run import check, check_all

    found = _audited([each.choices["dataset"] for each in composed], configs)
    check_all(configs)
    return configs[0], check(configs[0]).task.headline, found


def _audited(names: Sequence[str], configs: Sequence[TrainConfig]) -> _Found:
    from medtransfer.data.base import Dataset
    from medtransfer.gate import inspect

    found = _Found({}, [], [])
    seen: set[str] = set()
    for name, config in zip(names, configs, strict=True):
        whole = {k: v for k, v in config.dataset.items() if k not in {"fraction", "shots"}}
        key = f"{whole} {config.audit.waive}"
        if key in seen:
            continue
        seen.add(key)
        dataset = build(config.dataset, Dataset, trusted=config.trusted_modules)
        inspection = inspect(dataset, config.paths.cache)
        inspection.refuse(config.audit.waive)
        count = sum(known.partition("-")[0] == name for known in found.inspections)
        label = f"{name}-{count + 1}" if count else name
        found.inspections[label] = inspection
        found.waivers.extend(f"{label}: {text}" for text in inspection.waived(config.audit.waive))
        notes = [*inspection.warnings(), *dataset.notes()]
        found.notes.extend(f"{label}: {text}" for text in notes)
    return found


def _without_repeats_over_seeds(jobs: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    first: dict[tuple[str, ...], Sequence[str]] = {}
    for job in jobs:
        first.setdefault(tuple(o for o in job if not SEED.fullmatch(o)), job)
    return list(first.values())


def _tags(
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
        value = f"{key}={overrides.get(key, choices.get(key))}"
        if key.partition(".")[0] in DATA_KEYS:
            axes.append(value)
        else:
            arm += f" {value}"
    return {
        "study_id": study_id,
        "phase": "final",
        "arm": arm,
        "cell": f"{arm} @ {', '.join(axes)}" if axes else arm,
        "task": choices["task"],
        "dataset": choices["dataset"],
        "backbone": config.backbone.get("name", choices["backbone"]),
        "weights": choices["weights"],
        "strategy": choices["strategy"],
        "seed": config.seed,
        "fraction": config.dataset.get("fraction"),
    }


def _label(tags: Mapping[str, Any]) -> str:
    return f"{tags['cell']} seed={tags['seed']}"


def _unit(config: TrainConfig) -> str:
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


def new_id() -> str:
    """Return a name that tells when it was given, and is given once."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _metrics_table(label: str, metrics: Mapping[str, float]) -> Table:
    table = Table(title=escape(label), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in sorted(metrics, key=lambda name: (not name.startswith("test/"), name)):
        value = metrics[name]
        table.add_row(name, f"{value:,.0f}" if value.is_integer() else f"{value:,.4f}")
    return table


def _say_where(store: Store, config: TrainConfig, study: str) -> None:
    given = f" tracking.uri={redact(store.uri)}"
    shown = given if store.uri != resolve_uri(None, config.paths.output) else ""
    console.say(f"again:  {console.program()} report {study} --out DIR{shown}")
    console.say(f"browse: {console.program()} ui{shown}")

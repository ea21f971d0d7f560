"""Trials under Hydra: one alone, or many under one parent run that ends with an answer."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medtransfer import __version__, console
from medtransfer.app import App, Composed, Plan
from medtransfer.commands.formers import note_formers
from medtransfer.commands.trials import (
    Outcome,
    Sweep,
    label_of,
    log_config,
    open_configured,
    run_in_sweep,
    trial_tags,
    unit_of,
)
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.console import Reporter
from medtransfer.errors import ConfigError
from medtransfer.secrets import redact
from medtransfer.study import signature
from medtransfer.tracking import records
from medtransfer.tracking.courier import deliver_all
from medtransfer.tracking.ledger import Ledger, ledger_path
from medtransfer.tracking.processes import alive, reap
from medtransfer.tracking.runs import FAREWELL, TAG, Earlier, Interrupted, open_run
from medtransfer.tracking.spool import KEY, deliver_abandoned
from medtransfer.tracking.store import Store, resolve_uri

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow.entities import Run

    from medtransfer.gate import Inspection

SEED = re.compile(r"seed=\d+")  # what else a seed is given as is checked like any other value


def train(app: App, overrides: Sequence[str]) -> int:
    """Run one trial and show its metrics.

    Returns:
        The exit code.
    """
    done = run_one(app.compose(overrides))
    console.out.print(_metrics_table(done.label, done.metrics))
    _say_where(done.store, done.config, done.run_id)
    return 0


def train_many(app: App, overrides: Sequence[str]) -> int:
    """Run a sweep and show its answer.

    Returns:
        The exit code: 0, or 1 when a trial failed.
    """
    ended = run_many(app, overrides)
    return 1 if ended is not None and ended.failed else 0


@dataclass(frozen=True)
class Ended:
    """A sweep that was run.

    Attributes:
        study_id: Its id.
        failed: Whether a trial failed.
    """

    study_id: str
    failed: bool


def run_many(app: App, overrides: Sequence[str]) -> Ended | None:
    """Run a sweep under one parent run, and end it with the answer.

    A trial that fails does not end the sweep. A study that has a name and is there already goes on:
    what is finished in it stays as it is.

    Returns:
        What there is now; None after a dry run.
    """
    from medtransfer.analysis.load import parents_of
    from medtransfer.commands.plan import show_plan
    from medtransfer.commands.report import answer
    from medtransfer.commands.summaries import summarise

    plan = app.plan(overrides)
    config, metric, found = _check_all(app, plan)
    if config.study.dry_run:
        show_plan(app, plan)
        return None
    store = open_configured(config)
    question = redact(signature(overrides))
    before = _before(store, config, question)
    study_id = before.data.tags[TAG + "study_id"] if before else new_id()
    tags = {
        "study_id": study_id,
        "phase": "study",
        "metric": metric,
        "rope": config.study.rope,
        "question": question,
        "protocol": json.dumps(_protocol(config, overrides)),
        "waivers": json.dumps(found.waivers),
        "notes": json.dumps(found.notes),
    }
    ledger = partial(ledger_path, store.uri, config.paths.output)
    held = ledger(study_id) / "before.json"
    known = None if before is None else _go_on(store, before, held)
    name = redact(config.study.name or f"sweep-{study_id}")
    with open_run(store, name, tags, again=known) as parent:
        parent.text(redact("\n".join(overrides)) + "\n", "overrides.txt")
        for dataset, inspection in found.inspections.items():
            with parent.folder(f"audit/{dataset}") as folder:
                inspection.save(folder)
        sweep = Sweep(
            study_id,
            parent.run_id,
            store.experiment_id,
            plan.swept,
            plan.trials,
            ledger(study_id),
            before=None if before is None else held,
        )
        with Reporter(sweep.trials):
            try:
                outcomes: list[Outcome] = app.multirun(
                    partial(run_in_sweep, sweep=sweep), overrides
                )
            except Interrupted:
                _close_the_dead(store, parent.run_id)
                raise
        deliver_all(store, parent.run_id)
        out = config.paths.output / "reports" / study_id
        Ledger(sweep.ledger).catch_up(store.client, parents_of(store.client, study_id))
        results = answer(store.client, parent.run_id, out, ledger)
        summarise(store, parent.run_id, results)
        told = f"{results.headline}\n\nThe report: report/report.html among the artifacts."
        parent.label({"mlflow.note.content": told})
        with parent.folder("report") as folder:
            shutil.copytree(out, folder, dirs_exist_ok=True)
    if kept := sum(outcome.kept for outcome in outcomes):
        console.say(
            f"{kept} of {len(outcomes)} trials had ended before in study {study_id}"
            " (study.resume=false begins a new one)"
        )
    again = sum(outcome.kept and outcome.status == "FAILED" for outcome in outcomes)
    if again:
        console.say(f"{again} of them had failed (study.retry_failed=true tries them again)")
    failed = any(outcome.status != "FINISHED" for outcome in outcomes)
    _say_where(store, config, study_id)
    return Ended(study_id, failed)


def _before(store: Store, config: TrainConfig, question: str) -> Run | None:
    """Return the newest study of this name that asks the same."""
    if config.study.name is None or not config.study.resume:
        return None
    query = f"tags.`{TAG}phase` = 'study'"
    order = ["attributes.start_time DESC"]
    for run in store.client.search_runs([store.experiment_id], query, order_by=order):
        told = run.data.tags
        same = run.info.run_name == redact(config.study.name)
        if same and told.get(TAG + "question") == question:
            return run
    return None


def _go_on(store: Store, parent: Run, path: Path) -> Earlier:
    """Put the runs of a study in order that goes on, and note what there is of each trial.

    Raises:
        ConfigError: If something of it is running at this moment.
    """
    run_id = parent.info.run_id
    runs = records.children(store.client, [run_id])
    for run in (parent, *runs):
        if (process := alive(run)) is not None:
            raise ConfigError(
                f"'{run.info.run_name}' of study '{parent.info.run_name}' is running already, as"
                f" process {process.pid} on {process.host}",
                remedy="wait for it, or study.name=ANOTHER",
            )
    # a search takes minutes where there are thousands: none is repeated without need
    if deliver_abandoned(store):
        runs = records.children(store.client, [run_id])
    if reap(store.client, runs):
        runs = records.children(store.client, [run_id])
    note_formers(store.client, runs, path)
    return Earlier(run_id, parent.data.tags.get(KEY, run_id))


def _close_the_dead(store: Store, parent: str) -> None:
    """Close runs whose processes were ended by the launcher; those of other machines go on."""
    deadline = time.monotonic() + FAREWELL
    with suppress(Exception):  # the next call does it, where the store does not answer now
        while True:
            deliver_abandoned(store, parent)
            runs = records.children(store.client, [parent])
            reap(store.client, runs)
            if not any(alive(run) for run in runs) or time.monotonic() > deadline:
                return
            time.sleep(0.2)


def _protocol(config: TrainConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Return what was settled before the first trial."""
    declared = {"arms", "axes", "seeds", "seed", "budget", "search", "primary"}
    told = config.study.model_dump(mode="json", include=declared)
    seeds = told["seeds"]
    told["seeds"] = list(range(seeds)) if isinstance(seeds, int) else seeds
    return told | {"version": __version__, "command": [redact(each) for each in overrides]}


@dataclass(frozen=True)
class Finished:
    """A trial that was run by itself.

    Attributes:
        label: What MLflow's pages call it.
        run_id: MLflow's id.
        metrics: All of them by name, such as `test/auroc` and `cost/train_seconds`.
        store: Where it lies.
        config: What it was run by.
    """

    label: str
    run_id: str
    metrics: dict[str, float]
    store: Store
    config: TrainConfig


def run_one(composed: Composed) -> Finished:
    """Run one trial.

    Raises:
        MedtransferError: If it cannot be run, or has failed.
    """
    config = composed.typed(TrainConfig)
    from medtransfer.execution import execute
    from medtransfer.run import prepare

    trial = prepare(config)
    store = open_configured(config)
    told = {"metric": trial.model.headline, "notes": json.dumps(trial.data.notes)}
    tags = trial_tags(config, composed, new_id(), ()) | told
    label = label_of(tags)
    with Reporter(1) as reporter, open_run(store, label, tags) as run:
        log_config(run, composed)
        reporter.start(label, unit=unit_of(config))
        metrics = execute(trial, run)
        reporter.finish("finished")
    return Finished(label, run.run_id, metrics, store, config)


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
    distinct = _without_repeats_over_seeds([*plan.jobs, *plan.tuning])
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


def new_id() -> str:
    """Return a name that tells when it was given, and is given once."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _metrics_table(label: str, metrics: Mapping[str, float]) -> Table:
    table = Table(title=escape(label), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in sorted(metrics, key=lambda name: (not name.startswith("test/"), name)):
        value = metrics[name]
        text = f"{value:,.0f}" if value.is_integer() else f"{value:,.4f}"
        table.add_row(escape(name), text)
    return table


def _say_where(store: Store, config: TrainConfig, study: str) -> None:
    given = f" tracking.uri={redact(store.uri)}"
    shown = given if store.uri != resolve_uri(None, config.paths.output) else ""
    console.say(f"again:  {console.program()} report {study} --out DIR{shown}")
    console.say(f"browse: {console.program()} ui{shown}")

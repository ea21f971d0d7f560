"""What a study would do, and what it would take, told before anything runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medtransfer import console
from medtransfer.app import App, Plan
from medtransfer.commands.train import SEED
from medtransfer.commands.trials import trial_tags
from medtransfer.config import TrainConfig
from medtransfer.errors import TooLargeError
from medtransfer.features import Split
from medtransfer.probe import Probe, probe

BESIDE = 0.5  # seconds of a trial beside its batches: it is prepared, told to the store, written up
LOOK = 0.01  # seconds of a validation beside its batches: metrics, and their record
# What decides how long a trial trains, and not how long a step takes.
LENGTHS = {
    *("max_epochs", "max_steps", "max_seconds", "validate_every", "save_every", "checkpoint"),
    *("early_stopping", "selection"),
}
HOW = (
    "At most: estimated from two batches of each kind after a first one, on this machine as busy as"
    " it is now, one trial at a time. Early stopping, pruning, trials that have ended before and"
    " features that are kept already make it less. Tables of predictions and the store take some"
    " disk besides."
)


@dataclass(frozen=True)
class Kind:
    """Trials of a plan that differ in their seeds and in what tuning draws.

    Attributes:
        cell: Their arm, with the setting of the axes.
        config: Of the first of them.
        seeds: Of all, each once.
        trials: How many there are; 0 where nobody knows.
        probe: What a few batches of the first have shown.
    """

    cell: str
    config: TrainConfig
    seeds: tuple[str, ...]
    trials: int
    probe: Probe


def show_plan(app: App, plan: Plan) -> None:
    """Show the trials of a plan, and at most how much time and disk they will take.

    Raises:
        MedtransferError: If a trial could not run.
    """
    with console.err.status("looking at two batches of each kind of trial"):
        kinds = _kinds(app, plan)
    console.out.print(_table(kinds, plan))
    final = len(plan.jobs)
    if plan.trials:
        console.say(
            f"{plan.trials - final} trials tune, on validation data alone; {final} are final, and"
            " each of them opens the test set once if it may."
        )
    else:
        console.say("How many trials there will be is decided as they run.")
    console.say(f"{HOW} Varied: {', '.join(plan.swept) or 'nothing'}.")


def seconds_of(config: TrainConfig, found: Probe) -> float:
    """Return what one trial takes at most, those features aside that it keeps for others.

    Args:
        config: Says how long it trains, and whether it is tested; all else is as was probed.
        found: What a few of its batches have shown.
    """
    trainer = config.trainer
    steps = min(found.steps * trainer.max_epochs, trainer.max_steps or math.inf)
    validations = math.ceil(steps / (trainer.validate_every or max(1, found.steps)))
    training = steps * found.step + validations * (LOOK + found.passes["val"])
    training = min(training, trainer.max_seconds or math.inf)
    scored = sum(each for split, each in found.passes.items() if split == "val" or config.test)
    own = 0.0 if found.kept else sum(found.features[split][0] for split in _splits(config, found))
    return BESIDE + found.setup + own + training + scored


def shared_by(
    config: TrainConfig, found: Probe, seeds: Iterable[str]
) -> dict[tuple[str, str, Split], tuple[float, int]]:
    """Return the features that trials keep for others, each under what tells it apart.

    Args:
        config: Of one of the trials.
        found: What a few of its batches have shown.
        seeds: Of all.

    Returns:
        Seconds to compute them, and bytes.
    """
    if not found.kept:
        return {}
    subset = {key: config.dataset.get(key) for key in ("fraction", "shots")}
    whole = {key: value for key, value in config.dataset.items() if key not in subset}
    trainer = config.trainer
    parts = [whole, config.task["_target_"], config.transform, config.backbone, config.weights]
    parts += [config.features.model_dump(), trainer.precision, trainer.accelerator]
    if found.adapted:
        parts += [subset, trainer.batch_size]
    key = json.dumps(parts, sort_keys=True, default=str)
    return {
        (key, seed if found.drawn else "", split): found.features[split]
        for seed in seeds
        for split in _splits(config, found)
    }


def _splits(config: TrainConfig, found: Probe) -> list[Split]:
    return [split for split in found.features if split != "test" or config.test]


def _kinds(app: App, plan: Plan) -> list[Kind]:
    """Return the kinds of trials, those that tune first, one of each probed."""
    alike: dict[tuple[str, ...], list[Sequence[str]]] = {}
    for job in (*plan.jobs, *plan.tuning):  # final ones first: they look at more
        alike.setdefault(_without_draws(job), []).append(job)
    probes: dict[str, Probe] = {}
    kinds = []
    for jobs in alike.values():
        composed = app.compose(jobs[0])
        config = composed.typed(TrainConfig)
        tunes = config.study.phase == "tuning"
        same = config.model_dump_json(
            exclude={"seed": True, "test": True, "study": True, "trainer": LENGTHS}
        )
        if same not in probes:
            probes[same] = _probed(config)
        cell = trial_tags(config, composed, "", plan.swept)["cell"]
        given = [o for job in jobs for o in job if SEED.fullmatch(o)]
        seeds = tuple(dict.fromkeys(given or [f"seed={config.seed}"]))
        # of an adaptive search only the first draws are known
        trials = max(len(jobs), config.study.budget.trials if tunes else 0)
        kinds.append(Kind(cell, config, seeds, trials if plan.trials else 0, probes[same]))
    return sorted(kinds, key=lambda kind: kind.config.study.phase == "final")


def _without_draws(job: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides of a job, what its seed and its draw decide aside."""
    told = dict(override.partition("=")[::2] for override in job)
    tuned = told.get("study.tuned", "[]").strip("[]").split(",")
    aside = {"study.draw", "study.tuned", *tuned}
    return tuple(o for o in job if not SEED.fullmatch(o) and o.partition("=")[0] not in aside)


def _probed(config: TrainConfig) -> Probe:
    try:
        return probe(config)
    except torch.OutOfMemoryError as error:
        raise TooLargeError(
            f"the memory of the device does not suffice for {config.trainer.batch_size} images",
            remedy=f"trainer.accumulate={2 * config.trainer.accumulate}, which trials try by"
            " themselves, or a smaller trainer.batch_size",
        ) from error


def _table(kinds: Sequence[Kind], plan: Plan) -> Table:
    table = Table(title="Nothing was run", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("")
    table.add_column("trials of", overflow="fold")
    for title in ("trials", "each", "together", "disk"):
        table.add_column(title, justify="right")
    shared: dict[tuple[str, str, Split], tuple[float, int]] = {}
    decoded: dict[str, int] = {}
    time, disk = 0.0, 0
    for kind in kinds:
        config, found = kind.config, kind.probe
        shared |= shared_by(config, found, kind.seeds)
        decoded |= found.decoded
        each = seconds_of(config, found)
        stays = 0 if config.trainer.checkpoint == "none" else kind.trials * found.checkpoint
        time, disk = time + kind.trials * each, disk + stays
        counted = (f"{kind.trials}", about(each), about(kind.trials * each), _size(stays))
        told = counted if plan.trials else ("?", about(each), "?", "?")
        table.add_row(config.study.phase, escape(kind.cell), *told)
    bound = max(kind.config.features.max_gb for kind in kinds) * 1e9
    features = sum(seconds for seconds, _ in shared.values())
    size = min(sum(size for _, size in shared.values()), round(bound))
    if shared:
        table.add_row("features", "computed once", "", "", about(features), _size(size))
    table.add_row("images", "decoded", "", "", "", _size(sum(decoded.values())))
    disk += size + sum(decoded.values())
    table.add_section()
    whole = (f"{plan.trials}", "", about(time + features), _size(disk))
    table.add_row("together", "", *(whole if plan.trials else ("?", "", "?", "?")))
    return table


def about(seconds: float) -> str:
    """Return a time as an estimate is told: in one unit, with two digits or so."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    value, unit = (seconds / 60, "min") if seconds < 99.5 * 60 else (seconds / 3600, "h")
    return f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"


def _size(count: int) -> str:
    """Return bytes in the unit that suits them; nothing for none."""
    if not count:
        return ""
    value, unit = (count / 1e6, "MB") if count < 1e9 else (count / 1e9, "GB")
    return f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"

"""Which backbone and weights promise most on a dataset, estimated before anything is trained."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medtransfer import console
from medtransfer.app import App, Plan
from medtransfer.commands.extract import Progress, claimed, writing
from medtransfer.commands.train import new_id
from medtransfer.commands.trials import open_configured
from medtransfer.config import RankConfig
from medtransfer.console import Reporter
from medtransfer.errors import ConfigError
from medtransfer.secrets import redact
from medtransfer.tracking.runs import Run, flatten, open_run, reason

if TYPE_CHECKING:
    from medtransfer.data.loading import Data

SCHEMA = 1  # of rank.json; changes when what stands in it changes
TITLES = {"log_me": "LogME", "h_score": "H-score", "leep": "LEEP", "knn": "k-NN"}
FIRST = "log_me"  # decides the order
VARIED = ("backbone", "weights", "dataset", "batchnorm", "seed", "trainer")
OF_TRIALS = ("backbone", "weights", "dataset", "seed", "paths", "tracking")
NAMING = ("backbone", "backbone.name", "weights")
NOT_TOLD = ("config", "data")
MISSING = "-"
HINT = (
    "These are estimates from the training images, made before anything is trained: hints for"
    " what to try first, not results."
)


@dataclass
class Candidate:
    """One combination, and what became of it.

    Attributes:
        config: Its configuration.
        data: Its data.
        backbone: Its name.
        weights: Its choice of weights.
        varied: What else differs between the combinations, by key.
        overrides: That compose it.
        estimates: By name; None where one does not apply. Empty where it failed.
        ranks: Place by each estimate among those that have it, from 1; equal values share one.
        embedding_size: Columns of the embedding.
        seconds: From loading to the last estimate; features that were kept are only read.
        source: Where the weights come from.
        sha256: Of the weights.
        batchnorm: The policy for its batch normalisation, resolved.
        failure: Why it has no estimates.
    """

    config: RankConfig
    data: Data
    backbone: str
    weights: str
    varied: dict[str, str]
    overrides: tuple[str, ...]
    estimates: dict[str, float | None] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    embedding_size: int | None = None
    seconds: float | None = None
    source: str | None = None
    sha256: str | None = None
    batchnorm: str | None = None
    failure: str | None = None

    @property
    def label(self) -> str:
        """What names it in one line."""
        varied = (f"{key}={value}" for key, value in self.varied.items())
        return " ".join([f"{self.backbone}/{self.weights}", *varied])

    def plain(self) -> dict[str, Any]:
        """Return all but the configuration and the data, in plain values."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOT_TOLD}
        for part in ("estimates", "ranks"):
            told[part] = {name: told[part].get(name) for name in TITLES}
        return told


def rank(app: App, overrides: Sequence[str]) -> int:
    """Score every combination that the comma lists name, and show them in order.

    What cannot be loaded is found before the first is scored. If that is all of them, it is a
    mistake like any other, and no run is opened.

    Returns:
        The exit code: 0, or 1 when a combination failed and another did not.
    """
    dataset, candidates = _candidates(app, app.plan(overrides))
    failures = _unusable(candidates)
    config, spec = candidates[0].config, candidates[0].data.spec
    out = config.out or config.paths.output / "rank" / new_id()
    tags = {"dataset": dataset, "data_hash": spec.data_hash, "split_hash": spec.split_hash}
    with (
        claimed(out),
        Reporter(len(candidates)) as reporter,
        open_run(open_configured(config), f"rank {dataset}", {"phase": "rank", **tags}) as run,
    ):
        run.text(redact("\n".join(overrides)) + "\n", "overrides.txt")
        run.params(_shared(candidates))
        for i, candidate in enumerate(candidates):
            reporter.start(candidate.label, i + 1, unit="images")
            if i not in failures:
                try:
                    _score(candidate)
                except Exception as error:  # whatever it is, it is told, and the others go on
                    failures[i] = error
            if i in failures:
                candidate.failure = reason(failures[i])
            reporter.finish(f"failed: {candidate.failure}" if candidate.failure else "finished")
        if len(failures) == len(candidates):
            raise failures[0]
        candidates = in_order(candidates)
        _keep(candidates, tags, out, run)
    _show(candidates, dataset)
    console.say(f"files: {out / 'rank.json'}, {out / 'rank.csv'}")
    return 1 if failures else 0


def in_order(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates by LogME, the best first, and fill in their ranks.

    Equal ones stay in the order in which they were given; what failed comes last.
    """
    for name in TITLES:
        values = [candidate.estimates.get(name) for candidate in candidates]
        for candidate, value in zip(candidates, values, strict=True):
            if value is not None:
                candidate.ranks[name] = 1 + sum(v is not None and v > value for v in values)
    return sorted(candidates, key=lambda c: c.ranks.get(FIRST, len(candidates) + 1))


def _candidates(app: App, plan: Plan) -> tuple[str, list[Candidate]]:
    """Return the dataset's name, and the combinations, each composed and checked.

    Raises:
        MedtransferError: For the first thing that is wrong with the configuration or the data.
    """
    for key in plan.swept:
        if key.partition(".")[0] not in VARIED:
            raise ConfigError(
                f"'{key}' has several values, and a ranking takes one", choices=VARIED
            )
    if not plan.trials:
        raise ConfigError(
            "a ranking needs all of its combinations at the start",
            remedy="leave hydra/sweeper out, and give them as a,b,c",
        )
    every = [app.compose(job) for job in plan.jobs]
    configs = [composed.typed(RankConfig) for composed in every]
    from medtransfer.extraction import open_same

    datas = open_same(configs)
    found = []
    for job, composed, config, data in zip(plan.jobs, every, configs, datas, strict=True):
        given = dict(override.partition("=")[::2] for override in job)
        found.append(
            Candidate(
                config=config,
                data=data,
                backbone=str(config.backbone.get("name", composed.choices["backbone"])),
                weights=composed.choices["weights"],
                varied={key: given[key] for key in plan.swept if key not in NAMING},
                overrides=tuple(map(redact, job)),
            )
        )
    return every[0].choices["dataset"], found


def _unusable(candidates: Sequence[Candidate]) -> dict[int, Exception]:
    """Return why combinations cannot be loaded, by their place.

    Raises:
        Exception: The first reason, where none can.
    """
    from medtransfer.extraction import load

    failures: dict[int, Exception] = {}
    for i, candidate in enumerate(candidates):
        try:
            load(candidate.config, candidate.data)
        except Exception as error:  # libraries refuse networks in their own ways
            failures[i] = error
    if len(failures) == len(candidates):
        raise failures[0]
    return failures


def _score(candidate: Candidate) -> None:
    from medtransfer.extraction import estimates, prepare

    started = time.perf_counter()
    data, config = candidate.data, candidate.config
    prepared = prepare(config, data, Progress(len(data.division.train)))
    candidate.estimates = estimates(prepared, config)
    candidate.seconds = time.perf_counter() - started
    candidate.embedding_size = prepared.backbone.embedding_size
    candidate.source = prepared.provenance.source
    candidate.sha256 = prepared.provenance.sha256
    candidate.batchnorm = prepared.batchnorm


def _keep(candidates: Sequence[Candidate], about: dict[str, str], out: Path, run: Run) -> None:
    """Write rank.json and rank.csv to a folder and to the run, and log the estimates.

    Raises:
        StoreError: If the folder cannot be written.
    """
    import pandas as pd

    data = candidates[0].data
    rows = [candidate.plain() for candidate in candidates]
    content = {
        "schema_version": SCHEMA,
        **about,
        "cases": len(data.train),
        "groups": len({data.decoded.records[i].group_id for i in data.train}),
        "ordered_by": FIRST,
        "note": HINT,
        "rows": rows,
    }
    flat = [flatten({**row, "overrides": " ".join(row["overrides"])}) for row in rows]
    texts = {
        "rank.json": json.dumps(content, indent=2) + "\n",
        "rank.csv": pd.DataFrame(flat).drop(columns="varied", errors="ignore").to_csv(index=False),
    }
    with writing(out):
        for name, text in texts.items():
            partial = out / f"{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(out / name)
    metrics: dict[str, float] = {}
    for candidate in candidates:
        label = re.sub(r"[^\w\-./ :]", "_", candidate.label)  # what MLflow takes
        values = {"seconds": candidate.seconds, **candidate.estimates}
        metrics |= {f"{name}/{label}": v for name, v in values.items() if v is not None}
    run.metrics(metrics)
    run.tags({"best": candidates[0].label})
    for name, text in texts.items():
        run.text(text, name)


def _show(candidates: Sequence[Candidate], dataset: str) -> None:
    """Print the table, the best by each estimate, and what to make of it."""
    caption = f"{dataset}: {len(candidates[0].data.train)} training images"
    table = Table(
        title=escape(caption), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for name in ("backbone", "weights", *candidates[0].varied):
        table.add_column(escape(name), overflow="fold")
    for name in (*TITLES.values(), "size", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in candidates:
        table.add_row(
            *map(escape, (each.backbone, each.weights, *each.varied.values())),
            *(_cell(each, name) for name in TITLES),
            MISSING if each.embedding_size is None else str(each.embedding_size),
            MISSING if each.seconds is None else f"{each.seconds:.1f}",
        )
    console.out.print(table)
    for each in candidates:
        if each.failure:
            console.say(f"failed: {each.label}: {each.failure}")
    best: dict[str, list[str]] = {}
    for name, title in TITLES.items():
        ranked = [each for each in candidates if name in each.ranks]
        if len(ranked) > 1:  # to be the only one is no merit
            first = next(each for each in ranked if each.ranks[name] == 1)
            best.setdefault(first.label, []).append(title)
    for label, titles in best.items():
        console.say(f"best by {', '.join(titles)}: {label}")
    console.say(HINT)
    chosen = [o for o in candidates[0].overrides if re.split("[.=]", o)[0] in OF_TRIALS]
    console.say(f"try:   {' '.join([console.program(), 'train', *chosen])}")


def _cell(candidate: Candidate, name: str) -> str:
    value = candidate.estimates.get(name)
    return MISSING if value is None else f"{value:.3f} ({candidate.ranks[name]})"


def _shared(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Return the keys, flattened, that are the same for all."""
    first, *others = (flatten(c.config.model_dump(mode="json")) for c in candidates)
    return {k: v for k, v in first.items() if all(o.get(k, ...) == v for o in others)}

"""What a reviewer would find in a dataset, found before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medtransfer import console
from medtransfer.app import App, Composed
from medtransfer.commands.extract import Progress
from medtransfer.components import build
from medtransfer.config import DatasetAuditConfig
from medtransfer.console import Reporter

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from medtransfer.data.base import Dataset
    from medtransfer.data.duplicates import Pair
    from medtransfer.gate import Inspection

COLOURS = {"leak": "red", "warning": "yellow", "info": "dim"}


@dataclass(frozen=True)
class _Done:
    dataset: str
    inspection: Inspection
    waived: tuple[str, ...]
    written: list[Path]


def audit(app: App, overrides: Sequence[str]) -> int:
    """Look through a dataset, show what was found, and keep it.

    Returns:
        The exit code: 0.

    Raises:
        LeakageError: If the split leaks and that is not waived; all is shown and kept before.
    """
    done: _Done = app.run(_audit, overrides)
    inspection = done.inspection
    console.out.print(_sizes(inspection, done.dataset))
    console.out.print(_table(inspection, done.waived))
    for path in done.written:
        console.say(f"written: {path}")
    inspection.refuse(done.waived)
    return 0


def _audit(values: DictConfig) -> _Done:
    composed = Composed.of_job(values)
    config = composed.typed(DatasetAuditConfig)
    from medtransfer.data.base import Dataset
    from medtransfer.gate import inspect

    dataset = build(config.dataset, Dataset, trusted=config.trusted_modules)
    alike = _embedded(config, dataset) if config.audit.embeddings else ()
    inspection = inspect(dataset, config.paths.cache, alike)
    name = composed.choices["dataset"]
    written = inspection.save(config.out or config.paths.output / "audits" / name)
    return _Done(name, inspection, config.audit.waive, written)


def _embedded(config: DatasetAuditConfig, dataset: Dataset) -> Sequence[Pair]:
    """Return the pairs of images that the backbone takes for nearly the same."""
    from medtransfer.data.loading import Data
    from medtransfer.extraction import prepare
    from medtransfer.gate import REMEDIES, annotation_of
    from medtransfer.neighbours import close_pairs

    data = Data.open(
        dataset,
        annotation_of(dataset),
        cache=config.paths.cache,
        seed=config.seed,
        waived=tuple(REMEDIES),  # the audit itself will tell
    )
    progress = Progress(len(data.decoded.records))
    with Reporter(1) as reporter:
        reporter.start(f"embed {len(data.decoded.records)} images", unit="images")
        pairs = close_pairs(prepare(config, data, progress), config.audit.similarity)
        reporter.finish("finished")
    return pairs


def _sizes(inspection: Inspection, name: str) -> str:
    counts = {side: inspection.sides.count(side) for side in ("train", "val", "test", "")}
    told = [f"{count} {side or 'in no split'}" for side, count in counts.items() if count]
    kinds = [f"{count} {kind}" for kind, count in inspection.decoded.sources.items()]
    patients = len(set(inspection.decoded.patients))
    return (
        f"{escape(name)}: {len(inspection.sides)} images of {patients} patients"
        f" ({', '.join(told)}); {', '.join(kinds)}"
    )


def _table(inspection: Inspection, waived: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for title in ("", "code", "found"):
        table.add_column(title, overflow="fold")
    for finding in inspection.audit.findings:
        kind = "waived" if finding.code in waived else finding.severity
        colour = COLOURS.get(kind, "yellow")
        table.add_row(f"[{colour}]{kind}[/]", finding.code, escape(finding.message))
    if not inspection.audit.findings:
        table.add_row("", "", "nothing")
    return table

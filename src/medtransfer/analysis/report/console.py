"""The report as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from medtransfer.analysis.grid import where
from medtransfer.analysis.report.words import (
    NONE,
    interval,
    large,
    megabytes,
    number,
    plain,
    probability,
    seconds,
    title,
)
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medtransfer.analysis.results import Results

SHOWN = 15  # differences of a setting that a screen can bear: those of six arms
_STYLES = {"better": "green", "worse": "red", "equivalent": "cyan", "undecided": "yellow"}


def tables(results: Results) -> list[Table]:
    """Return for each setting its arms, best first, and their contrasts; then the failures."""
    settings = list({where(row.axes): row.axes for row in results.arms}.values())
    found = []
    for axes in settings:
        found.append(_arms(results, axes))
        if any(row.axes == axes for row in results.contrasts):
            found.append(_contrasts(results, axes))
    return [*found, *([_failures(results)] if results.failures else [])]


def _arms(results: Results, axes: Mapping[str, str]) -> Table:
    name = title(results.metric)
    lower = ", lower is better" if results.metric in LOWER_IS_BETTER else ""
    rows = [row for row in results.arms if row.axes == axes]
    columns = {
        name: [number(row.mean) for row in rows],
        "95 % CI": [interval(row) for row in rows],
        "Seeds": [f"{row.n_seeds}" + f" ({row.failed} failed)" * bool(row.failed) for row in rows],
        "Training": [seconds(row.cost.get("train_seconds")) for row in rows],
        "Trainable": [large(row.cost.get("trainable_parameters")) for row in rows],
        "Memory": [megabytes(row.cost.get("peak_memory_mb")) for row in rows],
    }
    table = _table(f"{results.study}: {name} by arm{lower}", axes, "Arm")
    # What no arm has, such as the memory of a CPU run, need not take up the width.
    shown = {head: cells for head, cells in columns.items() if {*cells} != {NONE}}
    for head in shown:
        table.add_column(head, justify="right", no_wrap=True)
    for row, *cells in zip(rows, *shown.values(), strict=True):
        table.add_row(_name(row.arm), *cells)
    return table


def _contrasts(results: Results, axes: Mapping[str, str]) -> Table:
    table = _table("Paired differences", axes, "A versus B", "A is")
    for name in ("A - B", "95 % CI", "adj. p"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = [row for row in results.contrasts if row.axes == axes]
    notes = []
    if len(rows) > SHOWN:
        notes.append(
            f"the best arm against each other one; all {len(rows)} pairs: see the report\n"
        )
        best = next(row.arm for row in results.arms if row.axes == axes)
        rows = [row for row in rows if best in {row.a, row.b}]
    for row in rows:
        table.add_row(
            Text(f"{plain(row.a)}\nversus {plain(row.b)}"),
            Text(row.verdict + "*" * row.provisional, style=_STYLES[row.verdict]),
            number(row.diff, signed=True),
            interval(row),
            probability(row.p_adj),
        )
    if any(row.provisional for row in rows):
        notes.append("* provisional: fewer than 5 seeds\n")
    table.caption = "".join(notes) or None
    return table


def _failures(results: Results) -> Table:
    table = _table("Trials without a result", {}, "Arm", "Seed", "Reason")
    for each in results.failures:
        arm = each.arm + (f" @ {where(each.axes)}" if each.axes else "")
        seed = "-" if each.seed is None else f"{each.seed}"
        table.add_row(_name(arm), seed, _name(each.reason))
    return table


def _table(heading: str, axes: Mapping[str, str], *names: str) -> Table:
    setting = f" @ {where(axes)}" if axes else ""
    table = Table(
        title=_name(heading + setting),
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _name(text: str) -> Text:
    """Return text that cannot act as rich markup or move the cursor."""
    return Text(plain(text))

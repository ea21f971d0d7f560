"""The report as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from medtransfer.analysis.grid import where
from medtransfer.analysis.report.facts import price, settings, told
from medtransfer.analysis.report.words import (
    NONE,
    interval,
    large,
    megabytes,
    number,
    plain,
    probability,
    seconds,
    seeds_of,
    title,
)
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medtransfer.analysis.results import Contrast, Results

_STYLES = {"better": "green", "worse": "red", "equivalent": "cyan", "undecided": "yellow"}


def tables(results: Results) -> list[Table]:
    """Return the primary contrast, for each setting its arms and contrasts, then the failures."""
    found = [_primary(results)] if results.primary else []
    for axes in settings(results):
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
        "Seeds": [seeds_of(row) for row in rows],
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
    every = [row for row in results.contrasts if row.axes == axes]
    rows = told(every, [row for row in results.arms if row.axes == axes])
    notes = []
    if len(rows) < len(every):
        notes.append(f"the best arm against each other one; all {len(every)} pairs: see the report")
    for row in rows:
        _add(table, row)
    if any(row.provisional for row in rows):
        notes.append("* provisional: fewer than 5 seeds")
    if any(row.primary for row in rows):
        notes.append("p of the primary contrast is not corrected")
    table.caption = "".join(f"{note}\n" for note in notes) or None
    return table


def _primary(results: Results) -> Table:
    primary = results.primary
    assert primary is not None
    table = _table("Primary contrast", primary.axes, "A versus B", "A is")
    for name in ("A - B", "95 % CI", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    _add(table, primary)
    price_of = price(results, primary)
    notes = ["* provisional: fewer than 5 seeds"] * primary.provisional
    notes += [plain(f"price of {price_of}")] if price_of else []
    table.caption = Text("".join(f"{note}\n" for note in notes)) if notes else None
    return table


def _add(table: Table, row: Contrast) -> None:
    table.add_row(
        Text(f"{plain(row.a)}\nversus {plain(row.b)}"),
        Text(row.verdict + "*" * row.provisional, style=_STYLES[row.verdict]),
        number(row.diff, signed=True),
        interval(row),
        probability(row.p if row.primary else row.p_adj),
    )


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

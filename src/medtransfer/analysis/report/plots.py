"""The kinds of figures over a pair of axes: intervals, curves, prices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib import ticker

from medtransfer.analysis.report.sheet import (
    INK,
    LEFT,
    LINE,
    RIGHT,
    SIZE,
    SMALL,
    WIDTH,
    Caption,
    Sheet,
    dashes,
    wrapped,
)
from medtransfer.analysis.report.words import large

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from medtransfer.analysis.report.blocks import Figure, Key

HEIGHT = 230  # of a pair of axes
TOP = 24  # room for the name of the vertical axis
BOTTOM = 44  # for numbers and name of the horizontal one
_STRIP = 26  # an interval and the space around it
_FAINT, QUIET = 0.10, 0.75
_NEXT = 0.03  # of the width of an axis: points that lie closer are moved apart
# Steps of a logarithmic axis, the coarsest that gives enough labels.
_STEPS = ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0))


@dataclass(frozen=True)
class Row:
    """An estimate with its interval, and the lines of text above it.

    Args:
        text: Names, one a line; the first is set off where `strong`.
        told: Numbers and verdict, in smaller type.
    """

    text: tuple[str, ...]
    told: str
    value: float
    lo: float | None
    hi: float | None
    colour: str = INK
    marker: str = "s"
    strong: bool = False


@dataclass(frozen=True)
class Curve:
    """A line of a figure; without a key a thin line of reference with its name beside the axes."""

    key: Key | None
    x: Sequence[float]
    y: Sequence[float]
    lo: Sequence[float] = ()
    hi: Sequence[float] = ()
    look: Literal["line", "points on a line", "faint points", "point", "steps"] = "line"


def intervals(
    caption: Caption,
    rows: Sequence[Row],
    *,
    x_range: tuple[float, float],
    x_label: str,
    sides: tuple[str, str] = ("", ""),
    zero: bool = True,
    rope: float = 0.0,
    keys: Sequence[Key] = (),
) -> Figure:
    """Return a forest plot; names stand above their interval, so that none is too long."""
    texts = [[w for line in row.text for w in wrapped(line, WIDTH - 8)] for row in rows]
    heights = [LINE * (len(t) + bool(row.told)) for t, row in zip(texts, rows, strict=True)]
    height = float(sum(heights) + _STRIP * len(rows) + 6)
    sheet = Sheet(height + BOTTOM + (LINE if any(sides) else 0), keys)
    axes = sheet.axes(0, height, left=16, right=16)
    axes.set(xlim=x_range, ylim=(height, 0), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    y = 4.0
    for row, lines, tall in zip(rows, texts, heights, strict=True):
        for i, line in enumerate(lines):
            weight = "bold" if row.strong and not i else "normal"
            sheet.text(4, y + LINE * (i + 0.5), line, weight=weight)
        if row.told:
            sheet.text(4, y + tall - LINE / 2, row.told, fontsize=SMALL, alpha=QUIET)
        y += tall
        _interval(axes, row, y, rope=rope, zero=zero)
        y += _STRIP
    for side, x, where in zip(sides, (4, WIDTH - 4), ("left", "right"), strict=True):
        if side:
            sheet.text(x, height + 29, side, ha=where, fontsize=SMALL, alpha=QUIET)
    sheet.text(WIDTH / 2, height + (48 if any(sides) else 33), x_label, ha="center")
    return sheet.done(caption)


def _interval(axes: Axes, row: Row, top: float, *, rope: float, zero: bool) -> None:
    middle = top + _STRIP / 2 - 3.5
    ends = (top + 1, top + _STRIP - 8)
    if rope:
        axes.fill_betweenx(ends, -rope, rope, color=INK, alpha=_FAINT, linewidth=0)
    if zero:
        axes.plot([0, 0], ends, color=INK, linewidth=0.9, alpha=0.6)
    if row.lo is not None and row.hi is not None:
        wide = 3.0 if row.strong else 2.0
        axes.plot([row.lo, row.hi], [middle] * 2, color=row.colour, linewidth=wide, zorder=3)
    size = 8.0 if row.strong else 6.5
    axes.plot(row.value, middle, row.marker, color=row.colour, markersize=size, zorder=4)


def curves(
    caption: Caption,
    lines: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    x_log: bool = False,
    x_ticks: Mapping[float, str] | None = None,
    x_whole: bool = False,
    marked: Sequence[tuple[float, str]] = (),
    keys: Sequence[Key] = (),
) -> Figure:
    """Return lines over one pair of axes; `marked` are places on the horizontal one, in words."""
    notes = [line for _, word in marked if word for line in wrapped(word, WIDTH - 8, SMALL)]
    above = TOP + LINE * len(notes)
    sheet = Sheet(above + HEIGHT + BOTTOM, keys)
    axes = sheet.axes(above, HEIGHT)
    for line in lines:
        _curve(axes, line)
    if x_log:
        axes.set_xscale("log")
    if x_range:
        axes.set_xlim(x_range)
    if y_range:
        axes.set_ylim(y_range)
    horizontal(axes, x_log=x_log, whole=x_whole, ticks=x_ticks)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.grid(visible=True)
    for x, _ in marked:
        axes.axvline(x, color=INK, linewidth=1.2, linestyle=(0, (1, 2)))
    sheet.text(4, 8, y_label)
    for i, note in enumerate(notes):
        sheet.text(4, 10 + LINE * (i + 1), note, fontsize=SMALL, alpha=QUIET)
    sheet.text((WIDTH + LEFT - RIGHT) / 2, above + HEIGHT + BOTTOM - 10, x_label, ha="center")
    return sheet.done(caption)


def _curve(axes: Axes, line: Curve) -> None:
    x, y = np.asarray(line.x), np.asarray(line.y)
    if line.key is None:
        axes.plot(x, y, color=INK, linewidth=1, alpha=0.5, linestyle=(0, (4, 3)))
        return
    colour = line.key.colour
    lo, hi = np.asarray(line.lo), np.asarray(line.hi)
    if len(lo) and line.look == "point":
        axes.vlines(x, lo, hi, color=colour, linewidth=1.4, alpha=0.8)
    elif len(lo):
        axes.fill_between(x, lo, hi, color=colour, alpha=0.15, linewidth=0)
    if line.look == "steps":
        axes.plot(x, y, color=colour, drawstyle="steps-post", alpha=0.9)
        return
    points = line.look != "line"
    axes.plot(
        x,
        y,
        color=colour,
        linestyle="none" if "line" not in line.look else dashes(line.key),
        marker=line.key.marker if points else "",
        markersize=9 if line.look == "point" else 6,
        alpha=0.45 if line.look == "faint points" else 1.0,
    )


def horizontal(
    axes: Axes, *, x_log: bool, whole: bool, ticks: Mapping[float, str] | None = None
) -> None:
    """Label the horizontal axis where labels have room."""
    lo, hi = sorted(axes.get_xlim())
    if ticks is None and not x_log:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=whole))
        return
    if not ticks:
        ticks = {x: f"{x:g}" if x < 10_000 else _short(x) for x in log_ticks(lo, hi)}
    shown = {x: text for x, text in ticks.items() if lo <= x <= hi}
    axes.set_xticks(list(shown), list(_spaced(axes, shown).values()))
    axes.minorticks_off()


def _short(value: float) -> str:
    """Return `10 k` or `1.5 M`."""
    return large(value).replace(".0 ", " ")


def _spaced(axes: Axes, ticks: Mapping[float, str]) -> dict[float, str]:
    """Return labels, empty where they would run into the one before."""
    places = axes.transData.transform([(x, 0.5) for x in ticks])[:, 0]
    shown, last = {}, -np.inf
    for (x, text), place in zip(ticks.items(), places, strict=True):
        half = len(text) * SIZE * 0.32
        shown[x] = text if place - half > last + 5 else ""
        last = place + half if shown[x] else last
    return shown


def log_ticks(lo: float, hi: float) -> list[float]:
    """Return three to six round numbers between the ends of a logarithmic axis, if there are."""
    decades = range(floor(log10(lo)), ceil(log10(hi)) + 1)
    found: list[float] = []
    for steps in _STEPS:
        found = [s * 10.0**d for d in decades for s in steps if lo <= s * 10.0**d <= hi]
        if len(found) >= 3:
            break
    if len(found) < 2:
        found = [x for x in ticker.MaxNLocator(3).tick_values(lo, hi) if lo <= x <= hi]
    return found[:: ceil(len(found) / 6)] if len(found) > 6 else found


def prices(
    caption: Caption,
    points: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    lower: bool,
) -> Figure:
    """Return quality against a price on a logarithmic axis, with the line of the best buys."""
    xs = [float(each.x[0]) for each in points]
    wide = max(max(xs) / min(xs), 1.5)
    ends = min(xs) / wide**0.12, max(xs) * wide**0.12
    apart = _apart(xs, wide**_NEXT)
    front = _front([(float(p.x[0]), float(p.y[0])) for p in points], lower=lower)
    path = [(a, b) for one, two in pairwise(front) for a, b in (one, (two[0], one[1]))]
    path += [front[-1], (ends[1], front[-1][1])]
    line = Curve(None, [x for x, _ in path], [y for _, y in path])
    return curves(
        caption,
        [line, *(replace(p, x=[x]) for p, x in zip(points, apart, strict=True))],
        x_label=x_label,
        y_label=y_label,
        x_range=ends,
        x_log=True,
        keys=[each.key for each in points if each.key],
    )


def _apart(xs: Sequence[float], step: float) -> list[float]:
    """Return places moved up where a point would hide one before it, by a factor of `step`."""
    found: list[float] = []
    for x in xs:
        place = x
        while any(1 / step < place / other < step for other in found):
            place *= step
        found.append(place)
    return found


def _front(points: Sequence[tuple[float, float]], *, lower: bool) -> list[tuple[float, float]]:
    """Return the points that nothing cheaper or as cheap equals, cheapest first."""
    sign = -1 if lower else 1
    best, front = -np.inf, []
    for x, y in sorted(points, key=lambda p: (p[0], -sign * p[1])):
        if sign * y > best:
            best = sign * y
            front.append((x, y))
    return front

"""The kinds of figures along one axis: values of seeds and of cases, and ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import ticker
from numpy.typing import NDArray

from medtransfer.analysis.report.plots import BOTTOM, QUIET
from medtransfer.analysis.report.sheet import INK, LINE, SMALL, WIDTH, Caption, Sheet, wrapped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from medtransfer.analysis.report.blocks import Figure, Key

Floats = NDArray[np.float64]

_BINS = 44


def distributions(
    caption: Caption,
    values: Mapping[Key, Sequence[float]],
    *,
    x_label: str,
    density: bool,
) -> Figure:
    """Return for each arm its values: as points, or as a density with its quartiles."""
    tall = 46 if density else 20
    texts = {key: wrapped(key.name, WIDTH - 8) for key in values}
    height = float(sum(LINE * len(lines) + tall + 14 for lines in texts.values()))
    sheet = Sheet(height + BOTTOM)
    axes = sheet.axes(0, height, left=16, right=16)
    every = np.concatenate([np.asarray(each, dtype=float) for each in values.values()])
    lo, hi = float(every.min()), float(every.max())
    margin = 0.05 * (hi - lo) or 0.05
    axes.set(xlim=(lo - margin, hi + margin), ylim=(height, 0), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
    y = 2.0
    for key, lines in texts.items():
        for i, line in enumerate(lines):
            sheet.text(4, y + LINE * (i + 0.5), line)
        y += LINE * len(lines)
        given = np.asarray(values[key], dtype=float)
        if density:
            _density(axes, key, given, y + tall, tall - 10)
        else:
            _points(axes, key, given, y + tall / 2)
        y += tall + 14
    sheet.text(WIDTH / 2, height + BOTTOM - 10, x_label, ha="center")
    return sheet.done(caption)


def _points(axes: Axes, key: Key, values: Floats, y: float) -> None:
    axes.plot([values.min(), values.max()], [y, y], color=key.colour, linewidth=1, alpha=0.6)
    places = np.full(len(values), y)
    axes.plot(values, places, key.marker, color=key.colour, alpha=0.75, linestyle="none")
    axes.plot([values.mean()] * 2, [y - 9, y + 9], color=INK, linewidth=1.6, zorder=4)


def _density(axes: Axes, key: Key, values: Floats, base: float, tall: float) -> None:
    counts, edges = np.histogram(values, bins=_BINS, range=axes.get_xlim())
    tops = base - tall * counts / max(counts.max(), 1)
    axes.stairs(tops, edges, baseline=base, fill=True, color=key.colour, alpha=0.35)
    axes.stairs(tops, edges, baseline=base, color=key.colour, linewidth=1.2)
    low, middle, high = np.percentile(values, [25, 50, 75])
    axes.plot([low, high], [base + 2] * 2, color=INK, linewidth=3, solid_capstyle="butt")
    axes.plot([middle] * 2, [base + 5, base - 8], color=INK, linewidth=1.6)


def ranks(
    caption: Caption,
    arms: Mapping[Key, float],
    critical: float | None,
) -> Figure:
    """Return arms on a line of mean ranks, best first, with the critical difference as a bar."""
    ordered = sorted(arms.items(), key=lambda item: item[1])
    texts = [wrapped(f"{key.name}: {rank:.2f}", WIDTH - 8) for key, rank in ordered]
    heights = [LINE * len(lines) + 18 for lines in texts]
    height = float(sum(heights) + 36)
    sheet = Sheet(height + BOTTOM)
    axes = sheet.axes(0, height, left=16, right=16)
    axes.set(xlim=(0.9, max(len(ordered), 2) + 0.1), ylim=(height, 0), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    if critical is not None:
        first = ordered[0][1]
        last = min(first + critical, len(ordered) + 0.1)
        axes.plot([first, last], [22, 22], color=INK, linewidth=3, solid_capstyle="butt")
        sheet.text(4, 8, f"critical difference {critical:.2f}", fontsize=SMALL, alpha=QUIET)
    y = 30.0
    for (key, rank), lines, tall in zip(ordered, texts, heights, strict=True):
        for i, line in enumerate(lines):
            sheet.text(4, y + LINE * (i + 0.5), line)
        place = y + tall - 11
        axes.plot([axes.get_xlim()[0], rank], [place] * 2, color=key.colour, linewidth=1, alpha=0.5)
        axes.plot(rank, place, key.marker, color=key.colour, markersize=7)
        y += tall
    sheet.text(WIDTH / 2, height + BOTTOM - 10, "mean rank over datasets (1 is best)", ha="center")
    return sheet.done(caption)

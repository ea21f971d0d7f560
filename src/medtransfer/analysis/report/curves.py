"""Figures of how arms come on: over the training data that they see, and over what is tried."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from math import isfinite, prod
from typing import TYPE_CHECKING

from medtransfer.analysis.grid import where
from medtransfer.analysis.learning import AXES
from medtransfer.analysis.report import plots
from medtransfer.analysis.report.facts import central_setting, leading
from medtransfer.analysis.report.figures import ARMS, PANELS, keys, positive
from medtransfer.analysis.report.plots import Curve
from medtransfer.analysis.report.sheet import Caption
from medtransfer.analysis.report.words import number, title
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medtransfer.analysis.report.blocks import Figure, Key
    from medtransfer.analysis.results import Arm, Crossing, Results, Tuning


def learning_curves(results: Results) -> Iterator[Figure]:
    """Yield the metric over the share of the training data, with the crossings."""
    for axis in AXES:
        groups: dict[str, list[Arm]] = defaultdict(list)
        for row in results.arms:
            if positive(row.axes.get(axis)) and row.mean is not None:
                rest = {k: v for k, v in row.axes.items() if k != axis}
                groups[where(rest)].append(row)
        groups = {k: v for k, v in groups.items() if len({r.axes[axis] for r in v}) > 1}
        for i, rows in enumerate(list(groups.values())[:PANELS], start=1):
            crossings = [c for c in results.crossings if c.axis == axis] * (len(groups) == 1)
            yield _learning_curve(results, axis, i, rows, crossings)


def _learning_curve(
    results: Results, axis: str, i: int, rows: Sequence[Arm], crossings: Sequence[Crossing]
) -> Figure:
    setting = where({k: v for k, v in rows[0].axes.items() if k != axis})
    looks, lines = keys(results), []
    shown = leading(results, central_setting(results), ARMS)
    points: dict[str, list[Arm]] = {}
    for arm in shown:
        own = sorted((r for r in rows if r.arm == arm), key=lambda r: float(r.axes[axis]))
        if not own:
            continue
        points[arm] = own
        bands = all(row.lo is not None for row in own)
        lines.append(
            Curve(
                looks[arm],
                [float(row.axes[axis]) for row in own],
                [row.mean or 0.0 for row in own],
                [row.lo or 0.0 for row in own] if bands else (),
                [row.hi or 0.0 for row in own] if bands else (),
                look="points on a line",
            )
        )
    marked = []
    for each in crossings:
        if each.at is not None and each.a in points and each.b in points:
            place = _meeting(points[each.a], points[each.b], axis)
            marked += [(place, _crossing(each) * (len(crossings) == 1))] if place else []
    ticks = {float(r.axes[axis]): r.axes[axis] for r in rows}
    what = "share of the training data" if axis.endswith("fraction") else "training cases a class"
    values = "; ".join(
        f"{arm}: " + ", ".join(f"{number(r.mean)} at {r.axes[axis]}" for r in own)
        for arm, own in points.items()
    )
    return plots.curves(
        Caption(
            f"learning-curve-{axis[8:]}-{i}",
            setting or f"{title(results.metric)} over the {what}",
            f"{title(results.metric)} over the {what}. {values}.",
        ),
        lines,
        x_label=what,
        y_label=f"{title(results.metric)}, 95 % CI",
        x_log=True,
        x_ticks=dict(sorted(ticks.items())),
        marked=marked[:ARMS],
        keys=[looks[arm] for arm in points],
    )


def _crossing(each: Crossing) -> str:
    lo, hi = ("" if end is None else f"{end:.3g}" for end in (each.lo, each.hi))
    ends = f"{lo} to {hi}" if lo and hi else f"above {lo}" if lo else f"below {hi}" if hi else ""
    return f"dotted: they cross at {each.at:.3g} {each.unit}" + f" (95 % CI {ends})" * bool(ends)


def _meeting(a: Sequence[Arm], b: Sequence[Arm], axis: str) -> float | None:
    """Return where the drawn lines of two arms meet last, on the logarithmic axis."""
    means = {float(r.axes[axis]): r.mean or 0.0 for r in a}
    gap = [(x, (r.mean or 0.0) - means[x]) for r in b if (x := float(r.axes[axis])) in means]
    found = None
    for (x0, d0), (x1, d1) in pairwise(gap):
        if d0 * d1 < 0:
            share = d0 / (d0 - d1)
            found = prod((x0 ** (1 - share), x1**share))
    return found


def tunings(results: Results) -> Iterator[Figure]:
    """Yield the scores of the draws and the best so far, one figure a setting."""
    looks = keys(results)
    shown = leading(results, central_setting(results), ARMS)
    lower = results.metric in LOWER_IS_BETTER
    groups: dict[str, list[Tuning]] = defaultdict(list)
    for each in results.tuning:
        if each.arm in shown and any(_number(d.score) for d in each.draws):
            groups[where(each.axes)].append(each)
    for i, (setting, group) in enumerate(list(groups.items())[:PANELS], start=1):
        lines, drawn = [], {d.number + 1 for each in group for d in each.draws}
        for each in sorted(group, key=lambda t: shown.index(t.arm)):
            scores = [(d.number + 1.0, d.score) for d in each.draws if d.score is not None]
            lines += _tried(looks[each.arm], scores, each.chosen, lower=lower)
        yield plots.curves(
            Caption(
                f"tuning-{i}",
                setting or "Scores of the draws",
                f"Validation {title(results.metric)} of each draw by arm, the best so far as a "
                "line, the chosen one large.",
            ),
            lines,
            x_label="draw",
            x_whole=len(drawn) > 1,
            x_ticks={float(x): f"{x}" for x in drawn} if len(drawn) == 1 else None,
            y_label=f"validation {title(results.metric)}",
            keys=[looks[t.arm] for t in sorted(group, key=lambda t: shown.index(t.arm))],
        )


def _tried(
    look: Key, scores: Sequence[tuple[float, float]], chosen: int | None, *, lower: bool
) -> list[Curve]:
    better = min if lower else max
    best = [better(score for _, score in scores[: i + 1]) for i in range(len(scores))]
    xs = [x for x, _ in scores]
    picked = [(x, y) for x, y in scores if chosen is not None and x == chosen + 1]
    return [
        Curve(look, xs, best, look="steps"),
        Curve(look, xs, [y for _, y in scores], look="faint points"),
        *(Curve(look, [x], [y], look="point") for x, y in picked),
    ]


def _number(value: float | None) -> bool:
    return value is not None and isfinite(value)

"""Which figures a study has, and what they show; of many arms and settings only the first."""

from __future__ import annotations

from collections import defaultdict
from math import isfinite, log
from typing import TYPE_CHECKING

from medtransfer.analysis.grid import where
from medtransfer.analysis.report import plots, spreads
from medtransfer.analysis.report.facts import (
    COSTS,
    central_setting,
    leading,
    names,
    settings,
    told,
)
from medtransfer.analysis.report.plots import Curve, Row
from medtransfer.analysis.report.sheet import INK, Caption, key
from medtransfer.analysis.report.words import (
    counted,
    interval,
    listed,
    number,
    probability,
    title,
)
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medtransfer.analysis.report.blocks import Figure, Key
    from medtransfer.analysis.results import Contrast, Results

ARMS = 8  # lines that can be told apart
PANELS = 6  # figures of one kind
ROWS = 16  # intervals of a figure
_LOOK = {
    "better": ("#009e73", "^"),
    "worse": ("#d55e00", "v"),
    "equivalent": ("#0072b2", "s"),
    "undecided": (INK, "o"),
}


def keys(results: Results) -> dict[str, Key]:
    """Return what each arm looks like, the same in all figures."""
    return {arm: key(i, arm) for i, arm in enumerate(names(results))}


def forests(
    results: Results, contrasts: Sequence[Contrast], name: str = "contrasts"
) -> Iterator[Figure]:
    """Yield the intervals of the contrasts, one figure a setting, the primary's first."""
    groups: dict[str, list[Contrast]] = defaultdict(list)
    for each in told(contrasts, results.arms):
        if each.diff is not None:
            groups[where(each.axes)].append(each)
    drawn = list(groups.items())[:PANELS]
    x_range = _range([each for _, group in drawn for each in group[:ROWS]], results.rope)
    sides = ("\N{LEFTWARDS ARROW} B is better", "A is better \N{RIGHTWARDS ARROW}")
    if results.metric in LOWER_IS_BETTER:
        sides = ("\N{LEFTWARDS ARROW} A is better", "B is better \N{RIGHTWARDS ARROW}")
    for i, (setting, group) in enumerate(drawn, start=1):
        rows = [_contrast_row(each) for each in group[:ROWS]]
        yield plots.intervals(
            Caption(
                f"{name}-{i}",
                setting or "All contrasts",
                _alt(f"Differences in {title(results.metric)}", group[:ROWS]),
            ),
            rows,
            x_range=x_range,
            x_label=f"A \N{MINUS SIGN} B, {title(results.metric)}, with 95 % CI",
            sides=sides,
            rope=results.rope,
        )


def _contrast_row(each: Contrast) -> Row:
    colour, marker = _LOOK[each.verdict]
    p = each.p if each.primary else each.p_adj
    doubt = " (provisional)" if each.provisional else ""
    return Row(
        text=(*(["PRIMARY"] * each.primary), each.a, f"\N{MINUS SIGN} {each.b}"),
        told=f"{each.verdict}{doubt}: {number(each.diff, signed=True)} ({interval(each)}), "
        f"p {probability(p)}",
        value=each.diff or 0.0,
        lo=each.lo,
        hi=each.hi,
        colour=colour,
        marker=marker,
        strong=each.primary,
    )


def _alt(what: str, contrasts: Sequence[Contrast]) -> str:
    each = "; ".join(
        f"{c.a} minus {c.b}: {number(c.diff, signed=True)}, 95 % CI {interval(c)}, {c.verdict}"
        for c in contrasts
    )
    return f"{what}. {each}."


def _range(rows: Sequence[Contrast], rope: float) -> tuple[float, float]:
    ends = [x for c in rows for x in (c.diff, c.lo, c.hi) if x is not None]
    lo, hi = min([*ends, -1.2 * rope, 0.0]), max([*ends, 1.2 * rope, 0.0])
    margin = 0.04 * (hi - lo) or 0.01
    return lo - margin, hi + margin


def distributions(results: Results) -> Iterator[Figure]:
    """Yield the values of seeds, and those of cases, by arm."""
    looks, shown = keys(results), leading(results, central_setting(results), ARMS)
    for kind in ("seeds", "cases"):
        found = [s for s in results.details.spread if s.kind == kind and s.arm in shown]
        found = [s for s in found if s.values]
        if not found:
            continue
        read_as = {
            "seeds": "One point a seed; the bar is their mean.",
            "cases": "One value a case, the mean over seeds; below: median and quartiles.",
        }[kind]
        yield spreads.distributions(
            Caption(
                f"spread-{kind}",
                f"By {kind[:-1]}: {title(found[0].of)}",
                f"{title(found[0].of)} by {kind[:-1]}. {read_as}",
            ),
            {looks[s.arm]: s.values for s in sorted(found, key=lambda s: shown.index(s.arm))},
            x_label=title(found[0].of),
            density=kind == "cases",
        )


def prices(results: Results) -> Iterator[Figure]:
    """Yield quality against each price, under the setting of the headline."""
    axes, looks = central_setting(results), keys(results)
    shown = leading(results, axes, 2 * ARMS)
    for cost, (name, shown_as) in COSTS.items():
        points, words = [], []
        for arm in shown:
            row = next((r for r in results.arms if r.arm == arm and r.axes == axes), None)
            if row is None or row.mean is None or not positive(row.cost.get(cost)):
                continue
            known = row.lo is not None and row.hi is not None
            lo, hi = ([row.lo or 0.0], [row.hi or 0.0]) if known else ([], [])
            points.append(Curve(looks[arm], [row.cost[cost]], [row.mean], lo, hi, look="point"))
            words.append(f"{arm}: {number(row.mean)} for {shown_as(row.cost[cost])}")
        if len(points) > 1:
            unit = {"train_seconds": ", s", "peak_memory_mb": ", MB", "latency_ms": ", ms"}
            yield plots.prices(
                Caption(
                    f"price-{cost.replace('_', '-')}",
                    f"Against {name}",
                    f"{title(results.metric)} against {name}. {'; '.join(words)}.",
                ),
                points,
                x_label=name + unit.get(cost, ""),
                y_label=f"{title(results.metric)}, 95 % CI",
                lower=results.metric in LOWER_IS_BETTER,
            )


def charts(results: Results, *wanted: str) -> Iterator[Figure]:
    """Yield the charts of these names."""
    looks = keys(results)
    shown = leading(results, results.details.setting, ARMS)
    for chart in (c for c in results.details.charts if c.name in wanted):
        lines = [line for arm in shown for line in chart.lines if line.label == arm]
        references = [Curve(None, line.x, line.y) for line in chart.references]
        arms = listed([line.label for line in lines])
        against = listed([line.label for line in chart.references])
        told_of = f"{chart.title}: {chart.y_label} over {chart.x_label} of {arms}"
        told_of += f"; dashed: {against}" if against else ""
        yield plots.curves(
            Caption(
                f"chart-{chart.name.replace('_', '-')}",
                chart.title,
                f"{told_of}. {chart.note}".strip(),
            ),
            [
                *references,
                *(Curve(looks[x.label], x.x, x.y, x.lo, x.hi) for x in lines),
            ],
            x_label=chart.x_label,
            y_label=chart.y_label,
            x_range=chart.x_range,
            y_range=chart.y_range,
            x_log=chart.x_log,
            keys=[looks[line.label] for line in lines],
        )


def subgroups(results: Results) -> Iterator[Figure]:
    """Yield the metric by value of each column, one figure a column."""
    looks, shown = keys(results), leading(results, results.details.setting, ARMS)
    rows = [s for s in results.details.subgroups if s.mean is not None and s.arm in shown]
    for i, column in enumerate(list(dict.fromkeys(s.column for s in rows))[:PANELS], start=1):
        own, drawn, last = [s for s in rows if s.column == column], [], None
        for each in own[: 2 * ROWS]:
            head = f"{each.value} ({counted(each.n_cases, 'case')})"
            look = looks[each.arm]
            text = (head,) if head != last else ()
            drawn.append(
                Row(text, "", each.mean or 0.0, each.lo, each.hi, look.colour, look.marker)
            )
            last = head
        ends = [x for s in own for x in (s.mean, s.lo, s.hi) if x is not None]
        margin = 0.05 * (max(ends) - min(ends)) or 0.01
        values = "; ".join(f"{s.value}, {s.arm}: {number(s.mean)} ({interval(s)})" for s in own)
        yield plots.intervals(
            Caption(
                f"subgroup-{i}",
                f"By {column}",
                f"{title(results.metric)} by {column}. {values}.",
            ),
            drawn,
            x_range=(min(ends) - margin, max(ends) + margin),
            x_label=f"{title(results.metric)}, with 95 % CI",
            zero=False,
            keys=list(dict.fromkeys(looks[s.arm] for s in own)),
        )


def ranking(results: Results) -> Iterator[Figure]:
    """Yield the mean ranks over datasets."""
    if results.across is None or not results.across.ranks:
        return
    looks = keys(results)
    ranks = {looks.get(r.arm) or key(i, r.arm): r.rank for i, r in enumerate(results.across.ranks)}
    values = "; ".join(f"{look.name}: {rank:.2f}" for look, rank in ranks.items())
    yield spreads.ranks(
        Caption(
            "ranks",
            f"Mean ranks over {counted(len(results.across.datasets), 'dataset')}",
            f"Mean ranks. {values}.",
        ),
        ranks,
        results.across.critical_difference,
    )


def omitted(results: Results) -> str:
    """Return what the figures leave out, in words; empty where they show all."""
    parts = []
    if (n := len(names(results))) > ARMS:
        parts.append(f"{ARMS} of {n} arms")
    if (n := len(settings(results))) > PANELS:
        parts.append(f"{PANELS} of {n} settings")
    return f"Figures show {listed(parts)}; the tables beside the report hold all." if parts else ""


def positive(value: float | str | None) -> bool:
    """Return whether a logarithmic axis can show it."""
    try:
        return value is not None and isfinite(log(float(value)))
    except ValueError:
        return False

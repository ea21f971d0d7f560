"""The report as Markdown."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING

from medtransfer.analysis.grid import where
from medtransfer.analysis.report.words import (
    counted,
    interval,
    large,
    megabytes,
    number,
    plain,
    probability,
    seconds,
    title,
)
from medtransfer.analysis.statistics.case_values import BOUNDS, LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from medtransfer.analysis.results import Results

# What could be read as Markdown, HTML, a table's cell or a formula; `_` only where it emphasises.
_SPECIAL = re.compile(r"[&<>|`*\[\]~$\\]|(?<!\w)_|_(?!\w)|^\s*[#+-]|^\s*\d+[.)]")
# Columns from here on hold numbers.
_LEFT, _RIGHT = ":---", "---:"


def markdown(results: Results, pictures: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the report; names from outside cannot act as Markdown or HTML.

    Args:
        results: What it states.
        pictures: What each picture file beside the report shows.
    """
    blocks = [
        f"# {escape(results.study)}",
        escape(results.headline),
        "## Arms",
        _arms(results),
        *(["## Contrasts", _contrasts(results)] if results.contrasts else []),
        *(["## Failures", _failures(results)] if results.failures else []),
        *(["## Waivers", _waivers(results)] if results.waivers else []),
        *(["## Notes", _list(results.notes)] if results.notes else []),
        *(["## Test cases", *_pictures(pictures)] if pictures else []),
        "## How this was computed",
        " ".join(_method(results)),
    ]
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, also in a table's cell."""
    # Character references are never structure, in any dialect; backslashes are, in some.
    return _SPECIAL.sub(lambda m: "".join(f"&#{ord(c)};" for c in m[0]), plain(text))


def _arms(results: Results) -> str:
    axes = any(row.axes for row in results.arms)
    rows = [
        [
            escape(row.arm),
            *([escape(where(row.axes))] if axes else []),
            number(row.mean),
            interval(row),
            f"{row.n_seeds}" + (f" ({row.failed} failed)" if row.failed else ""),
            seconds(row.cost.get("train_seconds")),
            large(row.cost.get("trainable_parameters")),
            megabytes(row.cost.get("peak_memory_mb")),
        ]
        for row in results.arms
    ]
    names = ["Arm", *(["Setting"] if axes else [])]
    numbers = [
        f"{title(results.metric)}{' (lower is better)' * (results.metric in LOWER_IS_BETTER)}",
        "95 % CI",
        "Seeds",
        "Training",
        "Trainable parameters",
        "Peak memory",
    ]
    return _table(names, numbers, rows)


def _contrasts(results: Results) -> str:
    axes = any(row.axes for row in results.contrasts)
    rows = [
        [
            escape(row.a),
            escape(row.b),
            *([escape(where(row.axes))] if axes else []),
            row.verdict + (" (provisional)" if row.provisional else ""),
            number(row.diff, signed=True),
            interval(row),
            probability(row.p_adj),
            f"{row.n_seeds}",
            f"{row.n_cases or '-'}",
        ]
        for row in results.contrasts
    ]
    names = ["A", "B", *(["Setting"] if axes else []), "A is"]
    numbers = ["A - B", "95 % CI", "Adjusted p", "Seeds", "Cases"]
    return _table(names, numbers, rows)


def _failures(results: Results) -> str:
    rows = [
        [
            escape(each.arm) + (f" @ {escape(where(each.axes))}" if each.axes else ""),
            f"{'-' if each.seed is None else each.seed}",
            f"`{each.run_id}`",
            escape(each.reason),
        ]
        for each in results.failures
    ]
    return _table(["Arm", "Seed", "Run", "Reason"], [], rows)


def _waivers(results: Results) -> str:
    told = "Found in the data, and put up with by whoever ran the study:"
    return f"{told}\n\n{_list(results.waivers)}"


def _pictures(pictures: Mapping[str, str]) -> Iterator[str]:
    for file, told in pictures.items():
        yield escape(told)
        yield f"![{escape(told)}]({file})"


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {escape(item)}" for item in items)


def _table(names: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[*names, *numbers], [_LEFT] * len(names) + [_RIGHT] * len(numbers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _method(results: Results) -> Iterator[str]:
    over = {row.over for row in results.arms} | {row.over for row in results.contrasts}
    yield (
        f"An arm's value is its mean {title(results.metric)} on the test set over its finished "
        "seeds; its costs are means over the same seeds."
    )
    if "cases and seeds" in over:
        yield (
            "Intervals treat cases and seeds as crossed random effects (variance of the two-way "
            "layout, Satterthwaite's degrees of freedom)."
        )
    if results.metric in BOUNDS:
        yield "Those of the arms are built on the logit scale, within the metric's range."
    if "cases" in over:
        yield "With a single seed an interval covers the choice of cases alone."
    if "seeds" in over:
        yield "Without values per case an interval covers seeds alone."
    if results.metric == "auroc" and over & {"cases", "cases and seeds"}:
        yield "AUROC enters through placement values, whose variance is DeLong's."
    if any(row.n_groups < row.n_cases for row in results.arms):
        yield "Cases of one patient count together, as one independent unit."
    if results.contrasts:
        yield (
            "Contrasts are paired: same split, same cases, same seeds. Their p-values are "
            f"corrected for {counted(len(results.contrasts), 'contrast')} by Holm's method; their "
            "intervals are not. A is better or worse than B where the interval excludes 0 and the "
            "adjusted p is below 0.05, equivalent where the interval lies within "
            f"±{results.rope:g}, and otherwise undecided, which is not the same as equal. With "
            "fewer than five seeds a verdict is provisional."
        )
    yield (
        f"{results.budget['finished']:.0f} of {counted(results.budget['trials'], 'trial')} "
        f"finished, with {seconds(results.budget['train_seconds'])} of training in all."
    )

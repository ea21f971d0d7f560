"""Numbers and names as a reader wants them, in the headline, the report and the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medtransfer.analysis.details.parts import Subgroup
    from medtransfer.analysis.results import Arm, Contrast

NONE = "-"
_TITLES = {
    "auprc": "AUPRC",
    "auroc": "AUROC",
    "brier": "Brier score",
    "dice": "Dice",
    "ece": "ECE",
    "map": "mAP",
    "nll": "NLL",
}
_MINUTE = 60
_HOUR = 3600


def title(metric: str) -> str:
    """Return the metric's name in running text."""
    return _TITLES.get(metric, metric.replace("_", " "))


def plain(name: str) -> str:
    """Return a name from outside on one line and without control characters."""
    return "".join(char if char.isprintable() else " " for char in name)


def number(value: float | None, *, signed: bool = False) -> str:
    """Return three decimals; a rounded zero has no sign."""
    if value is None:
        return NONE
    return f"{round(value, 3) + 0.0:{'+' if signed and round(value, 3) else ''}.3f}"


def interval(row: Arm | Contrast | Subgroup) -> str:
    """Return `0.010 to 0.074`."""
    return NONE if row.lo is None else f"{number(row.lo)} to {number(row.hi)}"


def probability(p: float | None) -> str:
    """Return `0.012`, or `<0.001`."""
    return NONE if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def counted(count: float, one: str, many: str = "") -> str:
    """Return `1 seed` or `3 seeds`."""
    return f"{count:.0f} {one if count == 1 else many or one + 's'}"


def seconds(value: float | None) -> str:
    """Return `8.1 s`, `95 s`, `2.5 min`, `12 min` or `3.4 h`."""
    if value is None:
        return NONE
    if value < 2 * _MINUTE:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    if value < 10 * _MINUTE:
        return f"{value / _MINUTE:.1f} min"
    return f"{value / _MINUTE:.0f} min" if value < 2 * _HOUR else f"{value / _HOUR:.1f} h"


def large(value: float | None) -> str:
    """Return `513`, `12.3 k` or `11.2 M`."""
    if value is None:
        return NONE
    for scale, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= scale:
            return f"{value / scale:.1f}{unit}"
    return f"{value:.0f}"


def megabytes(value: float | None) -> str:
    """Return `812 MB` or `1.2 GB`."""
    if value is None:
        return NONE
    return f"{value:.0f} MB" if value < 1000 else f"{value / 1000:.1f} GB"


def seeds_of(row: Arm) -> str:
    """Return `5`, or `4* (1 failed)` where the arm lacks a seed that others have."""
    failed = f" ({row.failed} failed)" if row.failed else ""
    return f"{row.n_seeds}{'*' * row.incomplete}{failed}"


def milliseconds(value: float | None) -> str:
    """Return `3.1 ms`, `42 ms` or `1.2 s`."""
    if value is None:
        return NONE
    if value >= 1000:
        return seconds(value / 1000)
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def whole(value: float | None) -> str:
    """Return `12 400`: no comma or point that a reader could take for the other."""
    return NONE if value is None else f"{value:,.0f}".replace(",", "\N{NO-BREAK SPACE}")


def times(ratio: float) -> str:
    """Return `12 times` or `1.6 times`."""
    return f"{ratio:.0f} times" if ratio >= 10 else f"{ratio:.2g} times"


def listed(names: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def evidence(row: Arm | Contrast) -> str:
    """Return `95 % CI 0.010 to 0.074, 3 seeds, 120 cases of 45 groups`."""
    parts = [] if row.lo is None else [f"95 % CI {interval(row)}"]
    parts.append(counted(row.n_seeds, "seed"))
    if row.n_cases:
        of = f" of {counted(row.n_groups, 'group')}" if row.n_groups < row.n_cases else ""
        parts.append(counted(row.n_cases, "case") + of)
    alone = f"; the interval covers {row.over} alone" if row.over in {"cases", "seeds"} else ""
    return ", ".join(parts) + alone

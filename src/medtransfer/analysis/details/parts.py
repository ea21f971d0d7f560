"""What a report shows beyond intervals, in plain values that JSON holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """One line of a chart: the mean over seeds, between the least and the greatest of them.

    Args:
        label: The arm, or what a line of reference stands for.
        x: Places on the horizontal axis, ascending.
        y: Values there.
        lo: Least over seeds; empty where there is one value only.
        hi: Greatest over seeds.
    """

    label: str
    x: Numbers
    y: Numbers
    lo: Numbers = ()
    hi: Numbers = ()


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes.

    Args:
        name: What it is: `roc`, `pr`, `decision`, `reliability`, `reliability_scaled`, `froc`.
        title: Its heading.
        lines: One an arm.
        references: What the arms are seen against, such as the diagonal.
        x_range: Ends of the horizontal axis; None: those of the lines.
        note: What a reader must know about it; empty where there is nothing.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    references: tuple[Line, ...] = ()
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    x_log: bool = False
    note: str = ""


@dataclass(frozen=True)
class Calibration:
    """How far probabilities can be taken at their word, before and after temperature scaling.

    All are means over seeds; the temperature of a seed is fitted on its validation predictions.
    """

    arm: str
    ece: float
    brier: float
    nll: float
    temperature: float | None = None
    ece_scaled: float | None = None
    brier_scaled: float | None = None
    nll_scaled: float | None = None


@dataclass(frozen=True)
class Subgroup:
    """An arm on the cases that share a value of a column, such as a site."""

    column: str
    value: str
    arm: str
    n_cases: int
    mean: float | None
    lo: float | None
    hi: float | None


@dataclass(frozen=True)
class Spread:
    """How an arm's values are spread: over seeds, or over cases (each the mean over seeds).

    Args:
        of: What the values are, such as `Dice` or `probability of the true class`.
        values: All of them, or evenly spaced quantiles of many.
    """

    arm: str
    kind: Literal["seeds", "cases"]
    of: str
    values: Numbers


@dataclass(frozen=True)
class Worst:
    """A case that the arms judge worst together.

    Args:
        target: Its true class, or empty where a case has none.
        arms: What each arm makes of it, in the words of `Spread.of`.
    """

    sample_id: str
    target: str
    arms: Mapping[str, float]


@dataclass(frozen=True)
class Details:
    """Everything of this kind about the arms under one setting of the data axes."""

    setting: Mapping[str, str] = field(default_factory=dict)
    charts: tuple[Chart, ...] = ()
    calibration: tuple[Calibration, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()
    spread: tuple[Spread, ...] = ()
    worst: tuple[Worst, ...] = ()

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Details:
        """Read what `dataclasses.asdict` and JSON made of one."""
        charts = tuple(
            Chart(
                **{
                    **chart,
                    "lines": tuple(Line(**_tuples(line)) for line in chart["lines"]),
                    "references": tuple(Line(**_tuples(line)) for line in chart["references"]),
                    "x_range": chart["x_range"] and tuple(chart["x_range"]),
                    "y_range": chart["y_range"] and tuple(chart["y_range"]),
                }
            )
            for chart in content["charts"]
        )
        return cls(
            setting=content["setting"],
            charts=charts,
            calibration=tuple(Calibration(**each) for each in content["calibration"]),
            subgroups=tuple(Subgroup(**each) for each in content["subgroups"]),
            spread=tuple(Spread(**_tuples(each)) for each in content["spread"]),
            worst=tuple(Worst(**each) for each in content["worst"]),
        )


def _tuples(content: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}

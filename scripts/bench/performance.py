"""Figures that are kept: docs/performance.json, and the tables of docs/performance.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from measure import ROOT, Figure

KEPT = ROOT / "docs" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- begin figures -->", "<!-- end figures -->"
FAR = 1.25  # times; nearer than that is the noise of a shared machine


def described(about: Mapping[str, Any]) -> str:
    """Return a machine in one line."""
    chosen = ", ".join(f"{name} {value}" for name, value in about["chosen"].items())
    return (
        f"{about['cores']} cores of {about['cpu']}, {about['memory_gb']} GB,"
        f" GPU: {about['gpu'] or 'none'}; Python {about['python']}, torch {about['torch']};"
        f" chosen: {chosen}"
    )


def line(figure: Figure, before: Figure | None) -> str:
    """Return a figure as it is printed, beside what is stored of it."""
    spread = "" if figure.low is None else f" ({number(figure.low)} to {number(figure.high)})"
    text = f"{figure.name:22}{number(figure.value):>8} {figure.unit}{spread}"
    if figure.bar is not None:
        verdict = "holds" if figure.holds else "MISSED"
        text += f"  {figure.sense} {number(figure.bar)}: {verdict}"
    if before is not None and before.value > 0 and figure.value > 0:
        text += f"  [stored {number(before.value)}{_apart(figure, before)}]"
    return f"{text}\n{'':22}  {figure.told}"


def _apart(figure: Figure, before: Figure) -> str:
    ratio = figure.value / before.value
    if 1 / FAR <= ratio <= FAR:
        return ""
    worse = ratio > 1 if figure.sense == "at most" else ratio < 1
    return f", {ratio:.2f} times that: {'WORSE' if worse else 'better'}"


def number(value: float | None) -> str:
    """Return three digits of a number."""
    if value is None:
        return ""
    if value >= 1e6:
        return "never"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def stored(*, quick: bool) -> dict[str, Figure]:
    """Return the newest figures that are kept, by name."""
    found = {}
    for run in _runs():
        if run["quick"] == quick:
            found |= {each["name"]: Figure(**each) for each in run["figures"]}
    return found


def keep(about: Mapping[str, Any], figures: Sequence[Figure], *, quick: bool, version: str) -> None:
    """Keep figures, beside those that were kept before, and write the page anew.

    What is measured again of the same version on the same machine takes the place of what was.
    """
    run: dict[str, Any] = {"version": version, "quick": quick, "machine": about, "figures": []}
    runs = _runs()
    if runs and {**runs[-1], "figures": []} == run:
        run = runs.pop()
    found = {each["name"]: each for each in run["figures"]}
    found |= {each.name: each.plain() for each in figures}
    runs.append({**run, "figures": list(found.values())})
    KEPT.write_text(json.dumps({"runs": runs}, indent=1) + "\n", encoding="utf-8")
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    shown = "\n\n".join(_table(run) for run in reversed(runs) if not run["quick"])
    PAGE.write_text(f"{before}{BEGIN}\n\n{shown}\n\n{END}{after}", encoding="utf-8")


def _runs() -> list[dict[str, Any]]:
    if not KEPT.exists():
        return []
    runs: list[dict[str, Any]] = json.loads(KEPT.read_text(encoding="utf-8"))["runs"]
    return runs


def _table(run: Mapping[str, Any]) -> str:
    rows = [["figure", "median", "spread", "bar", "what"], ["---", "---:", "---", "---", "---"]]
    for each in run["figures"]:
        figure = Figure(**each)
        low, high = number(figure.low), number(figure.high)
        bar = "" if figure.bar is None else f"{figure.sense} {number(figure.bar)}"
        if figure.holds is False:
            bar += ": missed"
        value = f"{number(figure.value)} {figure.unit}"
        spread = f"{low} to {high}" if low else ""
        rows.append([f"`{figure.name}`", value, spread, bar, figure.told])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"### {run['version']}\n\n{described(run['machine'])}\n\n{table}"

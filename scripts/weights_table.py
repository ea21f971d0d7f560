"""Write the tables of docs/weights.md from the results.json of the weights study."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "weights.md"
BEGIN, END = "<!-- begin tables -->", "<!-- end tables -->"
FRACTION = "dataset.fraction"
CONTROL = {"frozen": "random frozen", "fine-tuned": "random fine-tuned"}
UNITS = ", logistic units"  # the controls on the network that a stack of RBMs fills


def main(paths: list[str]) -> None:
    """Write both tables of each file into the page, between its marks."""
    parts = []
    for path in paths:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        fractions = sorted({row["axes"][FRACTION] for row in results["arms"]}, key=float)
        cases, seeds = (results["arms"][0][key] for key in ("n_cases", "n_seeds"))
        parts.append(f"### {results['study']}: {cases} test images, {seeds} seeds")
        parts.append(table(results["arms"], fractions))
        parts.append("Paired difference from the control; bold where the interval leaves out zero:")
        parts.append(differences(results["contrasts"], fractions))
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text("\n\n".join([before + BEGIN, *parts, END + after]), encoding="utf-8")


def table(arms: list[dict[str, Any]], fractions: list[str]) -> str:
    """Return one row for each arm, one column for each fraction."""
    found = {(row["arm"], row["axes"][FRACTION]): row for row in arms}
    names = list(dict.fromkeys(row["arm"] for row in arms))
    full = fractions[-1]
    names.sort(key=lambda name: -(found[name, full]["mean"] or 0))
    lines = [
        _line("AUROC", *(f"{float(f):.0%} of the labels" for f in fractions)),
        _rule(fractions),
    ]
    for name in names:
        cells = [found.get((name, fraction)) for fraction in fractions]
        lines.append(_line(name, *(_interval(c, "mean") if c else "" for c in cells)))
    return "\n".join(lines)


def differences(contrasts: list[dict[str, Any]], fractions: list[str]) -> str:
    """Return the paired difference of each arm from the control of its kind."""
    found = {}
    for c in contrasts:
        found[c["a"], c["b"], c["axes"][FRACTION]] = c
        flipped = {**c, "diff": -c["diff"], "lo": -c["hi"], "hi": -c["lo"]}
        found[c["b"], c["a"], c["axes"][FRACTION]] = flipped
    names = sorted({a for a, _, _ in found})
    lines = [_line("A - control", *(f"{float(f):.0%}" for f in fractions)), _rule(fractions)]
    for name in names:
        kind = next((kind for kind in CONTROL if kind in name), None)
        if kind is None or UNITS in name or name == CONTROL[kind]:
            continue
        control = CONTROL[kind] + (UNITS if name.startswith("rbm") else "")
        cells = [found.get((name, control, fraction)) for fraction in fractions]
        shown = [_interval(c, "diff", sign=True) if c else "" for c in cells]
        lines.append(_line(f"{name} - {control}", *shown))
    return "\n".join(lines)


def _interval(row: dict[str, Any], key: str, *, sign: bool = False) -> str:
    if row[key] is None:
        return "none"
    form = "+.3f" if sign else ".3f"
    text = f"{row[key]:{form}}"
    if row["lo"] is not None:
        text += f" ({row['lo']:{form}} to {row['hi']:{form}})"
    clear = sign and row["lo"] is not None and (row["lo"] > 0 or row["hi"] < 0)
    return f"**{text}**" if clear else text


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(fractions: list[str]) -> str:
    return "|---|" + "---|" * len(fractions)


if __name__ == "__main__":
    main(sys.argv[1:])

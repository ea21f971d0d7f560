"""What images of a dataset are like, and how often classes occur."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

from medtransfer.audit.classes import holm, questions
from medtransfer.audit.findings import KEPT, Finding, cases, counted
from medtransfer.data.base import Record
from medtransfer.data.splits import SPLITS

UNEVEN = 0.1  # Cramer's V: below it differences are small, Cohen says, whatever their p-value
CERTAIN = 0.01  # p-value, adjusted: one dataset in a hundred is accused for nothing


def prevalence(
    records: Sequence[Record],
    patients: Sequence[str],
    sides: Sequence[str],
    class_names: Sequence[str],
) -> Iterator[Finding]:
    """Yield the classes whose share differs between splits by more than chance, counting patients.

    Args:
        records: (n,) samples.
        patients: (n,) patients: the images of one are no independent draws.
        sides: (n,) splits, empty for none.
        class_names: Of the targets or labels.
    """
    split = np.asarray([SPLITS.index(side) if side in SPLITS else -1 for side in sides])
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    tested: list[tuple[str, list[list[int]], float, float]] = []
    for name, known, holds in questions(records, class_names):
        rows = np.stack([patient, split, holds], axis=1)[known & (split >= 0)]
        table = np.zeros((len(SPLITS), 2), np.int64)
        for _, side, answer in np.unique(rows, axis=0).tolist():
            table[side, answer] += 1
        present = table[table.sum(axis=1) > 0]
        if len(present) > 1 and (present.sum(axis=0) > 0).all():
            result: Any = chi2_contingency(present, correction=False)
            effect = float(np.sqrt(result.statistic / present.sum()))  # one degree of freedom
            tested.append((name, table.tolist(), effect, float(result.pvalue)))
    adjusted = holm([p for *_, p in tested])
    found: list[dict[str, Any]] = [
        {"class": name, "patients": dict(zip(SPLITS, table, strict=True)), "v": v, "p": p}
        for (name, table, v, _), p in zip(tested, adjusted, strict=True)
        if v >= UNEVEN and p < CERTAIN
    ]
    if found:
        found.sort(key=lambda each: -each["v"])
        first = found[0]
        shares = ", ".join(
            f"{100 * yes / (no + yes):.0f} % of {side}"
            for side, (no, yes) in first["patients"].items()
            if no + yes
        )
        yield Finding(
            "prevalence",
            "warning",
            f"'{first['class']}' is {shares} (Cramer's V {first['v']:.2f}, p {first['p']:.1g})",
            len(found),
            detail={"classes": found},
        )


def unreadable(skipped: Sequence[str]) -> Iterator[Finding]:
    """Yield the samples, and boxes, that were left out."""
    if skipped:
        message = f"{counted(len(skipped), 'image or box', 'images or boxes')} left out, the first:"
        detail = {"messages": list(skipped[:KEPT])}
        yield Finding(
            "unreadable", "warning", f"{message} {skipped[0]}", len(skipped), detail=detail
        )


def pictures(records: Sequence[Record], facts: NDArray[Any]) -> Iterator[Finding]:
    """Yield sizes, spacings, intensities and bit depths.

    Args:
        records: (n,) samples.
        facts: (n,) of `data.facts.DTYPE`.
    """
    ids = [record.sample_id for record in records]
    sizes = Counter(zip(facts["height"].tolist(), facts["width"].tolist(), strict=True))
    named = {f"{height}x{width}": count for (height, width), count in sizes.most_common(KEPT)}
    (common, count), *_ = named.items()
    spacing = facts["spacing"][np.isfinite(facts["spacing"]).all(axis=1)]
    message = f"{counted(len(sizes), 'size')}, the commonest {common} ({count} of {len(ids)})"
    if len(spacing):
        low, high = spacing.min(), spacing.max()
        message += f"; {len(spacing)} with a spacing, {low:.3g} to {high:.3g} mm"
    yield Finding("sizes", "info", message, len(sizes), detail={"sizes": named})

    low, middle, high = np.quantile(facts["mean"], (0, 0.5, 1)).tolist()
    (blank,) = np.nonzero(facts["low"] == facts["high"])
    message = f"mean grey value {middle:.2f} of the range ({low:.2f} to {high:.2f})"
    if len(blank):
        message += f"; {counted(len(blank), 'image')} of one grey value all over"
    detail = {"mean": [low, middle, high], "blank": len(blank)}
    blanks = cases(ids, [(i,) for i in blank.tolist()])
    yield Finding("intensities", "info", message, len(blank), blanks, detail)

    words = {1: "grey", 3: "colour"}
    stored = Counter(
        "stored as colour, but grey" if channels == 3 and not colour else words[channels]
        for channels, colour in zip(
            facts["channels"].tolist(), facts["colour"].tolist(), strict=True
        )
    )
    bits = Counter(f"{each} bits" for each in facts["bits"].tolist())
    kinds = {**dict(bits.most_common()), **dict(stored.most_common())}
    message = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    yield Finding("bit_depth", "info", message, len(bits), detail={"images": kinds})

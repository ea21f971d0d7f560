"""What tells the label although it shows no disease: borders, markers, sizes, brightness.

A network learns the easiest sign there is. A ruler beside what was measured, a letter of the ward
with the sick, a scanner's border: each has been taken for the disease (Geirhos et al., "Shortcut
learning in deep neural networks", 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu

from medtransfer.audit.classes import Question, holm, questions
from medtransfer.audit.content import CERTAIN
from medtransfer.audit.findings import Finding, Severity, cases
from medtransfer.data.base import Record
from medtransfer.data.facts import CORNERS, SIDES

TELLING = 0.15  # AUROC from 0.5 either way: what shows no disease should tell nothing
PERFECT = 0.45  # the same for brightness, which disease does change, but hardly ever so much
SHOWN = 3  # examples of each finding

Code = Literal["border", "marker", "size_shortcut", "intensity_shortcut"]
Floats = NDArray[np.float64]

TITLES: dict[Code, str] = {
    "border": "constant borders tell",
    "marker": "sharp edges in a corner, such as burned-in letters have, tell",
    "size_shortcut": "size or kind of file tells",
    "intensity_shortcut": "brightness or contrast tells",
}


class Trait(NamedTuple):
    """One number of each image.

    Attributes:
        code: The finding that it would be.
        name: For messages.
        values: (n,).
    """

    code: Code
    name: str
    values: Floats


class Told(NamedTuple):
    """How well a trait tells the answer to a question.

    Attributes:
        trait: The number of each image.
        question: The label.
        auroc: Of the trait alone, above 0.5 where more of it means yes.
        p: Of the Mann-Whitney test, patient by patient, adjusted for all of them.
    """

    trait: Trait
    question: Question
    auroc: float
    p: float


def shortcuts(
    records: Sequence[Record],
    patients: Sequence[str],
    facts: NDArray[Any],
    class_names: Sequence[str],
) -> Iterator[Finding]:
    """Yield the kinds of trait that tell a label.

    Args:
        records: (n,) samples.
        patients: (n,) patients: the images of one are no independent draws.
        facts: (n,) of `data.facts.DTYPE`.
        class_names: Of the targets or labels.
    """
    ids = [record.sample_id for record in records]
    told = _told(traits(facts), questions(records, class_names), patients)
    for code, title in TITLES.items():
        found = [t for t in told if t.trait.code == code and abs(t.auroc - 0.5) >= TELLING]
        found.sort(key=lambda each: -abs(each.auroc - 0.5))
        if not found:
            continue
        first = found[0]
        severity: Severity = "warning"
        if code == "intensity_shortcut" and abs(first.auroc - 0.5) < PERFECT:
            severity = "info"
        detail = [
            {"trait": t.trait.name, "class": t.question.name, "auroc": t.auroc, "p": t.p}
            for t in found
        ]
        message = (
            f"{title} '{first.question.name}' from the rest: {first.trait.name} alone has"
            f" an AUROC of {first.auroc:.2f} (p {first.p:.1g})"
        )
        shown = cases(ids, _examples(first))
        yield Finding(code, severity, message, len(found), shown, {"traits": detail})


def traits(facts: NDArray[Any]) -> list[Trait]:
    """Return what could tell a label, of images whose facts are given."""
    column = {name: facts[name].astype(np.float64) for name in facts.dtype.names or ()}
    height, width = column["height"], column["width"]
    found: list[Trait] = []
    for k, side in enumerate(SIDES):
        border = column["border"][:, k] / (height if k < 2 else width)
        found.append(Trait("border", f"width of the {side} border", border))
    for k, corner in enumerate(CORNERS):
        found += [
            Trait("marker", f"their share in the {corner} corner", column["corner_jumps"][:, k]),
            # of a radiograph's corners, anatomy decides: no marker by itself
            Trait(
                "intensity_shortcut", f"mean of the {corner} corner", column["corner_mean"][:, k]
            ),
            Trait(
                "intensity_shortcut", f"contrast of the {corner} corner", column["corner_std"][:, k]
            ),
        ]
    found += [
        Trait("size_shortcut", "height", height),
        Trait("size_shortcut", "width", width),
        Trait("size_shortcut", "width over height", width / height),
        Trait("size_shortcut", "bits", column["bits"]),
        Trait("size_shortcut", "channels", column["channels"]),
        Trait("size_shortcut", "colour", column["colour"]),
        Trait("size_shortcut", "known spacing", np.isfinite(column["spacing"][:, 0]) * 1.0),
        Trait("size_shortcut", "spacing", np.nan_to_num(column["spacing"][:, 0])),
        Trait("intensity_shortcut", "mean", column["mean"]),
        Trait("intensity_shortcut", "contrast", column["std"]),
        Trait("intensity_shortcut", "darkest value", column["low"]),
        Trait("intensity_shortcut", "brightest value", column["high"]),
    ]
    return [trait for trait in found if np.ptp(trait.values) > 0]


def _told(
    candidates: Sequence[Trait], asked: Sequence[Question], patients: Sequence[str]
) -> list[Told]:
    """Return every trait and question, those that are not certain left out."""
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    found: list[Told] = []
    for question in asked:
        (rows,) = np.nonzero(question.known)
        # one number for each patient and answer
        units = patient[rows] * 2 + question.holds[rows]
        _, first, unit = np.unique(units, return_index=True, return_inverse=True)
        holds = question.holds[rows][first]
        yes, no = int(holds.sum()), int((~holds).sum())
        if not (yes and no):
            continue
        for trait in candidates:
            mean = np.bincount(unit, trait.values[rows]) / np.bincount(unit)
            result: Any = mannwhitneyu(mean[holds], mean[~holds], method="asymptotic")
            p = 1.0 if np.isnan(result.pvalue) else float(result.pvalue)
            found.append(Told(trait, question, float(result.statistic) / (yes * no), p))
    adjusted = holm([each.p for each in found])
    told = [each._replace(p=p) for each, p in zip(found, adjusted, strict=True)]
    return [each for each in told if each.p < CERTAIN]


def _examples(told: Told) -> list[tuple[int, int]]:
    """Return images that show the trait beside ones of another label that do not."""
    sign = 1 if told.auroc > 0.5 else -1
    order = np.argsort(-sign * told.trait.values, kind="stable")
    order = order[told.question.known[order]]
    yes = order[told.question.holds[order]][:SHOWN]
    no = order[~told.question.holds[order]][::-1][:SHOWN]
    return list(zip(yes.tolist(), no.tolist(), strict=False))

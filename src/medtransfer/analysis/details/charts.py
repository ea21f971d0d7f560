"""Curves of each arm: the mean over its trials on a common grid, between least and greatest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from medtransfer.analysis.details.parts import Chart, Line
from medtransfer.analysis.statistics.average_precision import match_column

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd

    from medtransfer.analysis.details.calibration import Flags, Probabilities

    Arms = Mapping[str, Sequence[Probabilities]]
    Curve = Callable[[Flags, NDArray[np.float64]], NDArray[np.float64]]

Floats = NDArray[np.float64]

SHARES: Floats = np.linspace(0, 1, 101)
THRESHOLDS: Floats = np.linspace(0.01, 0.99, 99)
RATES: Floats = 2.0 ** (np.arange(-48, 49) / 16)
"""False positives per image from 1/8 to 8, those at which `froc` is read among them."""

_UNIT = (0.0, 1.0)
_BINS, _IN_A_BIN = 10, 20  # of a reliability diagram: at most, and cases that one should have


def roc(arms: Arms) -> Chart | None:
    """Return sensitivity over the share of false alarms; None where no arm has a curve.

    At no false alarm it is what the highest thresholds reach without one.
    """
    return _chart(
        Chart(
            name="roc",
            title="ROC curve",
            x_label="1 - specificity",
            y_label="sensitivity",
            lines=_lines(arms, SHARES, _sensitivity),
            references=(Line("chance", _UNIT, _UNIT),),
            x_range=_UNIT,
            y_range=_UNIT,
            note=_over(arms),
        )
    )


def pr(arms: Arms) -> Chart | None:
    """Return precision over sensitivity; None where no arm has a curve.

    Precision is that of the highest threshold which reaches the sensitivity, a step as in average
    precision: straight lines between thresholds promise too much (Davis & Goadrich 2006).
    """
    rate = _prevalence(arms)
    return _chart(
        Chart(
            name="pr",
            title="Precision and recall",
            x_label="recall (sensitivity)",
            y_label="precision",
            lines=_lines(arms, SHARES, _precision),
            references=(Line("chance (prevalence)", _UNIT, (rate, rate)),),
            x_range=_UNIT,
            y_range=_UNIT,
            note=_over(arms),
        )
    )


def decision(arms: Arms) -> Chart | None:
    """Return net benefit over the threshold probability (Vickers & Elkin 2006), or None.

    Net benefit is the share of true positives less that of false ones, weighted by the odds of the
    threshold: how many false alarms somebody would take for one hit.
    """
    lines = _lines(arms, THRESHOLDS, _net_benefit)
    rate = _prevalence(arms)
    treated = rate - (1 - rate) * THRESHOLDS / (1 - THRESHOLDS)
    top = max([rate, *(value for line in lines for value in (*line.y, *line.hi))])
    return _chart(
        Chart(
            name="decision",
            title="Decision curve",
            x_label="threshold probability",
            y_label="net benefit",
            lines=lines,
            references=(
                Line("treat all", _numbers(THRESHOLDS), _numbers(treated)),
                Line("treat none", _UNIT, (0.0, 0.0)),
            ),
            x_range=_UNIT,
            y_range=(-top / 4, 1.05 * top),
            note="; ".join(filter(None, [_over(arms), "what lies far below zero is not shown"])),
        )
    )


def reliability(arms: Arms, *, scaled: bool = False) -> Chart | None:
    """Return what share came true over what was promised; None without any arm.

    Args:
        arms: Probabilities of each arm's trials.
        scaled: Whether they are those after temperature scaling.
    """
    first = next((trials[0] for trials in arms.values() if trials), None)
    if first is None:
        return None
    what = "positive class" if first.binary else "likeliest class" if first.exclusive else "label"
    notes = ["each point stands for equally many cases"]
    if not first.exclusive:
        notes = ["over all labels and cases; each point stands for equally many of them"]
    if scaled:
        notes.append("each trial's temperature is fitted on its validation data")
    return Chart(
        name="reliability_scaled" if scaled else "reliability",
        title="Reliability after temperature scaling" if scaled else "Reliability",
        x_label=f"predicted probability of the {what}",
        y_label="observed share",
        lines=tuple(_reliability(arm, trials) for arm, trials in arms.items() if trials),
        references=(Line("perfect", _UNIT, _UNIT),),
        x_range=_UNIT,
        y_range=_UNIT,
        note="; ".join(notes),
    )


def froc(arms: Mapping[str, Sequence[tuple[pd.DataFrame, pd.DataFrame]]]) -> Chart | None:
    """Return sensitivity over false positives per image at IoU 0.5, as the metric `froc` has it.

    Args:
        arms: Of each arm's trials the detections, and the images with their counts of truths.
    """
    lines = []
    for arm, trials in arms.items():
        curves = [curve for trial in trials if (curve := _marked(*trial)) is not None]
        if curves:
            lines.append(_line(arm, RATES, curves))
    return _chart(
        Chart(
            name="froc",
            title="FROC",
            x_label="false positives per image",
            y_label="sensitivity",
            lines=tuple(lines),
            x_range=(float(RATES[0]), float(RATES[-1])),
            y_range=_UNIT,
            x_log=True,
            note="over all classes; a detection marks an object from an IoU of 0.5 on",
        )
    )


def _sensitivity(truth: Flags, scores: Floats) -> Floats:
    alarms, found, _ = roc_curve(truth, scores)
    return np.asarray(np.interp(SHARES, alarms, found))


def _precision(truth: Flags, scores: Floats) -> Floats:
    precision, recall, _ = precision_recall_curve(truth, scores)
    # by descending threshold, without the end at a recall of zero that no threshold has
    precision, recall = precision[-2::-1], recall[-2::-1]
    # a share such as 0.07 may lie a rounding above the recall that equals it
    return np.asarray(precision[np.searchsorted(recall, SHARES - 1e-9, side="left")])


def _net_benefit(truth: Flags, scores: Floats) -> Floats:
    def flagged(among: Floats) -> Floats:
        below = np.searchsorted(np.sort(among), THRESHOLDS, side="left")
        return np.asarray((len(among) - below) / len(scores))

    odds = THRESHOLDS / (1 - THRESHOLDS)
    return np.asarray(flagged(scores[truth]) - flagged(scores[~truth]) * odds)


def _reliability(arm: str, trials: Sequence[Probabilities]) -> Line:
    """Return the mean over trials of each bin's mean probability and share of what came true."""
    stated = [trial.stated() for trial in trials]
    bins = int(np.clip(min(len(scores) for _, scores in stated) // _IN_A_BIN, 1, _BINS))
    places, shares = [], []
    for truth, scores in stated:
        levels, member, counts = np.unique(scores, return_inverse=True, return_counts=True)
        # cases of one probability share what came true, whichever bin they fall into
        share = np.bincount(member, weights=truth)
        places.append([part.mean() for part in np.array_split(np.repeat(levels, counts), bins)])
        each = np.repeat(share / counts, counts)
        shares.append(np.array([part.mean() for part in np.array_split(each, bins)]))
    return _line(arm, np.mean(places, axis=0), shares)


def _marked(detections: pd.DataFrame, images: pd.DataFrame) -> Floats | None:
    """Return the highest sensitivity with at most `RATES` false positives per image."""
    total = images[[name for name in images if str(name).startswith("truths_")]].to_numpy().sum()
    if not total:
        return None
    hits = detections[match_column(0.5)].to_numpy(dtype=np.int64) >= 0
    thresholds, place = np.unique(-detections["score"].to_numpy(), return_inverse=True)
    marked = np.bincount(place[hits], minlength=len(thresholds)).cumsum()
    wrong = np.bincount(place[~hits], minlength=len(thresholds)).cumsum()
    reached = np.searchsorted(wrong, RATES * len(images), side="right")
    return np.asarray(np.append(0, marked)[reached] / total)


def _lines(arms: Arms, grid: Floats, curve: Curve) -> tuple[Line, ...]:
    """Return each arm's line; a trial's curve is the mean over its classes or labels."""
    found = {
        arm: [
            np.mean(curves, axis=0)
            for trial in trials
            if (curves := [curve(*question) for question in trial.questions()])
        ]
        for arm, trials in arms.items()
    }
    return tuple(_line(arm, grid, curves) for arm, curves in found.items() if curves)


def _line(label: str, x: Floats, curves: Sequence[Floats]) -> Line:
    several = len(curves) > 1
    return Line(
        label=label,
        x=_numbers(x),
        y=_numbers(np.mean(curves, axis=0)),
        lo=_numbers(np.min(curves, axis=0)) if several else (),
        hi=_numbers(np.max(curves, axis=0)) if several else (),
    )


def _prevalence(arms: Arms) -> float:
    """Return the mean over trials, and over their classes or labels; 0 without any."""
    rates = [
        np.mean(found)
        for trials in arms.values()
        for trial in trials
        if (found := [truth.mean() for truth, _ in trial.questions()])
    ]
    return float(np.mean(rates)) if rates else 0.0


def _over(arms: Arms) -> str:
    """Return what a curve is of."""
    for first in (trial for trials in arms.values() for trial in trials):
        if first.binary:
            return f"positive class: {first.names[-1]}"
        if first.exclusive:
            return "mean over the classes, each against the rest"
        return "mean over the labels"
    return ""


def _chart(chart: Chart) -> Chart | None:
    return chart if chart.lines else None


def _numbers(values: Floats) -> tuple[float, ...]:
    return tuple(np.asarray(values, dtype=np.float64).tolist())

"""The answer of a study in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from medtransfer.analysis.grid import where
from medtransfer.analysis.report.words import (
    counted,
    evidence,
    number,
    plain,
    probability,
    times,
    title,
)
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER
from medtransfer.analysis.statistics.intervals import ALPHA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medtransfer.analysis.compare import Comparison
    from medtransfer.analysis.results import Arm, Contrast, Crossing
    from medtransfer.analysis.statistics.verdicts import Verdict

_QUESTION = ("feature_extraction", "fine_tuning")
# Below this ratio of training times neither is worth calling faster.
_SLOWER = 1.5
# More than so many times what there is is no advice.
_FAR = 20
_OPPOSITE: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}


def headline(
    comparison: Comparison, metric: str, rope: float, crossings: Sequence[Crossing] = ()
) -> str:
    """Return the verdict on the contrast that matters most, see `central`, in words.

    After it come what an undecided one would need, what the other settings say, and where the
    two arms' learning curves cross.
    """
    if comparison.untested:
        return plain(f"The primary contrast could not be tested: {comparison.untested}.")
    chosen = central(comparison)
    if chosen is None:
        return _without_contrast(comparison.arms, metric)
    contrast = _gain(chosen, metric)
    setting = f"With {where(contrast.axes)}: " if contrast.axes else ""
    sentence = setting + _verdict(contrast, comparison, metric, rope) + _needs(contrast)
    if elsewhere := _elsewhere(contrast, comparison.contrasts):
        counts = [f"{v} in {elsewhere.count(v)}" for v in dict.fromkeys(elsewhere)]
        told = ", ".join(counts) if len(elsewhere) > 1 else elsewhere[0]
        sentence += f" {contrast.a} in {counted(len(elsewhere), 'other setting')}: {told}."
    curves = [f"{crossing.text}." for crossing in crossings if _belongs(crossing, contrast)]
    return plain(" ".join([sentence, *curves]))


def _belongs(crossing: Crossing, contrast: Contrast) -> bool:
    """Return whether a crossing is that of the contrast's arms, and more than a guess."""
    bounded = crossing.lo is not None or crossing.hi is not None
    alike = {crossing.a, crossing.b} == {contrast.a, contrast.b}
    here = crossing.axes.items() <= contrast.axes.items()
    return crossing.at is not None and bounded and alike and here


def central(comparison: Comparison) -> Contrast | None:
    """Return the contrast that the headline tells: the one that the study declared beforehand.

    Without one it is feature extraction against fine-tuning with all else equal, from weights that
    are not random if possible; without such a pair the two best arms. Of several settings the one
    with the most seeds, then the last, which is the largest fraction; the others are counted.
    """
    if comparison.primary or comparison.untested:
        return comparison.primary
    return _relevant(comparison.contrasts)


def _relevant(contrasts: Sequence[Contrast]) -> Contrast | None:
    settings = list(dict.fromkeys(where(each.axes) for each in contrasts))
    asked = [each for each in contrasts if _rest(each.a) == _rest(each.b) is not None]
    learned = [each for each in asked if "random" not in (_rest(each.a) or ())]
    # Rows come best first within a setting, so that the first pair is the two best arms.
    best = [next(c for c in contrasts if where(c.axes) == setting) for setting in settings]
    return max(
        learned or asked or best,
        key=lambda each: (each.n_seeds, settings.index(where(each.axes))),
        default=None,
    )


def _rest(arm: str) -> tuple[str, ...] | None:
    """Return the arm's parts without its strategy; None where the question is not about it."""
    parts = arm.split("/")
    return tuple(p for p in parts if p not in _QUESTION) if {*parts} & {*_QUESTION} else None


def _elsewhere(chosen: Contrast, contrasts: Sequence[Contrast]) -> list[Verdict]:
    """Return what the other settings say of `a` against `b`."""
    same = [c for c in contrasts if {c.a, c.b} == {chosen.a, chosen.b} and c.axes != chosen.axes]
    return [c.verdict if c.a == chosen.a else _mirrored(c).verdict for c in same]


def _gain(contrast: Contrast, metric: str) -> Contrast:
    """Turn the contrast so that a positive difference is a gain of `a`, and `a` is ahead."""
    if metric in LOWER_IS_BETTER:
        contrast = _negated(contrast)
    return contrast if (contrast.diff or 0) >= 0 else _mirrored(contrast)


def _mirrored(contrast: Contrast) -> Contrast:
    """Return `b` against `a`."""
    verdict = _OPPOSITE.get(contrast.verdict, contrast.verdict)
    return replace(_negated(contrast), a=contrast.b, b=contrast.a, verdict=verdict)


def _negated(contrast: Contrast) -> Contrast:
    diff, lo, hi = (None if x is None else -x for x in (contrast.diff, contrast.hi, contrast.lo))
    return replace(contrast, diff=diff, lo=lo, hi=hi)


def _verdict(gain: Contrast, comparison: Comparison, metric: str, rope: float) -> str:
    a, b, name = gain.a, gain.b, title(metric)
    lower = "lower is better; " if metric in LOWER_IS_BETTER else ""
    note = "; provisional: fewer than 5 seeds" if gain.provisional else ""
    if lacking := [row.arm for row in comparison.arms if _lacks_seeds(row, gain)]:
        note += f"; seeds are missing of {' and '.join(lacking)}"
    basis = f"({lower}{evidence(gain)}{note})"
    ratio = _time_ratio(gain, comparison.arms)
    if gain.verdict == "better":
        time = f" {_at_what_time(ratio)}" if ratio else ""
        return f"{a} is better than {b} by {number(gain.diff)} {name} {basis}{time}."
    slower = f" {_slower(a, b, ratio)}" if ratio else ""
    ahead = f"{a} is ahead by {number(gain.diff)} {name} {basis}"
    if gain.verdict == "equivalent":
        return f"{a} and {b} are equivalent within {rope:g} {name}: {ahead}.{slower}"
    return f"Undecided between {a} and {b}: {_doubt(gain, ahead, basis)}.{slower}"


def _doubt(gain: Contrast, ahead: str, basis: str) -> str:
    """Return why there is no verdict."""
    if gain.diff is None:
        return f"no case has a value in all trials {basis}"
    if gain.lo is None:
        return f"{ahead}, and a single value has no interval"
    if gain.lo == gain.hi:
        return f"no case tells them apart {basis}"
    if gain.lo > 0:
        p = probability(gain.p_adj)
        return f"{ahead}, but corrected for all contrasts p is {p}, not below {ALPHA:g}"
    return f"{ahead}, which may be chance"


def _lacks_seeds(row: Arm, contrast: Contrast) -> bool:
    return row.incomplete and row.arm in {contrast.a, contrast.b} and row.axes == contrast.axes


def _needs(contrast: Contrast) -> str:
    """Return what an undecided contrast would need; empty where nobody could provide it."""
    known = (
        (contrast.more_cases, contrast.n_cases, "more case"),
        (contrast.more_seeds, contrast.n_seeds, "more seed"),
    )
    ways = [counted(_rounded(more), what) for more, n, what in known if more and more <= _FAR * n]
    if contrast.verdict != "undecided" or not ways:
        return ""
    return f" About {' or '.join(ways)} would decide it, if the difference is what it seems."


def _rounded(count: int) -> int:
    """Return a count to two digits: it is an order of magnitude."""
    return round(count, 2 - len(str(count))) if count >= 100 else count


def _time_ratio(contrast: Contrast, arms: Sequence[Arm]) -> float | None:
    """Return the training time of `a` over that of `b`."""
    time = {
        row.arm: row.cost.get("train_seconds") for row in arms if dict(row.axes) == contrast.axes
    }
    a, b = time.get(contrast.a), time.get(contrast.b)
    return a / b if a and b else None


def _at_what_time(ratio: float) -> str:
    if ratio >= _SLOWER:
        return f"at {times(ratio)} the training time"
    if ratio <= 1 / _SLOWER:
        return f"and trains {times(1 / ratio)} faster"
    return "at about the same training time"


def _slower(a: str, b: str, ratio: float) -> str:
    if 1 / _SLOWER < ratio < _SLOWER:
        return "Both train about as long."
    slow, fast, factor = (a, b, ratio) if ratio > 1 else (b, a, 1 / ratio)
    return f"{slow} takes {times(factor)} the training time of {fast}."


def _without_contrast(arms: Sequence[Arm], metric: str) -> str:
    name = title(metric)
    rows = [row for row in arms if row.mean is not None]
    if not rows:
        failed = sum(row.failed for row in arms)
        return f"No trial finished with a test {name}; {counted(failed, 'trial')} failed."
    best = rows[0]
    setting = f" with {where(best.axes)}" if best.axes else ""
    only = len({row.arm for row in arms}) == 1
    why = "there is no second arm to compare it with" if only else "no two arms could be paired"
    return plain(
        f"{best.arm}{setting} reaches {name} {number(best.mean)} ({evidence(best)}); {why}."
    )

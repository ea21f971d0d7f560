"""What follows from the results and is told in several places: prices, budgets, gaps, choices."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from medtransfer.analysis.compare import Comparison
from medtransfer.analysis.grid import where
from medtransfer.analysis.report.headline import central as told_first
from medtransfer.analysis.report.words import (
    large,
    listed,
    megabytes,
    milliseconds,
    seconds,
    times,
    whole,
)
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from medtransfer.analysis.results import Arm, Contrast, Results, Spent

    Axes = Mapping[str, str]

SHOWN = 15  # differences of a setting that a reader can bear: those of six arms
# Prices that lie closer than this are the same.
_ALIKE = 1.1
COSTS: Mapping[str, tuple[str, Callable[[float | None], str]]] = {
    "train_seconds": ("training time", seconds),
    "peak_memory_mb": ("peak memory", megabytes),
    "trainable_parameters": ("trained parameters", large),
    "latency_ms": ("latency of an image", milliseconds),
}


def names(results: Results) -> tuple[str, ...]:
    """Return the arms as the study declared them; those it did not declare follow by name."""
    found = {row.arm for row in results.arms}
    declared = [arm for arm in results.protocol.get("arms", {}) if arm in found]
    return (*declared, *sorted(found - {*declared}))


def settings(results: Results) -> list[Axes]:
    """Return the settings of the data axes in the order of the arms."""
    return list({where(row.axes): row.axes for row in results.arms}.values())


def central(results: Results) -> Contrast | None:
    """Return the contrast that the headline tells; None where the declared one was not tested."""
    declared, primary = results.protocol.get("primary"), results.primary
    untested = "not tested" if declared and primary is None else ""
    return told_first(Comparison(results.arms, results.contrasts, (), primary, untested))


def ahead(results: Results, contrast: Contrast) -> tuple[str, str]:
    """Return the contrast's arms as the headline names them, the one that is ahead first."""
    gain = (contrast.diff or 0) * (-1 if results.metric in LOWER_IS_BETTER else 1)
    return (contrast.a, contrast.b) if gain >= 0 else (contrast.b, contrast.a)


def stands(results: Results, contrast: Contrast) -> str:
    """Return the verdict in few words."""
    if contrast.verdict in {"better", "worse"}:
        return f"{ahead(results, contrast)[0]} is better"
    return contrast.verdict


def central_setting(results: Results) -> Axes:
    """Return the setting of the headline; without one that of the details, or the last."""
    contrast = central(results)
    if contrast is not None:
        return contrast.axes
    return results.details.setting or next(iter(settings(results)[-1:]), {})


def leading(results: Results, axes: Axes, most: int) -> tuple[str, ...]:
    """Return the arms to draw where not all can be: those of the headline, then the best."""
    contrast = central(results)
    first = [] if contrast is None else [contrast.a, contrast.b]
    best = [row.arm for row in results.arms if row.axes == axes]
    chosen = {*list(dict.fromkeys([*first, *best, *names(results)]))[:most]}
    return tuple(arm for arm in names(results) if arm in chosen)


def told(contrasts: Sequence[Contrast], arms: Sequence[Arm]) -> list[Contrast]:
    """Return the contrasts that a reader can bear: of many the best arm against each other one.

    The primary contrast comes first.
    """
    best: dict[str, str] = {}
    for row in arms:
        best.setdefault(where(row.axes), row.arm)
    many = Counter(where(each.axes) for each in contrasts)
    primary = [each for each in contrasts if each.primary]
    rest = [each for each in contrasts if not each.primary]
    return primary + [
        each
        for each in rest
        if many[at := where(each.axes)] <= SHOWN or best.get(at) in {each.a, each.b}
    ]


def price(results: Results, contrast: Contrast) -> str:
    """Return what the arm that is ahead costs against the other; empty where nothing is known."""
    cost = {row.arm: row.cost for row in results.arms if row.axes == contrast.axes}
    first, second = ahead(results, contrast)
    a, b = cost.get(first, {}), cost.get(second, {})
    parts, alike = [], []
    for key, (name, shown) in COSTS.items():
        if not a.get(key) or not b.get(key):
            continue
        ratio = a[key] / b[key]
        if 1 / _ALIKE < ratio < _ALIKE:
            alike.append(name)
        else:
            # Ten thousand times the parameters is no help to anyone: the numbers are.
            factor = f"{times(ratio)} the " if 1e-3 < ratio < 1000 else ""
            parts.append(f"{factor}{name} ({shown(a[key])} against {shown(b[key])})")
    if alike:
        parts.append(f"about the same {listed(alike)}")
    return f"{first} against {second}: {listed(parts)}." if parts else ""


def budgets(spent: Sequence[Spent]) -> tuple[bool, tuple[str, ...]]:
    """Return whether the arms had equal budgets, by the numbers, and what shows it.

    Arms that were not tuned while others were are exempt from equal tuning: they have nothing to
    tune. Time is a result, not a budget.
    """
    told: list[str] = []
    equal = True
    untuned = [each for each in spent if not each.tuning_trials]
    tuned = [each for each in spent if each.tuning_trials]
    if tuned:
        same, sentence = _alike("trials of tuning", {s.arm: s.tuning_trials for s in tuned})
        equal, told = equal and same, [*told, sentence]
        if untuned:
            arms = listed([each.arm for each in untuned])
            told.append(f"Exempt from tuning, for want of anything to tune: {arms}.")
    else:
        told.append("No arm was tuned: all ran with the defaults of their strategy.")
    same, sentence = _alike("final trials", {s.arm: s.final_trials for s in spent})
    equal, told = equal and same, [*told, sentence]
    for name, value in (("optimiser steps", "steps"), ("looks at validation data", "validations")):
        rates = {s.arm: _per_trial(s, value) for s in spent}
        idle = [arm for arm, rate in rates.items() if not rate]
        if len(idle) == len(rates):
            continue  # an older store, which did not count them
        same, sentence = _alike(f"{name} a trial", {a: r for a, r in rates.items() if r})
        equal, told = equal and same, [*told, sentence]
        if idle:
            told.append(f"None of them: {listed(idle)}, whose head is solved, not stepped.")
    opened = [each for each in spent if each.test_openings > each.final_trials]
    if opened:
        counts = [f"{s.arm} ({s.test_openings} in {s.final_trials} trials)" for s in opened]
        told.append(
            f"Test data were opened more often than there are final trials: {listed(counts)}; "
            "attempts that were repeated count."
        )
    elif any(each.test_openings for each in spent):
        told.append("Test data were opened at most once in each final trial, and in no other.")
    if not equal:
        told.append("Attempts that failed or were repeated count.")
    return equal, tuple(told)


def _per_trial(spent: Spent, what: str) -> float:
    trials = spent.tuning_trials + spent.final_trials - spent.failed
    value: float = getattr(spent, what)
    return value / trials if trials > 0 else 0.0


def _alike(what: str, counts: Mapping[str, float]) -> tuple[bool, str]:
    values = {arm: round(count, 1) for arm, count in counts.items()}
    if len({*values.values()}) == 1:
        return True, f"Equal in all arms: {whole(next(iter(values.values())))} {what}."
    shown = listed([f"{whole(value)} ({arm})" for arm, value in values.items()])
    return False, f"NOT equal: {what} are {shown}."


def seeds(results: Results) -> list[str]:
    """Return all seeds that the study declared or that any arm has, in order."""
    declared = [f"{seed}" for seed in results.protocol.get("seeds", ())]
    found = {seed for row in results.arms for seed in row.by_seed}
    failed = {f"{each.seed}" for each in results.failures if each.seed is not None}
    return sorted({*declared, *found, *failed}, key=lambda s: (not s.isdigit(), len(s), s))


def gaps(results: Results) -> Iterator[tuple[Arm, dict[str, str]]]:
    """Yield each arm that lacks seeds, and for each of those why: `failed` or `missing`."""
    expected = seeds(results)
    failed = {(e.arm, where(e.axes), f"{e.seed}") for e in results.failures}
    for row in results.arms:
        if row.by_seed or not row.n_seeds:
            lacking = [seed for seed in expected if seed not in row.by_seed]
            if lacking or row.incomplete:
                at = row.arm, where(row.axes)
                yield row, {s: "failed" if (*at, s) in failed else "missing" for s in lacking}

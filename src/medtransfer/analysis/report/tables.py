"""The tables of a report, as text; every form shows the same cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtransfer.analysis.grid import where
from medtransfer.analysis.report.blocks import Table
from medtransfer.analysis.report.facts import gaps, names, seeds, settings, told
from medtransfer.analysis.report.words import (
    NONE,
    counted,
    interval,
    large,
    megabytes,
    milliseconds,
    number,
    probability,
    seconds,
    seeds_of,
    title,
    whole,
)
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medtransfer.analysis.results import Arm, Contrast, Rank, Results

ROWS = 150  # of a table that a reader can bear; the CSV files hold all
_OTHERS = 40


def arms(results: Results) -> Table:
    """Return the arms, best first within a setting, and what they cost."""
    axes = any(row.axes for row in results.arms)
    heads = ("Arm", *(("Setting",) * axes))
    numbers = {
        metric(results): [number(row.mean) for row in results.arms],
        "95 % CI": [interval(row) for row in results.arms],
        "Seeds": [seeds_of(row) for row in results.arms],
        "Training": [seconds(row.cost.get("train_seconds")) for row in results.arms],
        "Trainable parameters": [
            large(row.cost.get("trainable_parameters")) for row in results.arms
        ],
        "Peak memory": [megabytes(row.cost.get("peak_memory_mb")) for row in results.arms],
        "Latency": [milliseconds(row.cost.get("latency_ms")) for row in results.arms],
    }
    # What no arm has, such as the memory of a run on a CPU, need not take up the width.
    costs = list(numbers)[3:]
    numbers = {k: v for k, v in numbers.items() if k not in costs or {*v} != {NONE}}
    rows = [
        (row.arm, *((where(row.axes),) * axes), *(cells[i] for cells in numbers.values()))
        for i, row in enumerate(results.arms)
    ]
    notes = ["* lacks seeds that other arms have"] * any(row.incomplete for row in results.arms)
    return _cut(heads, tuple(numbers), rows, "results.csv", notes=notes)


def metric(results: Results) -> str:
    """Return the metric as the head of a column."""
    lower = " (lower is better)" * (results.metric in LOWER_IS_BETTER)
    return title(results.metric) + lower


def contrasts(given: Sequence[Contrast], rows_of: Sequence[Arm]) -> Table:
    """Return the contrasts that a reader can bear, the primary one first."""
    shown = told(given, rows_of)
    axes = any(row.axes for row in given)
    primary = any(row.primary for row in given)
    needs = any(row.more_cases or row.more_seeds for row in shown)
    rows = [
        (
            row.a,
            row.b,
            *((where(row.axes),) * axes),
            row.verdict + " (provisional)" * row.provisional,
            *(("primary" if row.primary else "secondary",) * primary),
            number(row.diff, signed=True),
            interval(row),
            probability(row.p),
            probability(row.p if row.primary else row.p_adj),
            f"{row.n_seeds}",
            f"{row.n_cases or NONE}",
            *((_needs(row),) * needs),
        )
        for row in shown
    ]
    heads = ("A", "B", *(("Setting",) * axes), "A is", *(("Question",) * primary))
    more = ("More to decide it",) * needs
    numbers = ("A - B", "95 % CI", "p", "Adjusted p", "Seeds", "Cases", *more)
    return _cut(heads, numbers, rows, "contrasts.csv", of=len(given))


def _needs(row: Contrast) -> str:
    """Return what would decide an undecided contrast, if the difference is what was observed."""
    if row.verdict != "undecided":
        return NONE
    ways = (row.more_cases, "case"), (row.more_seeds, "seed")
    return " or ".join(counted(count, what) for count, what in ways if count) or NONE


def external(results: Results) -> Table:
    """Return each arm on the data of another site beside what it reached on its own."""
    own = {(row.arm, where(row.axes)): row for row in results.arms}
    given = results.external.arms if results.external else ()
    axes = any(row.axes for row in given)
    rows = []
    for row in given:
        here = own.get((row.arm, where(row.axes)))
        inside = here.mean if here else None
        change = None if inside is None or row.mean is None else row.mean - inside
        rows.append(
            (
                row.arm,
                *((where(row.axes),) * axes),
                number(row.mean),
                interval(row),
                number(inside),
                number(change, signed=True),
                seeds_of(row),
                f"{row.n_cases or NONE}",
            )
        )
    heads = ("Arm", *(("Setting",) * axes))
    numbers = (f"External {metric(results)}", "95 % CI", "Internal", "Change", "Seeds", "Cases")
    return _cut(heads, numbers, rows, "results.json")


def calibration(results: Results) -> Table:
    """Return how far probabilities can be taken at their word, before and after scaling."""
    given = results.details.calibration
    columns: dict[str, list[float | None]] = {
        "ECE": [each.ece for each in given],
        "ECE, scaled": [each.ece_scaled for each in given],
        "Brier": [each.brier for each in given],
        "Brier, scaled": [each.brier_scaled for each in given],
        "NLL": [each.nll for each in given],
        "NLL, scaled": [each.nll_scaled for each in given],
        "Temperature": [each.temperature for each in given],
    }
    shown = {head: values for head, values in columns.items() if {*values} != {None}}
    rows = [
        (each.arm, *(number(values[i]) for values in shown.values()))
        for i, each in enumerate(given)
    ]
    return _cut(("Arm",), tuple(shown), rows, "results.json")


def subgroups(results: Results) -> Table:
    """Return the metric by value of each column and arm."""
    rows = [
        (s.column, s.value, s.arm, number(s.mean), interval(s), f"{s.n_cases}")
        for s in results.details.subgroups
    ]
    heads = ("Column", "Value", "Arm")
    return _cut(heads, (metric(results), "95 % CI", "Cases"), rows, "results.json", most=_OTHERS)


def across(results: Results) -> Table:
    """Return the arms over datasets."""
    found = results.across
    ranks = found.ranks if found else ()
    rows = [
        (
            each.arm,
            f"{each.rank:.2f}",
            number(each.mean_diff, signed=True),
            probability(each.p_adj),
            NONE if each.iqm is None else f"{number(each.iqm)} ({_ends(each)})",
            number(each.improvement),
            NONE if each.shares is None else " / ".join(f"{100 * s:.0f} %" for s in each.shares),
        )
        for each in ranks
    ]
    numbers = (
        "Mean rank",
        "Mean difference from the baseline",
        "Adjusted p",
        "IQM (95 % CI over seeds)",
        "Probability of improvement",
        "Behind / equivalent / ahead",
    )
    return _cut(("Arm",), numbers, rows, "results.json")


def _ends(rank: Rank) -> str:
    return f"{number(rank.iqm_lo)} to {number(rank.iqm_hi)}"


def worst(results: Results) -> Table:
    """Return the cases on which the arms are most wrong together."""
    found = results.details.worst
    shown = [arm for arm in names(results) if any(arm in each.arms for each in found)]
    rows = [
        (each.sample_id, each.target or NONE, *(number(each.arms.get(arm)) for arm in shown))
        for each in found
    ]
    return _cut(("Case", "Truth"), tuple(shown), rows, "results.json")


def tuning(results: Results) -> Table:
    """Return what was chosen for each arm."""
    axes = any(each.axes for each in results.tuning)
    rows = []
    for each in results.tuning:
        draw = next((d for d in each.draws if d.number == each.chosen), None)
        values = where(_short(draw.settings)) if draw and draw.settings else "the defaults"
        finished = sum(d.status == "FINISHED" for d in each.draws)
        rows.append(
            (
                each.arm,
                *((where(each.axes),) * axes),
                values,
                NONE if draw is None else f"{draw.number + 1}",
                number(draw.score if draw else None),
                f"{finished} of {len(each.draws)}",
            )
        )
    heads = ("Arm", *(("Setting",) * axes), "Chosen")
    numbers = ("Draw", f"Validation {title(results.metric)}", "Finished")
    return _cut(heads, numbers, rows, "results.json", most=_OTHERS)


def _short(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return settings with as many digits as a reader can use; results.json has all."""
    return {
        key: f"{value:.3g}" if isinstance(value, float) else f"{value}"
        for key, value in settings.items()
    }


def budget(results: Results) -> Table:
    """Return what each arm took, tuning included; what older stores did not count is left out."""
    given = results.spent
    columns: dict[str, list[float]] = {
        "Tuning trials": [each.tuning_trials for each in given],
        "Final trials": [each.final_trials for each in given],
        "Failed": [each.failed for each in given],
        "Steps": [each.steps for each in given],
        "Looks at validation data": [each.validations for each in given],
        "Openings of test data": [each.test_openings for each in given],
    }
    always = list(columns)[:3]
    shown = {head: values for head, values in columns.items() if head in always or any(values)}
    rows = [
        (each.arm, *(whole(values[i]) for values in shown.values()), seconds(each.seconds))
        for i, each in enumerate(given)
    ]
    return _cut(("Arm",), (*shown, "Training"), rows, "results.json")


def grid(results: Results) -> Table:
    """Return arms by settings, and the seeds that each has; empty where nothing is missing."""
    lacking = {(row.arm, where(row.axes)): why for row, why in gaps(results)}
    if not lacking:
        return Table((), (), ())
    expected, columns = len(seeds(results)), [where(axes) for axes in settings(results)]
    there = {(row.arm, where(row.axes)): row for row in results.arms}

    def cell(arm: str, at: str) -> str:
        if (arm, at) not in there:
            return f"0 of {expected}: all missing"
        why = lacking.get((arm, at), {})
        told = [f"seed {seed} {what}" for seed, what in why.items()]
        row = there[arm, at]
        return f"{row.n_seeds} of {expected}" + (f": {', '.join(told)}" if told else "")

    if len(columns) <= 6:
        rows = [(arm, *(cell(arm, at) for at in columns)) for arm in names(results)]
        heads = ("Arm", *(at or "Seeds" for at in columns))
    else:
        rows = [(arm, at, cell(arm, at)) for arm, at in lacking]
        heads = ("Arm", "Setting", "Seeds")
    return _cut(heads, (), rows, "results.json", most=_OTHERS)


def failures(results: Results) -> Table:
    """Return the trials without a result, and why."""
    rows = [
        (
            each.arm + (f" @ {where(each.axes)}" if each.axes else ""),
            NONE if each.seed is None else f"{each.seed}",
            each.run_id,
            each.reason,
        )
        for each in results.failures
    ]
    heads = ("Arm", "Seed", "Run", "Reason")
    return _cut(heads, (), rows, "results.json", most=_OTHERS)


def splits(results: Results) -> Table:
    """Return the hashes of the splits that final trials ran on."""
    rows = [(name, f"{count}") for name, count in results.splits.items()]
    return _cut(("Hash of the split",), ("Final trials",), rows, "results.json", most=_OTHERS)


def environment(results: Results) -> Table:
    """Return versions and machine of the first finished trial."""
    flat: dict[str, str] = {}
    for name, value in results.environment.items():
        if isinstance(value, dict):
            flat |= {f"{each}": f"{content}" for each, content in value.items()}
        elif value is not None:
            flat[name.replace("_", " ")] = f"{value}"
    return _cut(("What", "Which"), (), list(flat.items()), "results.json")


def _cut(
    heads: tuple[str, ...],
    numbers: tuple[str, ...],
    rows: Sequence[tuple[str, ...]],
    rest: str,
    *,
    most: int = ROWS,
    of: int = 0,
    notes: Sequence[str] = (),
) -> Table:
    """Return the first rows; a note says how many there are and where."""
    kept = tuple(rows[:most])
    total = max(of, len(rows))
    cut = [f"{len(kept)} of {counted(total, 'row')}; all are in {rest}"] * (total > len(kept))
    return Table(heads, numbers, kept, "; ".join([*notes, *cut]))

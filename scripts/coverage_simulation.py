"""How often the intervals of a difference hold the truth, and how often a verdict is wrong.

Results of two arms are drawn from a model whose true difference is known, and go through the
package's own functions. docs/statistics.md describes the model, and holds the tables.

    python scripts/coverage_simulation.py [--repetitions 10000] [--out docs/statistics.md]

Without `--out` the tables are printed; with it they are written between the page's marks. The
tables depend on the number of repetitions only. 10,000 take six minutes on one core, 4,000 two and
a half.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from medtransfer.analysis.statistics.case_values import case_values
from medtransfer.analysis.statistics.intervals import two_way_interval, within_bounds
from medtransfer.analysis.statistics.verdicts import verdict

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BEGIN, END = "<!-- begin coverage -->", "<!-- end coverage -->"
# Shares of a score's variance over cases, runs and arms, of one arm and one seed.
PATIENT, CASE, ARM_PATIENT, ARM_CASE, RUN = 0.15, 0.30, 0.10, 0.15, 0.30
DICE_SCALE = 0.8  # SD of a Dice on the logit scale
FAIL_CASE, FAIL_RUN, FAIL_DICE = 0.02, 0.02, 0.05  # of every run, of one run; the largest value
ROPE = 0.01
REGIMES = {"moderate": 0.015, "small": 0.005, "large": 0.03}
EXPECTED = {"auroc": (0.85, 0.89), "accuracy": (0.85, 0.89), "dice": (0.80, 0.83)}
BATCH, BOOTSTRAPS = 250, 500
UNASKED = (np.nan, np.nan)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)


@dataclass(frozen=True)
class Setting:
    """What is drawn: expected metrics of both arms, and the SD of a metric over seeds."""

    metric: str
    expected: tuple[float, float]
    seeds: int = 5
    cases: int = 60
    clustered: bool = False
    seed_sd: float = REGIMES["moderate"]
    positives: float = 0.4


@dataclass(frozen=True)
class Rates:
    """Shares of the repetitions, in per cent, and the SD seen between seeds, in points.

    What was not asked for is NaN.
    """

    difference: float
    bootstrap: float
    arm: float
    symmetric_arm: float
    decided: float
    decided_within_rope: float
    seed_sd: float


def measure(
    setting: Setting, repetitions: int, *, arm: bool = False, bootstrap: bool = False
) -> Rates:
    """Return how often the intervals of one setting hold the truth."""
    # the bootstrap's draws are its own: they leave the results that are drawn as they were
    key = crc32(repr(setting).encode())
    rng, own = np.random.default_rng(key), np.random.default_rng([key, 1])
    low = min(setting.expected)
    truth = setting.expected[0] - setting.expected[1]
    skills = [skill(setting.metric, each, setting.seed_sd) for each in setting.expected]
    found = []
    for _ in range(-(-repetitions // BATCH)):
        groups, values = draw(setting, skills, rng)
        for patients, arms in zip(groups, values, strict=True):
            one = patients if setting.clustered else None
            difference = (arms[0] - arms[1]).T
            paired = two_way_interval(difference, one)
            single, whole, draws = UNASKED, UNASKED, UNASKED
            if arm:
                interval = two_way_interval(arms[1].T, one)
                single = within_bounds(interval, setting.metric)
                whole = (interval.lo, interval.hi)
            if bootstrap:
                draws = resampled(difference, patients, own)
            words = [verdict(paired.lo, paired.hi, x, p_adj=paired.p) for x in (0.0, ROPE)]
            found.append(
                (
                    *(holds((paired.lo, paired.hi), truth), holds(draws, truth)),
                    *(holds(single, low), holds(whole, low)),
                    *(word in {"better", "worse"} for word in words),
                    arms.mean(axis=2).std(axis=1, ddof=1).mean(),
                )
            )
    return Rates(*(100 * np.mean(found[:repetitions], axis=0)).tolist())


def holds(interval: tuple[float, float], truth: float) -> float:
    """Return 1 where the interval holds the truth, 0 where not, NaN where there is none."""
    return np.nan if np.isnan(interval).any() else float(interval[0] <= truth <= interval[1])


def expectation(metric: str, mean: float, spread: float) -> float:
    """Return the expected metric, over cases, patients and seeds whose skill has SD `spread`."""
    total = PATIENT + CASE + ARM_PATIENT + ARM_CASE + RUN
    if metric == "auroc":
        return float(stats.norm.cdf(mean / np.sqrt(2 * total + spread**2)))
    if metric == "accuracy":
        return float(stats.norm.cdf(mean / np.sqrt(total + spread**2)))
    sd = np.sqrt(DICE_SCALE**2 * total + spread**2)
    fine = WEIGHTS @ special.expit(mean + sd * NODES) / WEIGHTS.sum()
    kept = (1 - FAIL_CASE) * (1 - FAIL_RUN)
    return float(kept * fine + (1 - kept) * FAIL_DICE / 2)


def skill(metric: str, expected: float, seed_sd: float) -> tuple[float, float]:
    """Return mean and SD over seeds of the skill that give the metric this mean and SD."""
    spread = 0.0
    for _ in range(20):
        mean = optimize.brentq(lambda x, sd=spread: expectation(metric, x, sd) - expected, -9, 9)
        slope = (expectation(metric, mean + 0.01, 0) - expectation(metric, mean - 0.01, 0)) / 0.02
        spread = seed_sd / slope
    return float(mean), spread


def draw(
    setting: Setting, skills: list[tuple[float, float]], rng: np.random.Generator
) -> tuple[Ints, Floats]:
    """Return patients (batch, cases) and values per case (batch, arm, seed, case)."""
    n, m = setting.cases, setting.seeds
    patient = np.tile(np.arange(n), (BATCH, 1))
    if setting.clustered:
        ends = np.cumsum(rng.integers(1, 5, (BATCH, n)), axis=1)
        patient = np.array([np.searchsorted(row, np.arange(n), side="right") for row in ends])

    def by_patient(*shape: int) -> Floats:
        values = rng.standard_normal((BATCH, *shape, n))
        index = patient.reshape(BATCH, *(1 for _ in shape), n)
        return np.take_along_axis(values, np.broadcast_to(index, values.shape), -1)

    shared = np.sqrt(PATIENT) * by_patient() + np.sqrt(CASE) * rng.standard_normal((BATCH, n))
    of_arm = np.sqrt(ARM_PATIENT) * by_patient(2)
    of_arm += np.sqrt(ARM_CASE) * rng.standard_normal((BATCH, 2, n))
    rest = np.sqrt(RUN) * rng.standard_normal((BATCH, 2, m, n))
    rest += shared[:, None, None] + of_arm[:, :, None]
    means, spreads = np.array(skills).T
    skilled = means[:, None] + spreads[:, None] * rng.standard_normal((BATCH, 2, m))
    if setting.metric == "accuracy":
        return patient, np.asarray(rest + skilled[..., None] > 0, dtype=np.float64)
    if setting.metric == "dice":
        dice = special.expit(DICE_SCALE * rest + skilled[..., None])
        failed = rng.random((BATCH, 1, 1, n)) < FAIL_CASE
        failed = failed | (rng.random((BATCH, 2, m, n)) < FAIL_RUN)
        return patient, np.where(failed, FAIL_DICE * rng.random((BATCH, 2, m, n)), dice)
    # Most images of a patient share their label, not all.
    risk = np.sqrt(0.8) * by_patient() + np.sqrt(0.2) * rng.standard_normal((BATCH, n))
    target = risk > stats.norm.isf(setting.positives)
    target[target.sum(axis=1) < 2, :2] = True
    return patient, auroc_values(target, rest + target[:, None, None] * skilled[..., None])


def auroc_values(target: NDArray[np.bool_], scores: Floats) -> Floats:
    """Return what `case_values` gives for each arm and seed, all at once; there are no ties."""
    n, label = scores.shape[-1], np.broadcast_to(target[:, None, None], scores.shape)
    positives = target.sum(axis=1)[:, None, None, None]
    negatives = n - positives
    order = np.argsort(scores, axis=-1)
    ordered = np.take_along_axis(label, order, -1)
    below, found = np.cumsum(~ordered, axis=-1), np.cumsum(ordered, axis=-1)
    placed = np.empty_like(scores)
    ranked = np.where(ordered, below / negatives, 1 - found / positives)
    np.put_along_axis(placed, order, ranked, -1)
    area = (placed * label).sum(axis=-1, keepdims=True) / positives
    sizes = np.where(label, positives, negatives)
    values = area + (placed - area) * np.sqrt(n * (n - 1) / (sizes * (sizes - 1)))
    first = np.column_stack([-scores[0, 0, 0], scores[0, 0, 0]])
    np.testing.assert_allclose(values[0, 0, 0], case_values("auroc", target[0], first))
    return np.asarray(values)


def resampled(difference: Floats, patient: Ints, rng: np.random.Generator) -> tuple[float, float]:
    """Return the ends of a percentile bootstrap that draws patients and seeds, crossed."""
    totals = np.zeros((patient.max() + 1, difference.shape[1]))
    np.add.at(totals, patient, difference)
    n, m = totals.shape
    rows, columns = drawn(n, rng), drawn(m, rng)
    means = ((rows @ totals) * columns).sum(axis=1) / m / (rows @ np.bincount(patient))
    lo, hi = np.quantile(means, [0.025, 0.975])
    return float(lo), float(hi)


def drawn(n: int, rng: np.random.Generator) -> Floats:
    """Return how often each of n was drawn, shape (bootstraps, n)."""
    index = rng.integers(n, size=(BOOTSTRAPS, n)) + n * np.arange(BOOTSTRAPS)[:, None]
    return np.bincount(index.ravel(), minlength=n * BOOTSTRAPS).reshape(-1, n).astype(np.float64)


def tables(repetitions: int) -> Iterator[str]:
    """Yield the lines of the page between its marks."""
    settings = itertools.product(EXPECTED, (5, 10), (60, 300), (False, True))
    error = 100 * np.sqrt(0.05 * 0.95 / repetitions)
    yield f"{repetitions} repetitions of each cell; the simulation's own standard error is"
    yield f"{error:.1f} points. All figures are per cent; coverage: no difference / a difference.\n"
    yield from table(
        [
            *("metric", "seeds", "cases", "a patient has", "coverage", "wrong verdicts"),
            *("wrong, rope .01", "arm's coverage", "SD seen", "small: coverage", "small: wrong"),
            *("large: coverage", "large: wrong"),
        ],
        (main_row(*key, repetitions) for key in settings),
    )
    yield "\nAn arm's own AUROC near 1, 60 cases:\n"
    near = itertools.product((0.95, 0.97, 0.99), (5, 10))
    yield from table(
        ["AUROC", "seeds", "logit scale (used)", "symmetric"],
        (near_row(area, m, repetitions) for area, m in near),
    )
    yield "\nWhat is harder, beside percentiles of a bootstrap over patients and seeds:\n"
    yield from table(
        ["metric", "seeds", "cases", "harder by", "coverage", "bootstrap"], hard_rows(repetitions)
    )


def main_row(metric: str, m: int, n: int, clustered: bool, repetitions: int) -> list[str]:
    """Return the row of one of the 24 settings."""
    low, high = EXPECTED[metric]
    row = [metric, str(m), str(n), "1 to 4" if clustered else "1"]
    for regime, seed_sd in REGIMES.items():
        same = Setting(metric, (low, low), m, n, clustered, seed_sd)
        null = measure(same, repetitions, arm=regime == "moderate")
        other = measure(replace(same, expected=(high, low)), repetitions)
        row += [f"{null.difference:.1f} / {other.difference:.1f}", f"{null.decided:.1f}"]
        if regime == "moderate":
            row += [f"{each:.1f}" for each in (null.decided_within_rope, null.arm, null.seed_sd)]
    return row


def near_row(area: float, m: int, repetitions: int) -> list[str]:
    """Return the row of an arm whose AUROC is near 1."""
    rates = measure(Setting("auroc", (area, area), m, seed_sd=0.005), repetitions, arm=True)
    return [f"{area}", str(m), *(f"{each:.1f}" for each in (rates.arm, rates.symmetric_arm))]


def hard_rows(repetitions: int) -> Iterator[list[str]]:
    """Yield the rows of settings of which one thing is harder than in the 24."""
    plain = [Setting(metric, (low, low)) for metric, (low, _) in EXPECTED.items()]
    few = Setting("auroc", (0.85, 0.85), positives=0.1)
    settings = [
        *((replace(each, cases=n, clustered=n > 60), "-") for each in plain for n in (60, 300)),
        *((replace(each, cases=300, seeds=m), f"{m} seeds") for each in plain for m in (3, 2)),
        *((replace(each, cases=20), "20 cases") for each in plain),
        *((replace(few, cases=n), f"about {n // 10} positives") for n in (60, 300)),
    ]
    for setting, text in settings:
        rates = measure(setting, repetitions, bootstrap=True)
        cases = f"{setting.cases}{', clustered' if setting.clustered else ''}"
        shown = [f"{each:.1f}" for each in (rates.difference, rates.bootstrap)]
        yield [setting.metric, str(setting.seeds), cases, text, *shown]


def table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="a page that holds the marks")
    arguments = parser.parse_args()
    started = time.perf_counter()
    text = "\n".join(tables(arguments.repetitions))
    if arguments.out:
        before, rest = arguments.out.read_text(encoding="utf-8").split(BEGIN)
        page = f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"
        arguments.out.write_text(page, encoding="utf-8")
    else:
        print(text)
    print(f"{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()

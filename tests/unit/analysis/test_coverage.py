"""Intervals hold a known truth as often as they say, in a short run of the simulation."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
SIMULATION = runpy.run_path(str(ROOT / "scripts" / "coverage_simulation.py"))
Setting, measure = SIMULATION["Setting"], SIMULATION["measure"]

REPETITIONS = 500
# Four standard errors of a share of 500 about the 93 to 97 % that are vouched for.
LEAST, MOST = (
    100 * (share + sign * 4 * np.sqrt(share * (1 - share) / REPETITIONS))
    for share, sign in ((0.93, -1), (0.97, 1))
)


@pytest.mark.parametrize(
    "setting",
    [
        Setting("auroc", (0.89, 0.85), clustered=True),
        Setting("accuracy", (0.85, 0.85), seeds=10, seed_sd=0.03),
        Setting("dice", (0.83, 0.80), cases=300, clustered=True, seed_sd=0.03),
    ],
    ids=lambda setting: setting.metric,
)
def test_the_interval_of_a_difference_covers(setting):
    assert LEAST <= measure(setting, REPETITIONS).difference <= MOST


@pytest.mark.parametrize("metric", ["auroc", "accuracy"])
def test_patients_with_several_images_are_covered_as_well(metric):
    """Seeds that hardly differ leave the patients; images taken for patients cover 89 to 90 %."""
    setting = Setting(metric, (0.85, 0.85), 10, 300, clustered=True, seed_sd=0.001)
    assert 92.5 <= measure(setting, 2000).difference <= 97


@pytest.mark.parametrize("metric", ["auroc", "accuracy", "dice"])
def test_arms_that_are_equal_are_seldom_told_apart(metric):
    """A wrong verdict in 5 % of studies: more than the upper bound would be four errors off."""
    rates = measure(Setting(metric, (0.8, 0.8), seed_sd=0.02), REPETITIONS)
    assert rates.decided_within_rope <= rates.decided <= 100 - LEAST


def test_an_arm_near_the_bound_of_its_metric_is_covered_far_better_on_the_logit_scale():
    rates = measure(Setting("auroc", (0.97, 0.97), seed_sd=0.005), REPETITIONS, arm=True)
    assert rates.symmetric_arm + 3 < rates.arm
    assert rates.arm >= LEAST


def test_what_leaves_patients_or_seeds_out_does_not_cover():
    """The bounds above can fail: images taken for patients, seeds taken for what they average."""
    clustered = Setting("dice", (0.8, 0.8), cases=300, clustered=True, seed_sd=0.03)
    rng = np.random.default_rng(0)
    skills = [SIMULATION["skill"]("dice", 0.8, 0.03)] * 2
    _, values = SIMULATION["draw"](clustered, skills, rng)
    averaged = (values[:, 0] - values[:, 1]).mean(axis=1)
    half = 1.96 * averaged.std(axis=1, ddof=1) / np.sqrt(clustered.cases)
    assert 100 * np.mean(np.abs(averaged.mean(axis=1)) <= half) < LEAST


def test_the_simulated_arms_have_the_expectation_that_is_taken_for_the_truth():
    rng = np.random.default_rng(1)
    for metric, each in SIMULATION["EXPECTED"].items():
        setting = Setting(metric, each, cases=100)
        skills = [SIMULATION["skill"](metric, mean, setting.seed_sd) for mean in each]
        values = np.concatenate([SIMULATION["draw"](setting, skills, rng)[1] for _ in range(4)])
        means = values.mean(axis=(2, 3))
        error = means.std(axis=0) / np.sqrt(len(means))
        assert np.abs(means.mean(axis=0) - each) == pytest.approx(0, abs=4 * error.max())


def test_a_rate_does_not_depend_on_what_else_is_measured():
    setting = Setting("dice", (0.8, 0.8), cases=20)
    assert measure(setting, 50).difference == measure(setting, 50, arm=True).difference
    assert measure(setting, 50) != measure(replace(setting, cases=21), 50)


def test_what_the_page_shows_keeps_to_what_the_page_says():
    page = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    shown = page.split(SIMULATION["BEGIN"])[1].split(SIMULATION["END"])[0]
    lines = shown.split("\n\n")[2].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert len({tuple(row[:4]) for row in rows}) == len(rows) == 24
    for name, cells in zip(head, zip(*rows, strict=True), strict=True):
        values = [float(value) for cell in cells for value in cell.split("/") if "." in cell]
        if name.endswith(": coverage") or name == "coverage":
            assert len(values) == 48
            assert 93 <= min(values) <= max(values) <= 97
        elif "wrong" in name:
            assert len(values) == 24
            assert max(values) <= 6

"""Intervals over cases and seeds, Holm's correction, verdicts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medtransfer.analysis.statistics.case_values import case_values
from medtransfer.analysis.statistics.intervals import two_way_interval, within_bounds
from medtransfer.analysis.statistics.verdicts import holm, verdict

seeds_of_rng = st.integers(0, 2**32 - 1)


def table(rng, n, m, *, case=1.0, seed=1.0, error=0.5, mean=0.3):
    return (
        mean
        + case * rng.normal(size=(n, 1))
        + seed * rng.normal(size=(1, m))
        + error * rng.normal(size=(n, m))
    )


def anova(y):
    """The two-way layout without replication, sum by sum."""
    n, m = y.shape
    grand = sum(y[i][j] for i in range(n) for j in range(m)) / (n * m)
    rows = [sum(y[i]) / m for i in range(n)]
    columns = [sum(y[i][j] for i in range(n)) / n for j in range(m)]
    ms_case = m * sum((r - grand) ** 2 for r in rows) / (n - 1)
    ms_seed = n * sum((c - grand) ** 2 for c in columns) / (m - 1)
    residual = sum(
        (y[i][j] - rows[i] - columns[j] + grand) ** 2 for i in range(n) for j in range(m)
    )
    return grand, ms_case, ms_seed, residual / ((n - 1) * (m - 1))


@settings(max_examples=50, deadline=None)
@given(seed=seeds_of_rng, n=st.integers(3, 25), m=st.integers(2, 6))
def test_interval_equals_the_naive_analysis_of_variance(seed, n, m):
    y = table(np.random.default_rng(seed), n, m)
    mean, ms_case, ms_seed, ms_error = anova(y)
    got = two_way_interval(y)
    assert got.estimate == pytest.approx(mean)
    assert got.over == "cases and seeds"
    if min(ms_case, ms_seed) < ms_error:
        return  # a negative component; what then happens has tests of its own
    total = ms_case + ms_seed - ms_error
    df = total**2 / (
        ms_case**2 / (n - 1) + ms_seed**2 / (m - 1) + ms_error**2 / ((n - 1) * (m - 1))
    )
    assert got.se == pytest.approx(np.sqrt(total / (n * m)))
    assert got.df == pytest.approx(df)
    assert got.hi - got.estimate == pytest.approx(got.se * stats.t.ppf(0.975, df))
    assert got.p == pytest.approx(2 * stats.t.sf(abs(mean) / got.se, df))


def test_a_case_worked_by_hand():
    # rows 1, 2, 6 on average; columns 2, 4: MS_case 14, MS_seed 6, MS_error 2 (see below)
    y = [[1.0, 1.0], [0.0, 4.0], [5.0, 7.0]]
    # grand 3; SS_case = 2 (4 + 1 + 9) = 28; SS_seed = 3 (1 + 1) = 6
    # residuals +-(1, -1, 0): SS_error = 2 (1 + 1 + 0) = 4, MS_error = 4 / 2 = 2
    got = two_way_interval(y)
    assert got.estimate == pytest.approx(3)
    assert got.se**2 == pytest.approx((14 + 6 - 2) / 6)
    assert got.df == pytest.approx(18**2 / (14**2 / 2 + 6**2 / 1 + 2**2 / 2))


def test_a_negative_component_counts_as_zero():
    # all seeds have the same mean, so that MS_seed = 0 < MS_error
    y = np.array([[1.0, 2.0], [4.0, 3.0], [5.0, 6.0], [8.0, 7.0]])
    _, ms_case, ms_seed, ms_error = anova(y)
    assert ms_seed < ms_error
    assert two_way_interval(y).se ** 2 == pytest.approx(ms_case / 8)
    # a single pair of opposite residuals: both mean squares vanish
    assert two_way_interval([[1.0, -1.0], [-1.0, 1.0]]).se ** 2 == pytest.approx(4 / 4)


def test_one_seed_or_one_case_gives_a_t_interval():
    y = np.random.default_rng(0).normal(size=30)
    low, high = stats.t.interval(0.95, 29, y.mean(), stats.sem(y))
    for shape, over in [((30, 1), "cases"), ((1, 30), "seeds")]:
        got = two_way_interval(y.reshape(shape))
        assert (got.lo, got.hi, got.over) == (pytest.approx(low), pytest.approx(high), over)


def test_a_single_value_and_none_have_no_interval():
    single = two_way_interval([[0.7]])
    assert (single.estimate, single.over) == (0.7, "nothing")
    assert np.isnan([single.lo, single.hi, single.p, single.se]).all()
    assert np.isnan(two_way_interval(np.empty((0, 3))).estimate)
    assert two_way_interval([[np.nan], [np.nan]]).over == "nothing"


def test_values_that_do_not_vary_have_no_width():
    same = two_way_interval(np.zeros((20, 3)))
    assert (same.lo, same.hi, same.p) == (0, 0, 1)
    apart = two_way_interval(np.full((20, 3), 0.1))
    assert (apart.lo, apart.hi, apart.p) == (pytest.approx(0.1), pytest.approx(0.1), 0)


@settings(max_examples=30, deadline=None)
@given(seed=seeds_of_rng, n=st.integers(2, 20), m=st.integers(1, 5), grouped=st.booleans())
def test_order_of_cases_and_seeds_does_not_matter(seed, n, m, grouped):
    rng = np.random.default_rng(seed)
    y = table(rng, n, m)
    groups = rng.integers(0, max(2, n // 2), n) if grouped else None
    rows, columns = rng.permutation(n), rng.permutation(m)
    first = two_way_interval(y, groups)
    second = two_way_interval(y[rows][:, columns], None if groups is None else groups[rows])
    for name in ("estimate", "lo", "hi", "p", "df"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(seed=seeds_of_rng, m=st.integers(1, 5))
def test_swapping_the_arms_mirrors_the_interval(seed, m):
    y = table(np.random.default_rng(seed), 20, m)
    there, back = two_way_interval(y), two_way_interval(-y)
    assert (there.lo, there.hi) == (pytest.approx(-back.hi), pytest.approx(-back.lo))
    assert there.p == pytest.approx(back.p)


@pytest.mark.parametrize("m", [1, 4])
def test_duplicated_cases_of_a_patient_add_no_certainty(m):
    once = table(np.random.default_rng(1), 40, m, seed=0.1)
    patients = np.repeat(np.arange(40), 3)
    copied = np.repeat(once, 3, axis=0)
    clustered = two_way_interval(copied, patients)
    naive = two_way_interval(copied)
    assert clustered.hi - clustered.lo > 1.05 * (naive.hi - naive.lo)
    truth = two_way_interval(once)
    assert (clustered.lo, clustered.hi) == (pytest.approx(truth.lo), pytest.approx(truth.hi))


def test_groups_of_one_change_nothing_and_a_large_group_keeps_the_mean_over_cases():
    y = table(np.random.default_rng(2), 12, 3)
    assert two_way_interval(y, np.arange(12)[::-1]).se == pytest.approx(two_way_interval(y).se)
    uneven = np.array([0] * 7 + [1, 1, 2, 3, 4])
    assert two_way_interval(y, uneven).estimate == pytest.approx(y.mean())
    # equal values: a patient with seven images is not a source of error
    assert two_way_interval(np.full((12, 3), 0.9), uneven).se == 0


def test_one_patient_leaves_the_seeds():
    y = table(np.random.default_rng(2), 12, 3)
    got = two_way_interval(y, np.zeros(12))
    assert got.over == "seeds"
    assert got.se == pytest.approx(stats.sem(y.mean(axis=0)))


@given(st.floats(0.001, 1.999), st.floats(0.001, 0.5))
def test_the_interval_of_a_mean_stays_within_its_metric(mean, spread):
    interval = two_way_interval([[mean - spread], [mean + spread], [mean]])
    lo, hi = within_bounds(interval, "brier")
    assert 0 <= lo <= mean <= hi <= 2
    mirrored = two_way_interval([[2 - mean - spread], [2 - mean + spread], [2 - mean]])
    assert within_bounds(mirrored, "brier") == (pytest.approx(2 - hi), pytest.approx(2 - lo))
    assert within_bounds(interval, "nll") == (interval.lo, interval.hi)


def test_far_from_the_bounds_the_logit_changes_little_and_at_a_bound_it_is_left_out():
    y = 0.5 + 0.01 * np.random.default_rng(0).normal(size=(50, 3))
    interval = two_way_interval(y)
    ends = pytest.approx((interval.lo, interval.hi), abs=1e-5)
    assert within_bounds(interval, "auroc") == ends
    assert within_bounds(two_way_interval(np.ones((9, 2))), "auroc") == (1, 1)
    assert np.isnan(within_bounds(two_way_interval([[0.5]]), "auroc")).all()


def test_coverage_over_cases_and_seeds():
    """95 % intervals of an AUROC and of a paired difference, 60 cases and 5 seeds, 400 times."""
    rng = np.random.default_rng(7)
    target = np.repeat([0, 1], 30)
    shift, wobble, easy, noise = np.array([1.2, 0.8]), 0.25, 0.7, 0.6
    # AUROC of scores shifted by d ~ N(shift, wobble), with twice the variance of a score
    areas = stats.norm.cdf(shift / np.sqrt(2 * (easy**2 + noise**2) + wobble**2))
    covered = []
    for _ in range(400):
        case = easy * rng.normal(size=60)
        seeds = []
        for _seed in range(5):
            scores = [
                case + noise * rng.normal(size=60) + target * (s + wobble * rng.normal())
                for s in shift
            ]
            seeds.append([case_values("auroc", target, np.column_stack([-x, x])) for x in scores])
        first, second = np.moveaxis(seeds, (0, 1, 2), (2, 0, 1))
        lo, hi = within_bounds(two_way_interval(first), "auroc")
        paired = two_way_interval(first - second)
        covered.append([lo <= areas[0] <= hi, paired.lo <= areas[0] - areas[1] <= paired.hi])
    arm, difference = np.mean(covered, axis=0)
    assert 0.92 <= arm <= 0.975
    assert 0.92 <= difference <= 0.975


def naive_holm(p):
    return [
        max(
            min(1.0, (len(p) - rank) * p[i])
            for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__))
            if p[i] <= p[j]
        )
        for j in range(len(p))
    ]


@given(st.lists(st.floats(0, 1), max_size=12, unique=True))
def test_holm_equals_the_naive_one(p):
    assert holm(p) == pytest.approx(naive_holm(p))


def test_holm_leaves_what_is_no_test():
    assert holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)
    assert holm([]).size == 0


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [
        (0.02, 0.05, "better"),
        (0.001, 0.05, "better"),
        (-0.05, -0.02, "worse"),
        (-0.005, 0.005, "equivalent"),
        (0.002, 0.008, "equivalent"),
        (-0.01, 0.01, "equivalent"),
        (-0.02, 0.005, "undecided"),
        (0.0, 0.05, "undecided"),
        (-0.05, 0.05, "undecided"),
        (0.0, 0.0, "undecided"),
        (0.3, 0.3, "better"),
        (float("nan"), float("nan"), "undecided"),
    ],
)
def test_verdicts(lo, hi, expected):
    assert verdict(lo, hi, 0.01) == expected


def test_a_verdict_needs_the_corrected_p_as_well():
    assert verdict(0.02, 0.05, 0.01, p_adj=0.049) == "better"
    assert verdict(0.02, 0.05, 0.01, p_adj=0.05) == "undecided"
    assert verdict(-0.05, -0.02, 0.01, p_adj=float("nan")) == "undecided"
    assert verdict(0.002, 0.008, 0.01, p_adj=0.2) == "equivalent"


def test_a_verdict_mirrors():
    ends = [-0.05, -0.02, -0.01, -0.005, 0.0, 0.005, 0.01, 0.02, 0.05]
    opposite = {"better": "worse", "worse": "better"}
    for lo, hi in itertools.combinations_with_replacement(ends, 2):
        there, back = verdict(lo, hi, 0.01), verdict(-hi, -lo, 0.01)
        assert back == opposite.get(there, there)

"""Intervals over cases and seeds, Holm's correction, verdicts."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

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
    total, spread = ms_seed, ms_seed**2 / (m - 1)
    if ms_case > ms_error:
        total += ms_case - ms_error
        spread += ms_case**2 / (n - 1) + ms_error**2 / ((n - 1) * (m - 1))
    least = min(n, m) - 1
    assert got.se == pytest.approx(np.sqrt(total / (n * m)))
    assert least <= got.df <= max(total**2 / spread, least) * (1 + 1e-9)
    assert got.hi - got.estimate == pytest.approx(got.se * stats.t.ppf(0.975, got.df))
    assert got.p == pytest.approx(2 * stats.t.sf(abs(mean) / got.se, got.df))


@pytest.mark.parametrize("m", [5, 10])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95])
def test_coverage_of_a_sum_of_two_variances_by_quadrature(m, share):
    """Exact but for the grid: at 5 seeds Satterthwaite's own degrees of freedom give 94.2 %."""
    n, (nodes, weights) = 60, np.polynomial.legendre.leggauss(60)
    # no error, so that mean squares over n m are independent, `share` of their sum the seeds'
    seeds = share * stats.chi2.ppf((nodes + 1) / 2, m - 1) / (m - 1)
    cases = (1 - share) * stats.chi2.ppf((nodes + 1) / 2, n - 1) / (n - 1)
    by_seed, by_case = (stats.zscore(np.arange(k), ddof=1) for k in (m, n))
    coverage = 0.0
    for seed, p in zip(seeds, weights / 2, strict=True):
        for case, q in zip(cases, weights / 2, strict=True):
            y = np.sqrt(n * case) * by_case[:, None] + np.sqrt(m * seed) * by_seed
            coverage += p * q * (2 * stats.norm.cdf(two_way_interval(y).hi) - 1)
    assert 0.9465 <= coverage <= 0.952


@settings(max_examples=50, deadline=None)
@given(seed=seeds_of_rng, n=st.integers(2, 12), m=st.integers(2, 6), grouped=st.booleans())
def test_p_agrees_with_the_interval(seed, n, m, grouped):
    rng = np.random.default_rng(seed)
    # hits: coarse, so that mean squares are often equal or nil
    y = rng.integers(0, 2, (n, m)) - rng.integers(0, 2, (n, m))
    got = two_way_interval(y, rng.integers(0, n, n) if grouped else None)
    if np.isfinite(got.p):
        assert (got.p < 0.05) == (not got.lo <= 0 <= got.hi)
        assert np.isfinite([got.lo, got.hi, got.df]).all()


def test_a_case_worked_by_hand():
    # rows 1, 2, 6 on average; columns 2, 4: MS_case 14, MS_seed 6, MS_error 2 (see below)
    y = [[1.0, 1.0], [0.0, 4.0], [5.0, 7.0]]
    # grand 3; SS_case = 2 (4 + 1 + 9) = 28; SS_seed = 3 (1 + 1) = 6
    # residuals +-(1, -1, 0): SS_error = 2 (1 + 1 + 0) = 4, MS_error = 4 / 2 = 2
    got = two_way_interval(y)
    assert got.estimate == pytest.approx(3)
    assert got.se**2 == pytest.approx((14 + 6 - 2) / 6)
    assert got.df == pytest.approx(18**2 / (14**2 / 2 + 6**2 / 1 + 2**2 / 2))


def test_no_component_of_cases_leaves_the_seeds():
    # all cases have the same mean: what is left is a mean of two seeds, with one degree of freedom
    y = np.array([[1.0, 4.0], [2.0, 3.0], [0.0, 5.0]])
    got = two_way_interval(y)
    assert got.se == pytest.approx(stats.sem(y.mean(axis=0)))
    assert got.df == pytest.approx(1)


def test_seeds_that_agree_by_chance_narrow_the_interval_no_further_than_unbiased():
    # MS_seed = 0 < MS_error: raising it to MS_error would give MS_case / 8
    y = np.array([[1.0, 2.0], [4.0, 3.0], [5.0, 6.0], [8.0, 7.0]])
    _, ms_case, ms_seed, ms_error = anova(y)
    assert ms_seed < ms_error
    assert two_way_interval(y).se ** 2 == pytest.approx((ms_case + ms_seed - ms_error) / 8)


def test_residuals_that_cancel_in_every_mean_are_no_certainty():
    # MS_case = MS_seed = 0, MS_error = 4
    got = two_way_interval([[1.0, -1.0], [-1.0, 1.0]])
    assert (got.se**2, got.df) == (pytest.approx(4 / 4), 1)


def test_cancelling_components_do_not_take_all_degrees_of_freedom():
    # MS_case is hardly above MS_error, MS_seed hardly above 0
    y = np.array([[0.0, 2.2], [2.0, 0.0], [2.0, 4.0], [4.1, 2.0], [1.0, 1.0]])
    got = two_way_interval(y)
    assert got.df >= 1
    assert got.hi - got.lo < 100


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

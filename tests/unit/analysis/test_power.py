"""How many more cases or seeds an undecided contrast would need."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower

from medtransfer.analysis.statistics.intervals import two_way_interval
from medtransfer.analysis.statistics.power import Needed, needed


def exact(n, m, *, gain=0.1, case=1.0, seed=0.3, error=0.5):
    """A matrix whose estimated mean and variance components are exactly these."""

    def spread(values, axis, df):
        values = values - values.mean(axis=axis, keepdims=True)
        return values / np.sqrt((values**2).sum() / df)

    rng = np.random.default_rng(n * m)
    rest = rng.normal(size=(n, m))
    rest -= rest.mean(axis=0)
    rest -= rest.mean(axis=1, keepdims=True)
    rest /= np.sqrt((rest**2).sum() / ((n - 1) * (m - 1)))
    # the mean of m errors is in each case's mean, and adds error ** 2 / m to what is seen there
    rows = spread(rng.normal(size=(n, 1)), 0, n - 1) * np.sqrt(case**2 + error**2 / m)
    columns = spread(rng.normal(size=(1, m)), 1, m - 1) * np.sqrt(seed**2 + error**2 / n)
    return gain + rows + columns + error * rest


def chance(n, m, **parts):
    """Noncentral t, with what the interval of such a study would have."""
    interval = two_way_interval(exact(n, m, **parts))
    shift = parts["gain"] / interval.se
    return stats.nct.sf(stats.t.ppf(0.975, interval.df), interval.df, shift)


def first(start, stop, reach):
    return next((k for k in range(start, stop) if reach(k) >= 0.8), None)


PARTS = {
    "gain": st.floats(0.1, 1),
    "case": st.floats(0.2, 2),
    "seed": st.floats(0.02, 0.3),
    "error": st.floats(0.1, 1),
}


@settings(max_examples=15, deadline=None)
@given(n=st.integers(5, 30), m=st.integers(2, 8), **PARTS)
def test_it_is_the_first_number_that_reaches_the_power(n, m, **parts):
    found = needed(exact(n, m, **parts))
    cases = first(n, n + 400, lambda k: chance(k, m, **parts))
    seeds = first(m, m + 60, lambda k: chance(n, k, **parts))
    if cases is not None:
        assert found.more_cases == cases - n
    else:
        assert found.more_cases is None or found.more_cases >= 400
    if seeds is not None:
        assert found.more_seeds == seeds - m
    else:
        assert found.more_seeds is None or found.more_seeds >= 60


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(5, 40), gain=st.floats(0.1, 0.6))
def test_with_one_seed_or_one_case_it_equals_the_oracle(seed, n, gain):
    d = np.random.default_rng(seed).normal(size=n)
    d += gain - d.mean()
    want = TTestPower().solve_power(effect_size=gain / d.std(ddof=1), alpha=0.05, power=0.8)
    assume(abs(want - round(want)) > 1e-3)
    more = max(0, int(np.ceil(want)) - n)
    # the oracle also counts what is found on the wrong side: next to nothing
    assert needed(d[:, None]) == Needed(pytest.approx(more, abs=0), None)
    assert needed(d[None]) == Needed(None, pytest.approx(more, abs=0))


@pytest.mark.parametrize(
    ("parts", "more"),
    [
        ({"gain": 0.25, "case": 1.0, "seed": 0.1, "error": 0.8}, "cases"),
        ({"gain": 0.35, "case": 0.4, "seed": 0.4, "error": 0.8}, "seeds"),
    ],
)
def test_a_study_of_that_size_finds_it_in_four_of_five(parts, more):
    n, m = 40, 5
    found = needed(exact(n, m, **parts))
    if more == "cases":
        n += found.more_cases
    else:
        m += found.more_seeds
    assert (n, m) != (40, 5)
    rng = np.random.default_rng(0)
    decided = []
    for _ in range(500):
        y = parts["gain"] + parts["case"] * rng.normal(size=(n, 1))
        y = y + parts["seed"] * rng.normal(size=(1, m)) + parts["error"] * rng.normal(size=(n, m))
        decided.append(two_way_interval(y).lo > 0)
    assert np.mean(decided) == pytest.approx(0.8, abs=0.06)


@settings(max_examples=25, deadline=None)
@example(n=51, m=5, factor=1.65625, gain=0.9375, case=0.25, seed=0.046875, error=0.1875)
@given(n=st.integers(5, 60), m=st.integers(2, 8), factor=st.floats(1.05, 3), **PARTS)
def test_a_greater_difference_and_less_power_need_no_more(n, m, factor, **parts):
    def rank(found):
        return [np.inf if k is None else k for k in (found.more_cases, found.more_seeds)]

    small = rank(needed(exact(n, m, **parts)))
    great = rank(needed(exact(n, m, **parts | {"gain": factor * parts["gain"]})))
    modest = rank(needed(exact(n, m, **parts), power=0.5))
    strict = rank(needed(exact(n, m, **parts), level=0.99))
    assert np.less_equal(great, small).all()
    assert np.less_equal(modest, small).all()
    assert np.less_equal(small, strict).all()


@settings(max_examples=25, deadline=None)
@given(n=st.integers(5, 60), m=st.integers(2, 8), **PARTS)
def test_what_the_interval_leaves_undecided_needs_more(n, m, **parts):
    y = exact(n, m, **parts)
    interval = two_way_interval(y)
    found = needed(y)
    if interval.lo <= 0:
        assert found.more_cases is None or found.more_cases > 0
        assert found.more_seeds is None or found.more_seeds > 0


def test_the_other_source_alone_keeps_it_undecided():
    seeds_differ = needed(exact(40, 4, gain=0.3, case=0.5, seed=0.5, error=0.1))
    assert seeds_differ.more_cases is None
    assert seeds_differ.more_seeds is not None
    cases_differ = needed(exact(40, 4, gain=0.3, case=2.0, seed=0.05, error=0.1))
    assert cases_differ.more_seeds is None
    assert cases_differ.more_cases is not None


def test_signs_and_orders_do_not_matter():
    y = exact(30, 4)
    rng = np.random.default_rng(0)
    shuffled = y[rng.permutation(30)][:, rng.permutation(4)]
    assert needed(y) == needed(-y) == needed(shuffled)


def test_patients_are_added_with_all_their_cases():
    y = exact(40, 8, gain=0.15, seed=0.02)
    plain = needed(y)
    assert needed(y, np.arange(40)[::-1]) == plain
    patients = np.repeat([f"p{k}" for k in range(40)], 3)
    copied = needed(np.repeat(y, 3, axis=0), patients)
    assert copied == Needed(3 * plain.more_cases, plain.more_seeds)
    # as if independent, too few would be asked for
    naive = needed(np.repeat(y, 3, axis=0))
    assert naive.more_cases < copied.more_cases


def test_nothing_is_needed_of_what_is_sure_and_nothing_said_of_what_is_not():
    sure = needed(np.full((20, 3), 0.2))
    assert sure == Needed(0, 0)
    assert needed(exact(300, 5, gain=2.0, seed=0.05)) == Needed(0, 0)
    for y in (np.zeros((20, 3)), np.empty((0, 3)), np.full((5, 2), np.nan), [[0.3]]):
        assert needed(y) == Needed(None, None)


def test_one_patient_leaves_the_seeds():
    y = np.random.default_rng(0).normal(0.3, 1, size=(12, 6))
    found = needed(y, np.zeros(12))
    assert found.more_cases is None
    assert found == Needed(None, needed(y.mean(axis=0)[None]).more_seeds)

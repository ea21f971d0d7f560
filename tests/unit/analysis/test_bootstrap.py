"""Bootstrap intervals over cases and seeds."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from medtransfer.analysis.statistics.bootstrap import bootstrap, crossed_bootstrap
from medtransfer.analysis.statistics.intervals import two_way_interval


def table(rng, n, m, *, case=1.0, seed=1.0, error=0.5):
    return (
        case * rng.normal(size=(n, 1))
        + seed * rng.normal(size=(1, m))
        + error * rng.normal(size=(n, m))
    )


def ends(found):
    return (found.lo, found.hi)


METHODS = pytest.mark.parametrize("method", ["expanded", "percentile", "bca"])


@METHODS
def test_equal_generators_give_equal_intervals_and_others_do_not(method):
    y = table(np.random.default_rng(0), 30, 4)
    first, second, other = (
        crossed_bootstrap(y, np.mean, np.random.default_rng(k), draws=200, method=method)
        for k in (1, 1, 2)
    )
    assert first == second
    assert ends(first) != ends(other)


def test_percentiles_are_those_of_all_resamples():
    y = table(np.random.default_rng(3), 3, 3)
    draws = list(itertools.product(range(3), repeat=3))
    every = np.array([np.median(y[np.ix_(cases, seeds)]) for cases in draws for seeds in draws])
    found = crossed_bootstrap(
        y, np.median, np.random.default_rng(0), draws=20_000, method="percentile", level=0.8
    )
    for end, share in zip(ends(found), (0.1, 0.9), strict=True):
        assert np.mean(every < end) - 0.02 <= share <= np.mean(every <= end) + 0.02
    assert found.se == pytest.approx(np.std(every), rel=0.03)


@pytest.mark.parametrize("method", ["percentile", "bca"])
@pytest.mark.parametrize("seed", range(3))
def test_one_trial_agrees_with_scipy(method, seed):
    values = np.random.default_rng(seed).exponential(size=40)
    got = bootstrap(values, np.std, np.random.default_rng(1), method=method, draws=4000)
    want = stats.bootstrap(
        (values,), np.std, method=method, rng=np.random.default_rng(2), n_resamples=4000
    )
    width = got.hi - got.lo
    assert ends(got) == pytest.approx(tuple(want.confidence_interval), abs=0.06 * width)
    assert got.over == "cases"
    assert got.estimate == pytest.approx(values.std())


@pytest.mark.parametrize("method", ["expanded", "percentile"])
def test_without_spread_over_seeds_the_interval_is_that_of_the_cases(method):
    y = np.repeat(np.random.default_rng(5).normal(size=(200, 1)), 5, axis=1)
    found = crossed_bootstrap(y, np.mean, np.random.default_rng(0), method=method, draws=6000)
    exact = two_way_interval(y[:, :1])
    assert ends(found) == pytest.approx((exact.lo, exact.hi), abs=0.06 * (exact.hi - exact.lo))


def test_the_expanded_interval_is_about_as_wide_as_the_two_way_interval():
    ratio = {"expanded": [], "percentile": []}
    for k in range(20):
        rng = np.random.default_rng(k)
        y = table(rng, 100, 6, seed=0.5)
        exact = two_way_interval(y)
        for method, found in ratio.items():
            got = crossed_bootstrap(y, np.mean, rng, method=method, draws=1000)
            found.append((got.hi - got.lo) / (exact.hi - exact.lo))
    assert np.mean(ratio["expanded"]) == pytest.approx(1, abs=0.1)
    assert np.mean(ratio["percentile"]) < 0.85  # what the expansion is for


@pytest.mark.parametrize("shape", [(1, 5), (12, 1)])
def test_of_one_source_percentiles_are_expanded_by_student_s_t_and_the_narrowness(shape):
    y = np.random.default_rng(0).normal(size=shape)
    n = y.size
    tail = stats.norm.sf(stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1)))
    plain = crossed_bootstrap(
        y, np.mean, np.random.default_rng(1), method="percentile", level=1 - 2 * tail
    )
    expanded = crossed_bootstrap(y, np.mean, np.random.default_rng(1))
    assert ends(expanded) == pytest.approx(ends(plain))


def test_patients_are_drawn_with_all_their_cases():
    y = np.arange(12.0).reshape(6, 2)
    groups = np.array(["b", "a", "b", "c", "a", "b"])
    seen = []

    def spy(resample):
        seen.append(np.sort(resample[:, 0]))
        return resample.mean()

    crossed_bootstrap(y, spy, np.random.default_rng(0), groups=groups, draws=50)
    patients = [{0.0, 4.0, 10.0}, {2.0, 8.0}, {6.0}]
    patients += [{value + 1 for value in patient} for patient in patients]
    for drawn in seen:
        values, times = np.unique(drawn, return_counts=True)
        for patient in patients:
            together = {int(t) for v, t in zip(values, times, strict=True) if v in patient}
            assert len(together) <= 1
            assert len(patient & set(values)) in (0, len(patient))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_copies_of_a_patients_cases_add_no_certainty(seed):
    y = np.random.default_rng(seed).normal(size=25)
    once = bootstrap(y, np.mean, np.random.default_rng(1), draws=300)
    copied = bootstrap(
        np.repeat(y, 3), np.mean, np.random.default_rng(1), groups=np.repeat(np.arange(25), 3),
        draws=300,
    )  # fmt: skip
    assert ends(copied) == pytest.approx(ends(once))
    assert copied.se == pytest.approx(once.se)


@METHODS
def test_a_statistic_of_targets_and_scores(method):
    rng = np.random.default_rng(0)
    target = (np.arange(80) < 30).astype(float)
    scores = rng.normal(size=(80, 3)) + target[:, None]
    pairs = np.stack([np.repeat(target[:, None], 3, axis=1), scores], axis=2)

    def mean_precision(drawn):
        return np.mean([average_precision_score(*drawn[:, k].T) for k in range(drawn.shape[1])])

    found = crossed_bootstrap(pairs, mean_precision, rng, draws=200, method=method)
    want = np.mean([average_precision_score(target, s) for s in scores.T])
    assert found.estimate == pytest.approx(want)
    assert found.over == "cases and seeds"
    assert 0 < found.lo < found.estimate < found.hi < 1


def test_draws_without_a_value_are_left_out_and_counted():
    rng = np.random.default_rng(0)
    target = (np.arange(20) < 2).astype(float)

    def area(drawn):
        return roc_auc_score(*drawn.T) if len(set(drawn[:, 0])) == 2 else np.nan

    found = bootstrap(np.column_stack([target, rng.random(20)]), area, rng, draws=400)
    # neither positive is in a draw with probability 0.9 ** 20
    assert found.defined == pytest.approx(400 * (1 - 0.9**20), abs=25)
    assert found.lo < found.estimate < found.hi


@METHODS
def test_what_does_not_vary_has_no_width(method):
    found = crossed_bootstrap(
        np.full((9, 3), 0.4), np.mean, np.random.default_rng(0), draws=50, method=method
    )
    assert (found.estimate, found.lo, found.hi) == pytest.approx((0.4, 0.4, 0.4))


@METHODS
def test_one_seed_one_case_one_value_none(method):
    def over(shape, fill=None):
        rng = np.random.default_rng(0)
        values = rng.normal(size=shape) if fill is None else np.full(shape, fill)
        found = crossed_bootstrap(values, np.mean, rng, draws=50, method=method)
        assert np.isfinite(found.lo) == (found.over != "nothing")
        return found.over

    assert over((8, 1)) == "cases"
    assert over((1, 8)) == "seeds"
    assert over((8, 2)) == "cases and seeds"
    assert over((1, 1)) == over((0, 3)) == "nothing"
    assert over((5, 2), np.nan) == "nothing"


def test_coverage_where_the_seeds_dominate():
    """Nominal 95 %, a mean over 60 cases and 5 seeds that differ much, 150 times."""
    rng = np.random.default_rng(11)
    covered = {"expanded": [], "percentile": []}
    for _ in range(150):
        y = table(rng, 60, 5, case=0.3, seed=1.0, error=0.3)
        for method, found in covered.items():
            got = crossed_bootstrap(y, np.mean, rng, method=method, draws=400)
            found.append(got.lo <= 0 <= got.hi)
    assert np.mean(covered["expanded"]) >= 0.90
    assert np.mean(covered["percentile"]) <= 0.91

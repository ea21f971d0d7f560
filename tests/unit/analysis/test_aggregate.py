"""Interquartile mean and probability of improvement, with stratified bootstraps."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rliable import metrics
from scipy import stats

from medtransfer.analysis.statistics.aggregate import iqm, probability_of_improvement

SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 6))


def draw(seed, shape, decimals=8):
    return np.round(np.random.default_rng(seed).normal(size=shape), decimals)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=SHAPES, decimals=st.sampled_from([0, 8]))
def test_the_interquartile_mean_equals_the_oracle(seed, shape, decimals):
    scores = draw(seed, shape, decimals)
    found = iqm(scores, np.random.default_rng(0), draws=10)
    assert found.estimate == pytest.approx(metrics.aggregate_iqm(scores.T))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=SHAPES,
    others=st.integers(1, 6),
    decimals=st.sampled_from([0, 8]),
)
def test_the_probability_of_improvement_equals_the_oracle(seed, shape, others, decimals):
    a, b = draw(seed, shape, decimals), draw(seed + 1, (shape[0], others), decimals)
    found = probability_of_improvement(a, b, np.random.default_rng(0), draws=10)
    assert found.estimate == pytest.approx(metrics.probability_of_improvement(a.T, b.T))


def test_a_quarter_is_cut_at_each_end_rounded_down():
    rng = np.random.default_rng(0)
    assert iqm([[1, 2, 30]], rng).estimate == 11
    assert iqm([[-50, 1, 2, 30]], rng).estimate == 1.5
    assert iqm([[-50, 1, 2, 3, 90]], rng).estimate == 2
    assert iqm([[-50, 1], [2, 30]], rng).estimate == 1.5


def test_the_interval_is_that_of_all_resamples_within_datasets():
    scores = draw(3, (2, 3))
    seeds = list(itertools.product(range(3), repeat=3))
    every = [
        stats.trim_mean(np.concatenate([scores[0][list(i)], scores[1][list(j)]]), 0.25)
        for i in seeds
        for j in seeds
    ]
    found = iqm(scores, np.random.default_rng(0), draws=60_000)
    assert (found.lo, found.hi) == pytest.approx(np.quantile(every, [0.025, 0.975]), abs=0.02)
    assert found.se == pytest.approx(np.std(every), rel=0.02)


def test_resampled_improvement_equals_the_oracle_on_all_resamples():
    a, b = np.array([[1.0, 3.0], [1.0, 3.0]]), np.array([[2.0, 0.0], [2.0, 4.0]])
    seeds = list(itertools.product(range(2), repeat=2))
    every = [
        metrics.probability_of_improvement(
            np.array([a[0][list(i)], a[1][list(j)]]).T, np.array([b[0][list(k)], b[1][list(m)]]).T
        )
        for i, j, k, m in itertools.product(seeds, repeat=4)
    ]
    found = probability_of_improvement(a, b, np.random.default_rng(0), draws=60_000, level=0.8)
    for end, share in ((found.lo, 0.1), (found.hi, 0.9)):
        assert np.mean(np.less(every, end - 1e-9)) - 0.01 <= share
        assert share <= np.mean(np.less(every, end + 1e-9)) + 0.01
    assert found.se == pytest.approx(np.std(every), rel=0.02)


def test_equal_generators_give_equal_intervals_and_others_do_not():
    a, b = draw(0, (4, 5)), draw(1, (4, 5))
    for interval in (lambda rng: iqm(a, rng), lambda rng: probability_of_improvement(a, b, rng)):
        first, second, other = (interval(np.random.default_rng(k)) for k in (1, 1, 2))
        assert first == second
        assert (first.lo, first.hi, first.se) != (other.lo, other.hi, other.se)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_improvement_mirrors_and_is_half_between_equals(seed):
    a, b = draw(seed, (3, 4), 1), draw(seed + 1, (3, 5), 1)
    there, back, same = (
        probability_of_improvement(x, y, np.random.default_rng(0), draws=50).estimate
        for x, y in ((a, b), (b, a), (a, a))
    )
    assert there + back == pytest.approx(1)
    assert same == 0.5


def test_certain_improvement_and_constant_scores():
    rng = np.random.default_rng(0)
    sure = probability_of_improvement(np.ones((3, 5)), np.zeros((3, 4)), rng)
    assert (sure.estimate, sure.lo, sure.hi) == pytest.approx((1, 1, 1))
    flat = iqm(np.full((3, 5), 0.7), rng)
    assert (flat.estimate, flat.lo, flat.hi) == pytest.approx((0.7, 0.7, 0.7))


def test_a_missing_score_is_not_left_out():
    scores = draw(0, (4, 5))
    holed = scores.copy()
    holed[1, 2] = np.nan
    rng = np.random.default_rng(0)
    for found in (
        iqm(holed, rng),
        probability_of_improvement(holed, scores, rng),
        probability_of_improvement(scores, holed, rng),
        iqm(np.empty((0, 3)), rng),
    ):
        assert np.isnan([found.estimate, found.lo, found.hi]).all()


def test_one_seed_has_no_interval():
    rng = np.random.default_rng(0)
    one = draw(0, (4, 1))
    for found in (iqm(one, rng), probability_of_improvement(one, one - 1, rng)):
        assert np.isfinite(found.estimate)
        assert np.isnan([found.lo, found.hi]).all()
        assert found.over == "nothing"
    against_many = probability_of_improvement(one, draw(1, (4, 5)), rng)
    assert against_many.lo < against_many.hi


def test_other_datasets_are_refused():
    with pytest.raises(ValueError, match="3 and on 1 datasets"):
        probability_of_improvement(np.ones((3, 2)), np.ones((1, 2)), np.random.default_rng(0))


def test_coverage_of_a_known_mean():
    """Symmetric scores: the interquartile mean is the centre; 8 datasets, 10 seeds."""
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(300):
        found = iqm(0.8 + 0.05 * rng.normal(size=(8, 10)), rng, draws=400)
        covered.append(found.lo <= 0.8 <= found.hi)
    assert 0.90 <= np.mean(covered) <= 0.98

"""Two one-sided tests and posterior shares of the region of practical equivalence."""

import baycomp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.weightstats import ttost_paired

from medtransfer.analysis.statistics.equivalence import (
    rope_probabilities,
    signed_rank_probabilities,
    tost,
)
from medtransfer.analysis.statistics.intervals import two_way_interval
from medtransfer.analysis.statistics.paired_tests import corrected_resampled_t

seeds_of_rng = st.integers(0, 2**32 - 1)


def shares(found):
    return (found.left, found.inside, found.right)


@settings(max_examples=40, deadline=None)
@given(seed=seeds_of_rng, n=st.integers(3, 40), rope=st.floats(0.01, 2))
def test_tost_equals_the_oracle(seed, n, rope):
    a, b = np.random.default_rng(seed).normal(size=(2, n))
    interval = two_way_interval((a - b)[:, None])
    assert tost(interval, rope) == pytest.approx(ttost_paired(a, b, -rope, rope)[0])


@settings(max_examples=40, deadline=None)
@given(seed=seeds_of_rng, rope=st.floats(0.01, 3))
def test_tost_agrees_with_the_interval_of_level_one_minus_two_alpha(seed, rope):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=(20, 1)) + rng.normal(size=(1, 4)) + rng.normal(size=(20, 4))
    inside = two_way_interval(y, level=0.9)
    assert (tost(two_way_interval(y), rope) < 0.05) == (inside.lo > -rope and inside.hi < rope)


def test_tost_without_a_region_or_without_spread():
    interval = two_way_interval(np.random.default_rng(0).normal(size=(20, 3)))
    assert tost(interval, 0) >= 0.5
    assert np.isnan(tost(two_way_interval(np.zeros((20, 3))), 0.1))
    assert np.isnan(tost(two_way_interval([[0.5]]), 0.1))


@settings(max_examples=40, deadline=None)
@given(seed=seeds_of_rng, folds=st.integers(3, 10), runs=st.integers(1, 3), rope=st.floats(0.01, 1))
def test_shares_equal_the_bayesian_correlated_t_test(seed, folds, runs, rope):
    x, y = np.random.default_rng(seed).normal(size=(2, folds * runs))
    want = baycomp.CorrelatedTTest.probs(x, y, rope, runs)
    got = rope_probabilities(corrected_resampled_t(y - x, folds - 1, 1), rope)
    assert shares(got) == pytest.approx(want, abs=1e-12)
    assert sum(shares(got)) == pytest.approx(1)


def test_shares_without_a_region_are_the_two_tails():
    interval = two_way_interval(0.3 + np.random.default_rng(0).normal(size=(20, 1)))
    got = rope_probabilities(interval, 0)
    assert got.inside == pytest.approx(0)
    assert 2 * min(got.left, got.right) == pytest.approx(interval.p)
    assert np.isnan(shares(rope_probabilities(two_way_interval([[0.5]]), 0.1))).all()


@pytest.mark.parametrize("rope", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_signed_rank_shares_equal_the_oracle(seed, rope):
    d = 0.2 + 0.5 * np.random.default_rng(seed).normal(size=9)
    got = signed_rank_probabilities(d, rope, np.random.default_rng(1))
    want = baycomp.SignedRankTest.sample(
        np.zeros(9), d, rope, nsamples=20_000, random_state=seed + 10
    )
    won = np.bincount(want.argmax(axis=1), minlength=3) / len(want)
    assert shares(got) == pytest.approx(won, abs=0.02)  # of two samples of 20,000


def test_signed_rank_shares_of_clear_cases():
    rng = np.random.default_rng(0)
    assert signed_rank_probabilities([0.3] * 8, 0.1, rng).right > 0.99
    assert signed_rank_probabilities([-0.3] * 8, 0.1, rng).left > 0.99
    assert signed_rank_probabilities([0.01] * 8, 0.1, rng).inside == 1
    even = signed_rank_probabilities([0.0] * 8, 0.0, rng)
    assert shares(even) == (0.5, 0, 0.5)


def test_signed_rank_shares_mirror_and_sum_to_one():
    d = np.random.default_rng(3).normal(size=7)
    there = signed_rank_probabilities(d, 0.2, np.random.default_rng(1))
    back = signed_rank_probabilities(-d, 0.2, np.random.default_rng(1))
    assert shares(there) == pytest.approx(shares(back)[::-1])
    assert sum(shares(there)) == pytest.approx(1)


def test_equal_generators_give_equal_shares_and_others_do_not():
    d = 0.2 + 0.5 * np.random.default_rng(3).normal(size=7)
    first, second, other = (
        signed_rank_probabilities(d, 0.2, np.random.default_rng(k)) for k in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_signed_rank_shares_need_differences():
    rng = np.random.default_rng(0)
    for d in ([], [0.1, np.nan]):
        assert np.isnan(shares(signed_rank_probabilities(d, 0.1, rng))).all()

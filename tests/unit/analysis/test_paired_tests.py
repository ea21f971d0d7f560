"""The corrected resampled t-test and flipping signs."""

import baycomp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medtransfer.analysis.statistics.intervals import two_way_interval
from medtransfer.analysis.statistics.paired_tests import corrected_resampled_t, sign_flip


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), folds=st.integers(3, 10), runs=st.integers(1, 4))
def test_the_corrected_t_has_the_oracle_s_posterior(seed, folds, runs):
    x, y = np.random.default_rng(seed).normal(size=(2, folds * runs))
    oracle = baycomp.CorrelatedTTest(x, y, runs=runs)
    got = corrected_resampled_t(y - x, n_train=folds - 1, n_test=1)
    assert (got.estimate, got.df) == (pytest.approx(oracle.mean), oracle.df)
    assert got.se**2 == pytest.approx(oracle.var)
    assert got.p == pytest.approx(2 * min(oracle.probs()))
    want = stats.t.interval(0.95, oracle.df, oracle.mean, np.sqrt(oracle.var))
    assert (got.lo, got.hi) == pytest.approx(want)


def test_without_a_test_set_to_share_it_is_the_paired_t_test():
    d = np.random.default_rng(0).normal(size=9)
    got, want = corrected_resampled_t(d, 100, 0), two_way_interval(d[None])
    for name in ("estimate", "lo", "hi", "p", "df", "se", "over"):
        assert getattr(got, name) == pytest.approx(getattr(want, name))


def test_a_greater_share_of_test_cases_widens_it():
    d = np.random.default_rng(1).normal(size=9)
    widths = [corrected_resampled_t(d, 100, k).se for k in (0, 10, 50, 100)]
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]


def test_the_correction_keeps_the_level_where_splits_share_cases():
    """Differences over splits that correlate by the share of test cases, as is its assumption."""
    rng = np.random.default_rng(2)
    share = 0.25  # n_test / (n_train + n_test)
    naive, corrected = [], []
    for _ in range(1000):
        d = np.sqrt(share) * rng.normal() + np.sqrt(1 - share) * rng.normal(size=10)
        naive.append(stats.ttest_1samp(d, 0).pvalue < 0.05)
        corrected.append(corrected_resampled_t(d, 75, 25).p < 0.05)
    assert np.mean(naive) > 0.2
    assert 0.03 <= np.mean(corrected) <= 0.07


def test_one_split_none_nan_and_no_spread():
    for d in ([0.3], [], [0.1, np.nan, 0.2]):
        got = corrected_resampled_t(d, 10, 5)
        assert got.over == "nothing"
        assert np.isnan([got.lo, got.hi, got.p, got.se]).all()
    assert corrected_resampled_t([0.0, 0.0, 0.0], 10, 5).p == 1
    same = corrected_resampled_t([0.2, 0.2, 0.2], 10, 5)
    assert (same.lo, same.hi, same.p) == (pytest.approx(0.2), pytest.approx(0.2), 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.integers(-3, 3), st.integers(-1000, 1000)), min_size=2, max_size=9))
def test_exact_sign_flipping_equals_the_oracle(differences):
    want = stats.permutation_test(
        (np.array(differences, dtype=float),),
        lambda d, axis: np.abs(d.sum(axis=axis)),
        permutation_type="samples",
        alternative="greater",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    got = sign_flip(differences)
    assert got.exact
    assert got.p == pytest.approx(want)


@pytest.mark.parametrize(("n", "least"), [(3, 0.25), (5, 0.0625), (6, 0.03125), (10, 2**-9)])
def test_the_least_p_that_so_many_differences_can_have(n, least):
    got = sign_flip(1 + np.random.default_rng(n).random(n))
    assert got.p == got.least == least


def test_equal_differences_count_as_equal_in_spite_of_rounding():
    # 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in the last digit
    got = sign_flip([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    assert got.p == 2 / 2**6


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_drawn_signs_agree_with_all_of_them(shift):
    rng = np.random.default_rng(4)
    many = shift + rng.normal(size=21)
    p = sign_flip(many, rng, draws=40_000).p
    # all 2 ** 21, in two halves
    halves = [sign_sums(many[:10]), sign_sums(many[10:])]
    every = np.abs(halves[0][:, None] + halves[1])
    exact = np.mean(every >= abs(many.sum()) - 1e-9)
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 40_000) + 1e-4)


def sign_sums(values):
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(values))).reshape(len(values), -1)
    return values @ signs


def test_equal_generators_draw_equal_p_and_others_do_not():
    d = 0.2 + np.random.default_rng(0).normal(size=30)
    first, second, other = (sign_flip(d, np.random.default_rng(k), 5000) for k in (1, 1, 2))
    assert not first.exact
    assert first == second
    assert first.p != other.p
    assert sign_flip(np.full(30, 1.0), np.random.default_rng(0), 99).p == pytest.approx(0.01)


def test_too_many_differences_need_a_generator():
    with pytest.raises(ValueError, match="21 differences"):
        sign_flip(np.ones(21))
    assert sign_flip(np.ones(20)).p == 2.0**-19


def test_no_difference_and_no_value():
    assert sign_flip([0.0, 0.0, 0.0]).p == 1
    assert np.isnan(sign_flip([]).p)
    assert np.isnan(sign_flip([0.1, np.nan]).p)

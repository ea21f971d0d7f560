"""DeLong's comparison of two areas under the ROC curve."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MLstatkit import Delong_test
from scipy import stats
from sklearn.metrics import roc_auc_score

from medtransfer.analysis.statistics.case_values import case_values
from medtransfer.analysis.statistics.delong import delong


def draw(seed, n=40, *, decimals=6):
    rng = np.random.default_rng(seed)
    target = rng.permutation(np.arange(n) < n // 3).astype(int)
    common = rng.normal(size=n)
    scores = [common + rng.normal(size=n) + shift * target for shift in (1.5, 0.8)]
    return target, *(np.round(s, decimals) for s in scores)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(12, 80), decimals=st.sampled_from([0, 1, 6])
)  # with few decimals scores tie
def test_it_equals_the_oracle(seed, n, decimals):
    target, a, b = draw(seed, n, decimals=decimals)
    got = delong(target, a, b)
    z, p, _, _, area_a, area_b, info = Delong_test(target, a, b, verbose=0)
    assert got.areas == pytest.approx((area_a, area_b))
    assert got.areas == pytest.approx((roc_auc_score(target, a), roc_auc_score(target, b)))
    if info["method"] != "delong":  # no spread: the oracle draws instead
        return
    contrast = np.array([1, -1])
    assert contrast @ got.covariance @ contrast == pytest.approx(info["var_diff"])
    assert got.p == pytest.approx(p)
    half = stats.norm.ppf(0.975) * np.sqrt(info["var_diff"])
    assert (got.lo, got.hi) == pytest.approx((got.difference - half, got.difference + half))
    # the oracle subtracts the other way
    assert got.difference / np.sqrt(info["var_diff"]) == pytest.approx(-z, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_variance_is_that_of_the_difference_of_case_values(seed):
    target, a, b = draw(seed)
    values = [case_values("auroc", target, np.column_stack([-s, s])) for s in (a, b)]
    difference = values[0] - values[1]
    got = delong(target, a, b)
    contrast = np.array([1, -1])
    assert contrast @ got.covariance @ contrast == pytest.approx(difference.var(ddof=1) / 40)
    assert got.difference == pytest.approx(difference.mean())


def test_swapping_the_models_mirrors_and_the_scale_does_not_matter():
    target, a, b = draw(0)
    there, back = delong(target, a, b), delong(target, b, a)
    assert (there.lo, there.hi) == pytest.approx((-back.hi, -back.lo))
    assert there.p == pytest.approx(back.p)
    stretched = delong(target, np.exp(a), 3 * b - 7)
    assert (stretched.lo, stretched.hi) == pytest.approx((there.lo, there.hi))


def test_models_that_order_alike_do_not_differ():
    target, a, _ = draw(1)
    same = delong(target, a, 2 * a)
    assert (same.difference, same.lo, same.hi, same.p) == (0, 0, 0, 1)


def test_a_perfect_model_against_a_constant_one():
    # neither varies: the difference has no width
    target = np.repeat([0, 1], 10)
    got = delong(target, target, np.zeros(20))
    assert got.areas == (1, 0.5)
    assert (got.lo, got.hi, got.p) == (0.5, 0.5, 0)


@pytest.mark.parametrize(
    ("target", "score"),
    [([1, 1, 1], [0.1, 0.2, 0.3]), ([], []), ([0, 1, 1], [0.1, float("nan"), 0.3])],
)
def test_what_is_undefined_is_nan(target, score):
    got = delong(target, score, score)
    assert np.isnan([*got.areas, got.difference, got.lo, got.hi, got.p]).all()
    assert np.isnan(got.covariance).all()


def test_false_positives_of_two_equal_models():
    rejected = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        target = np.repeat([0, 1], 40)
        common = rng.normal(size=80) + target
        a, b = (common + 0.7 * rng.normal(size=80) for _ in range(2))
        rejected.append(delong(target, a, b).p < 0.05)
    assert 0.02 <= np.mean(rejected) <= 0.085

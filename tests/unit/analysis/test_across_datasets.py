"""Arms over datasets: ranks, Friedman, Nemenyi, Wilcoxon against a baseline."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medtransfer.analysis.statistics.across import (
    across_datasets,
    critical_difference,
    friedman,
    signed_rank,
)
from medtransfer.analysis.statistics.verdicts import holm
from medtransfer.errors import ConfigError

ARMS = ["fe", "ft", "lp_ft", "scratch"]


def table(seed, datasets=10, arms=4, *, decimals=8):
    rng = np.random.default_rng(seed)
    scores = 0.7 + 0.1 * rng.normal(size=(datasets, 1)) + 0.02 * np.arange(arms)
    return np.round(scores + 0.03 * rng.normal(size=(datasets, arms)), decimals)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lower_is_better", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_ranks_friedman_and_critical_difference_equal_the_oracle(seed, lower_is_better):
    from autorank import autorank

    scores = table(seed, datasets=7 + seed, decimals=2 if seed % 2 else 8)
    oracle = autorank(
        pd.DataFrame(scores, columns=ARMS),
        force_mode="nonparametric",
        order="ascending" if lower_is_better else "descending",
    )
    got = across_datasets(scores, ARMS, "fe", lower_is_better=lower_is_better)
    assert got.rank == pytest.approx(oracle.rankdf["meanrank"].loc[ARMS].to_numpy())
    assert got.friedman == pytest.approx(oracle.pvalue)
    assert got.critical_difference == pytest.approx(oracle.cd, rel=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_critical_difference_is_where_nemenyi_s_p_is_alpha(seed):
    from scikit_posthocs import posthoc_nemenyi_friedman

    scores = table(seed, datasets=9)
    got = across_datasets(scores, ARMS, "fe")
    p = posthoc_nemenyi_friedman(scores).to_numpy()
    for i, j in itertools.combinations(range(4), 2):
        apart = abs(got.rank[i] - got.rank[j])
        assert (apart > got.critical_difference) == (p[i, j] < 0.05)


def test_demsar_s_table_of_critical_values():
    # q at 0.05, infinite degrees of freedom, divided by sqrt(2): Demsar 2006, table 5a
    for arms, q in [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)]:
        want = q * np.sqrt(arms * (arms + 1) / (6 * 12))
        assert critical_difference(arms, 12) == pytest.approx(want, rel=5e-4)
    assert critical_difference(10, 12) == pytest.approx(3.9, abs=0.05)


def naive_signed_rank(differences):
    """All signs of midranks; zeros are split over both sides and keep their ranks."""
    d = np.asarray(differences)
    ranks = stats.rankdata(np.abs(d))
    moving = ranks[d != 0]
    fixed = ranks[d == 0].sum() / 2
    observed = ranks[d > 0].sum() + fixed
    sums = [
        fixed + sum(r for r, s in zip(moving, signs, strict=True) if s)
        for signs in itertools.product([0, 1], repeat=len(moving))
    ]
    middle = ranks.sum() / 2
    return np.mean([abs(s - middle) >= abs(observed - middle) - 1e-9 for s in sums])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-500, 500), min_size=1, max_size=9, unique_by=abs))
def test_signed_rank_equals_all_signs_of_ranks(differences):
    differences = [d for d in differences if d] or [1]
    assert signed_rank(differences) == pytest.approx(naive_signed_rank(differences))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=7))
def test_ties_and_datasets_without_a_difference_are_exact_too(differences):
    assert signed_rank(differences) == pytest.approx(naive_signed_rank(differences))


def test_datasets_without_a_difference_do_not_speak_for_one():
    assert signed_rank([1, 2, 3, 4, 5, 6]) == 2 / 2**6
    assert signed_rank([1, 2, 3, 4, 5, 6, 0, 0, 0, 0]) >= 2 / 2**6
    assert signed_rank(np.zeros(6)) == 1
    assert np.isnan(signed_rank([]))
    assert np.isnan(signed_rank([0.1, np.nan]))


def test_against_the_baseline_with_holm():
    scores = table(0, datasets=12)
    got = across_datasets(scores, ARMS, "ft")
    raw = [
        stats.wilcoxon(scores[:, k] - scores[:, 1]).pvalue if k != 1 else np.nan for k in range(4)
    ]
    assert got.p == pytest.approx(raw, nan_ok=True)
    assert got.p_adj == pytest.approx(holm(raw), nan_ok=True)
    assert np.isnan(got.p_adj[1])
    assert got.difference == pytest.approx((scores - scores[:, [1]]).mean(axis=0))
    assert got.difference[1] == 0


def test_direction_turns_ranks_but_no_p():
    scores = table(1)
    up, down = (across_datasets(scores, ARMS, "fe", lower_is_better=x) for x in (False, True))
    assert up.rank + down.rank == pytest.approx(np.full(4, 5.0))
    assert up.rank.argmin() == scores.mean(axis=0).argmax()
    assert up.p == pytest.approx(down.p, nan_ok=True)
    assert up.difference == pytest.approx(down.difference)


def test_a_dataset_that_an_arm_lacks_counts_for_none():
    scores = table(2, datasets=8)
    holed = np.vstack([scores, [0.1, np.nan, 0.9, 0.9]])
    got, want = across_datasets(holed, ARMS, "fe"), across_datasets(scores, ARMS, "fe")
    assert got.complete.tolist() == [True] * 8 + [False]
    assert got.rank == pytest.approx(want.rank)
    assert got.p_adj == pytest.approx(want.p_adj, nan_ok=True)
    assert (got.friedman, got.critical_difference) == (want.friedman, want.critical_difference)


def test_too_few_and_ties():
    two = across_datasets(table(0, arms=2), ARMS[:2], "fe")
    assert np.isnan(two.friedman)
    assert np.isfinite(two.p[1])
    one = across_datasets(table(0, datasets=1), ARMS, "fe")
    assert np.isnan([one.friedman, one.critical_difference]).all()
    assert one.rank == pytest.approx(np.argsort(np.argsort(-table(0, datasets=1)[0])) + 1)
    none = across_datasets(np.full((3, 4), np.nan), ARMS, "fe")
    assert np.isnan([*none.rank, *none.p, none.friedman]).all()
    tied = across_datasets(np.full((5, 4), 0.5), ARMS, "fe")
    assert tied.rank == pytest.approx(np.full(4, 2.5))
    assert (tied.friedman, tied.p_adj[1]) == (1, 1)
    assert np.isnan(friedman(np.ones((1, 3))))


def test_an_unknown_baseline_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match="did you mean 'lp_ft'"):
        across_datasets(table(0), ARMS, "lp-ft")


def test_false_positives_of_equal_arms():
    rng = np.random.default_rng(0)
    found = [across_datasets(rng.normal(size=(12, 3)), ARMS[:3], "fe") for _ in range(300)]
    assert np.mean([got.friedman < 0.05 for got in found]) <= 0.08
    assert np.mean([np.nanmin(got.p_adj) < 0.05 for got in found]) <= 0.08

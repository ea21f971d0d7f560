"""Subgroups: the study's metric anew on the cases that share a value."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from simulated import predictions, study
from sklearn.metrics import roc_auc_score

from medtransfer.analysis.cases import values_of
from medtransfer.analysis.details.subgroups import subgroups
from medtransfer.analysis.statistics.intervals import two_way_interval, within_bounds

SITES = ("north", "south", "west")


def made(columns, *, seeds=range(3), arms=("a",), n=120, metric="auroc"):
    """Return trials and frames whose cases s0000, s0001, ... have these columns."""
    trials, frames = {}, {}
    for skill, arm in enumerate(arms, 1):
        trials[arm] = study({arm: skill}, seeds, n=n, metric=metric).trials
        for trial in trials[arm]:
            frame = predictions(skill, trial.seed, n=n).sort_values("sample_id")
            frames[trial.run_id] = frame.assign(**columns).reset_index(drop=True)
    return trials, frames


def sites(n=120):
    return {"attribute_site": [SITES[i % 3] for i in range(n)]}


def of_site(frame, row):
    return frame[frame["attribute_site"] == row.value]


def test_a_row_has_the_mean_and_interval_of_the_metric_within_the_subgroup():
    trials, frames = made(sites(), arms=("a", "b"))
    rows = subgroups(trials, frames, "auroc")
    assert [(row.value, row.arm) for row in rows] == [(s, a) for s in SITES for a in "ab"]
    for row in rows:
        parts = [of_site(frames[t.run_id], row) for t in trials[row.arm]]
        areas = [roc_auc_score(part["target"], part["score_malignant"]) for part in parts]
        interval = two_way_interval(np.column_stack([values_of(p, "auroc") for p in parts]))
        assert (row.column, row.n_cases) == ("site", 40)
        assert row.mean == pytest.approx(np.mean(areas))
        assert (row.lo, row.hi) == pytest.approx(within_bounds(interval, "auroc"))


def test_the_order_of_rows_and_arms_changes_nothing():
    trials, frames = made(sites(), arms=("a", "b"))
    shuffled = {run: frame.sample(frac=1, random_state=3) for run, frame in frames.items()}
    backwards = dict(reversed(trials.items()))
    rows = set(subgroups(trials, frames, "auroc"))
    assert set(subgroups(backwards, shuffled, "auroc")) == rows


def test_few_cases_and_cases_of_one_class_have_a_count_only():
    few = ["few"] * 9 + ["more"] * 111
    trials, frames = made({"attribute_x": few})
    first, second = subgroups(trials, frames, "auroc")
    assert (first.value, first.n_cases, first.mean, first.lo) == ("few", 9, None, None)
    assert (second.value, second.n_cases) == ("more", 111)
    assert second.mean is not None
    trials, frames = made({})
    frames = {
        run: frame.assign(attribute_x=np.where(frame["target"] == 1, "sick", "well"))
        for run, frame in frames.items()
    }
    assert [row.mean for row in subgroups(trials, frames, "accuracy")] == [None, None]


def test_rare_values_stand_together():
    names = [f"v{i}" for i in range(7) for _ in range(14)] + [f"rare{i}" for i in range(22)]
    trials, frames = made({"attribute_x": names})
    rows = subgroups(trials, frames, "auroc")
    assert [row.value for row in rows] == [*(f"v{i}" for i in range(7)), "other"]
    assert rows[-1].n_cases == 22


def test_numbers_of_many_values_are_cut_into_thirds_and_of_few_are_kept_in_order():
    age = [str(20 + i) for i in range(120)]
    year = [str(9 + i % 3) for i in range(120)]
    trials, frames = made({"attribute_age": age, "attribute_year": year})
    rows = subgroups(trials, frames, "auroc")
    assert [row.n_cases for row in rows] == [40] * 6
    assert [row.value for row in rows[:3]] == ["20 to 59", "60 to 99", "100 to 139"]
    assert [row.value for row in rows[3:]] == ["9", "10", "11"]


def test_cases_of_unknown_value_are_in_no_subgroup():
    names = ["x", "y"] * 50 + [""] * 10 + [None] * 10
    trials, frames = made({"attribute_site": names, "attribute_same": "z"})
    assert [(row.value, row.n_cases) for row in subgroups(trials, frames, "auroc")] == [
        ("x", 50),
        ("y", 50),
    ]


def test_trials_of_different_splits_are_not_crossed():
    trials, frames = made(sites())
    of_splits = {"a": [replace(t, split_hash=str(t.seed)) for t in trials["a"]]}
    kept = {
        run: frame.iloc[40 * place :] if place else frame.iloc[:80]
        for place, (run, frame) in enumerate(frames.items())
    }
    for row in subgroups(of_splits, kept, "auroc"):
        parts = [of_site(f, row) for f in kept.values()]
        areas = [roc_auc_score(part["target"], part["score_malignant"]) for part in parts]
        assert row.n_cases == min(map(len, parts))
        assert row.mean == pytest.approx(np.mean(areas))
        assert row.lo < row.mean < row.hi


def test_a_metric_of_images_is_averaged_over_those_of_the_subgroup():
    trials, frames = made(sites(60), metric="accuracy", n=60)
    rng = np.random.default_rng(0)
    dense = {
        run: frame[["sample_id", "group_id", "attribute_site"]].assign(dice=rng.random(60))
        for run, frame in frames.items()
    }
    for row in subgroups(trials, dense, "dice"):
        values = of_site(pd.concat(list(dense.values())), row)["dice"]
        assert row.mean == pytest.approx(values.mean())


def test_without_columns_or_values_of_cases_there_are_none():
    assert subgroups(*made({}), "auroc") == ()
    assert subgroups(*made(sites()), "f1") == ()

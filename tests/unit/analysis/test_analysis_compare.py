"""Arms and contrasts of studies in memory."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import FE, FT, changed, of_test, predictions, stored, study

from medtransfer.analysis.cases import Cases, case_frame, values_of
from medtransfer.analysis.compare import compare, difference, paired_seeds
from medtransfer.analysis.grid import cells
from medtransfer.analysis.statistics.intervals import two_way_interval
from medtransfer.analysis.statistics.paired_tests import corrected_resampled_t
from medtransfer.analysis.statistics.verdicts import holm


def test_an_arm_is_its_mean_over_cases_and_seeds():
    made = study({FE: 1.0, FT: 2.0})
    comparison = compare(made)
    assert [row.arm for row in comparison.arms] == [FT, FE]
    logged = [t.metrics["auroc"] for t in made.trials if t.arm == FE]
    row = comparison.arms[1]
    assert row.mean == pytest.approx(np.mean(logged))
    assert (row.n_seeds, row.n_cases, row.n_groups, row.failed) == (3, 120, 120, 0)
    assert row.lo < row.mean < row.hi
    assert (row.over, row.cost) == ("cases and seeds", {"train_seconds": 10.0})
    assert comparison.notes == ()


def test_a_contrast_pairs_cases_and_seeds():
    made = study({FE: 1.0, FT: 2.0})
    (contrast,) = compare(made).contrasts
    values = {t.run_id: values_of(case_frame(made, t).sort_index(), "auroc") for t in made.trials}
    columns = [values[f"{FT}-[]-{s}"] - values[f"{FE}-[]-{s}"] for s in range(3)]
    expected = two_way_interval(np.column_stack(columns))
    assert (contrast.a, contrast.b) == (FT, FE)
    assert contrast.diff == pytest.approx(expected.estimate)
    assert (contrast.lo, contrast.hi) == (pytest.approx(expected.lo), pytest.approx(expected.hi))
    assert contrast.p_adj == pytest.approx(expected.p)
    assert (contrast.verdict, contrast.provisional) == ("better", True)
    assert (contrast.n_cases, contrast.n_seeds) == (120, 3)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), k=st.integers(2, 4))
def test_swapping_arms_mirrors_and_the_order_of_rows_and_trials_does_not_matter(seed, k):
    rng = np.random.default_rng(seed)
    made = study({FE: 1.0, FT: 1.4}, k=k, n=60)
    ((a, b),) = cells(made)
    there = difference(a, b, paired_seeds(a, b), Cases.of(made)).interval()
    back = difference(b, a, paired_seeds(b, a), Cases.of(made)).interval()
    assert (there.estimate, there.lo, there.hi) == (-back.estimate, -back.hi, -back.lo)
    assert there.p == back.p
    order = [made.trials[i] for i in rng.permutation(len(made.trials))]
    shuffled = replace(
        made,
        trials=tuple(order),
        predictions=of_test(lambda run: made.predictions(run).sample(frac=1, random_state=rng)),
    )
    assert compare(shuffled) == compare(made)


def test_the_verdict_knows_that_less_brier_is_better():
    comparison = compare(study({FE: 1.0, FT: 2.5}, metric="brier"))
    assert [row.arm for row in comparison.arms] == [FT, FE]
    (contrast,) = comparison.contrasts
    assert contrast.diff < 0
    assert contrast.verdict == "better"


def test_five_seeds_are_not_provisional_and_a_wide_rope_makes_arms_equivalent():
    comparison = compare(study({FE: 1.0, FT: 1.1}, range(5), rope=0.2))
    (contrast,) = comparison.contrasts
    assert (contrast.verdict, contrast.provisional) == ("equivalent", False)


def test_p_values_are_corrected_over_all_settings():
    axes = [{"dataset.fraction": value} for value in ("1", "0.25", "0.1")]
    one = compare(study({FE: 1.0, FT: 1.3}, axes=axes[:1])).contrasts[0]
    three = compare(study({FE: 1.0, FT: 1.3}, axes=axes)).contrasts
    assert [c.axes["dataset.fraction"] for c in three] == ["0.1", "0.25", "1"]
    assert one.p_adj < 0.3
    assert [c.p_adj for c in three] == pytest.approx([3 * one.p_adj] * 3)


def test_missing_and_failed_seeds_are_said_and_left_out_of_the_pair():
    def end(trial):
        if (trial.arm, trial.seed) == (FT, 1):
            return {"status": "FAILED", "metrics": {}}
        if (trial.arm, trial.seed) == (FE, 2):
            return {"status": "RUNNING", "metrics": {}}
        return None

    made = changed(study({FE: 1.0, FT: 2.0}, range(4)), end)
    made = replace(made, trials=made.trials[:-1])
    comparison = compare(made)
    assert comparison.contrasts[0].n_seeds == 1
    assert {row.arm: (row.n_seeds, row.failed) for row in comparison.arms} == {
        FE: (3, 0),
        FT: (2, 1),
    }
    assert comparison.notes == (
        f"{FE}: seed 2 is still running",
        f"{FT}: seed 1 failed, seed 3 is missing",
    )


def test_arms_without_a_common_seed_are_not_compared():
    made = study({FE: 1.0, FT: 2.0})
    keep = tuple(t for t in made.trials if (t.seed == 0) == (t.arm == FE))
    comparison = compare(replace(made, trials=keep))
    assert comparison.contrasts == ()
    assert f"{FE} and {FT} share no finished seed: not compared" in comparison.notes


def test_an_arm_that_never_finished_stays_in_the_table():
    made = changed(
        study({FE: 1.0, FT: 2.0}),
        lambda t: {"status": "KILLED", "metrics": {}} if t.arm == FT else None,
    )
    comparison = compare(made)
    assert comparison.contrasts == ()
    last = comparison.arms[-1]
    assert (last.arm, last.n_seeds, last.mean, last.lo, last.failed) == (FT, 0, None, None, 3)


@pytest.mark.parametrize("split", ["other", None])
def test_only_equal_splits_are_paired(split):
    made = changed(
        study({FE: 1.0, FT: 2.0}), lambda t: {"split_hash": split} if t.arm == FT else None
    )
    comparison = compare(made)
    assert comparison.contrasts == ()
    assert comparison.notes == (
        f"{FE} and {FT} were tested on different splits (split_hash) at seed 0, 1, 2: "
        "not paired there",
    )


def test_a_split_of_its_own_for_each_seed_leaves_intervals_over_seeds():
    made = changed(study({FE: 1.0, FT: 2.0}), lambda t: {"split_hash": f"h{t.seed}"})
    comparison = compare(made)
    assert comparison.contrasts[0].n_seeds == 3
    assert {row.over for row in (*comparison.arms, *comparison.contrasts)} == {"seeds"}
    assert "intervals over seeds alone for every arm" in comparison.notes[0]


def test_repeated_splits_share_training_cases_and_so_their_interval_is_wider():
    made = changed(study({FE: 1.0, FT: 2.0}, range(6)), lambda t: {"split_hash": f"h{t.seed}"})
    known = changed(made, lambda _: {"tags": {"medtransfer.n_train": "240"}})
    (plain,), (corrected,) = compare(made).contrasts, compare(known).contrasts
    by_seed = {(t.arm, t.seed): t.metrics["auroc"] for t in made.trials}
    differences = [by_seed[FT, seed] - by_seed[FE, seed] for seed in range(6)]
    expected = corrected_resampled_t(differences, 240, 120)
    assert (corrected.lo, corrected.hi) == pytest.approx((expected.lo, expected.hi))
    assert corrected.hi - corrected.lo > 1.5 * (plain.hi - plain.lo)
    assert corrected.diff == pytest.approx(plain.diff)


def test_without_predictions_the_seeds_remain():
    made = replace(study({FE: 1.0, FT: 2.0}), predictions=stored({}))
    (contrast,) = compare(made).contrasts
    by_seed = {(t.arm, t.seed): t.metrics["auroc"] for t in made.trials}
    expected = [by_seed[FT, s] - by_seed[FE, s] for s in range(3)]
    assert contrast.diff == pytest.approx(np.mean(expected))
    assert (contrast.n_cases, contrast.n_groups, contrast.over) == (0, 0, "seeds")


def test_a_column_named_like_the_metric_holds_values_per_case():
    plain = study({FE: 1.0, FT: 2.0})

    def segmented(run):
        frame = plain.predictions(run)[["sample_id", "group_id"]]
        dice = np.where(frame["sample_id"] == "s0007", np.nan, 0.5 + 0.2 * run.startswith("fine"))
        return frame.assign(dice=dice)

    made = replace(plain, metric="dice", predictions=of_test(segmented))
    made = changed(made, lambda t: {"metrics": {"dice": 0.5 + 0.2 * (t.arm == FT)}})
    comparison = compare(made)
    (contrast,) = comparison.contrasts
    assert (contrast.n_cases, contrast.diff) == (119, pytest.approx(0.2))
    assert any("compared on 119 of 120 cases" in note for note in comparison.notes)
    assert any("interval has no width" in note for note in comparison.notes)


def test_only_common_cases_with_equal_targets_count():
    made = study({FE: 1.0, FT: 2.0})

    def relabelled(run):
        frame = made.predictions(run).copy()
        if run.startswith("fine"):
            frame.loc[frame["sample_id"] == "s0003", "target"] ^= 1
            frame = frame[frame["sample_id"] != "s0010"]
        return frame

    comparison = compare(replace(made, predictions=of_test(relabelled)))
    assert comparison.contrasts[0].n_cases == 118
    assert {row.arm: row.n_cases for row in comparison.arms} == {FE: 120, FT: 119}


def test_repeated_cases_count_once_and_an_exam_stands_in_for_its_samples():
    made = study({FE: 1.0, FT: 2.0})
    exams = replace(
        made,
        predictions=of_test(
            lambda run: made.predictions(run).assign(
                exam_id=lambda f: f["sample_id"], sample_id=None, group_id=None
            )
        ),
    )
    padded = replace(
        made,
        predictions=of_test(lambda run: pd.concat([f := made.predictions(run), f.head(4)])),
    )
    assert compare(exams).contrasts == compare(padded).contrasts == compare(made).contrasts


def test_patients_widen_the_interval_of_their_images():
    def width(per_patient):
        row = compare(study({FE: 1.0}, n=240, per_patient=per_patient)).arms[0]
        assert row.n_groups == 240 // per_patient
        return row.hi - row.lo

    assert width(1) != width(4)


def test_a_logged_metric_that_differs_from_the_predictions_is_said():
    made = changed(study({FE: 1.0, FT: 2.0}), lambda _: {"metrics": {"auroc": 0.123}})
    notes = compare(made).notes
    assert len(notes) == 6
    assert "logged test/auroc 0.1230" in notes[0]


def test_rare_classes_are_said():
    notes = compare(study({FE: 2.0}, n=24, k=3)).notes
    assert notes
    assert all("test cases: intervals of auroc may be too narrow" in note for note in notes)
    assert compare(study({FE: 2.0}, n=24, k=3, metric="accuracy")).notes == ()


def test_an_undefined_metric_is_no_number():
    made = study({FE: 1.0, FT: 2.0}, n=40)
    single = replace(
        made, predictions=of_test(lambda run: made.predictions(run).query("target == 1"))
    )
    comparison = compare(single)
    (contrast,) = comparison.contrasts
    assert (contrast.diff, contrast.lo, contrast.p_adj) == (None, None, None)
    assert contrast.verdict == "undecided"
    assert {row.mean for row in comparison.arms} == {None}


def declared(made, a, b, at=None):
    return replace(made, protocol={"primary": {"a": a, "b": b, "at": at or {}}})


def test_the_declared_contrast_is_tested_as_it_is_and_the_others_are_corrected():
    axes = [{"dataset.fraction": value} for value in ("0.1", "0.5", "1.0")]
    made = study({FE: 1.0, FT: 1.2, "lora": 1.1}, axes=axes)
    plain = compare(made)
    assert plain.primary is None
    assert not any(c.primary for c in plain.contrasts)
    found = compare(declared(made, FE, FT))
    assert [c.primary for c in found.contrasts].count(True) == 1
    primary = found.primary
    assert primary in found.contrasts
    # as it was declared, whoever is ahead; without a setting the last one
    assert (primary.a, primary.b, primary.axes) == (FE, FT, {"dataset.fraction": "1.0"})
    assert primary.p_adj == primary.p
    (same,) = [c for c in plain.contrasts if {c.a, c.b} == {FE, FT} and c.axes == primary.axes]
    assert (primary.diff, primary.lo, primary.hi) == (-same.diff, -same.hi, -same.lo)
    assert primary.p == same.p < same.p_adj
    others = [c for c in found.contrasts if not c.primary]
    assert [c.p_adj for c in others] == list(holm([c.p for c in others]))
    assert holm([c.p for c in plain.contrasts]).tolist() == [c.p_adj for c in plain.contrasts]


@pytest.mark.parametrize("value", ["0.1", 0.1, "0.10"])
def test_the_declared_contrast_is_found_under_its_setting(value):
    axes = [{"dataset.fraction": v} for v in ("0.1", "1")]
    made = declared(study({FE: 1.0, FT: 2.0}, axes=axes), FT, FE, {"dataset.fraction": value})
    assert compare(made).primary.axes == {"dataset.fraction": "0.1"}


@pytest.mark.parametrize(
    ("a", "b", "at", "why"),
    [
        ("x", FT, {}, "no trial is of x"),
        ("x", "y", {}, "no trial is of x or y"),
        (FE, FT, {"dataset.fraction": 0.2}, "no trial is @ dataset.fraction=0.2"),
        (FE, "dead", {}, f"{FE} and dead share no finished seed on the same split"),
    ],
)
def test_a_declared_contrast_that_cannot_be_tested_is_said(a, b, at, why):
    made = changed(
        study({FE: 1.0, FT: 2.0, "dead": 1.0}),
        lambda t: {"status": "FAILED", "metrics": {}} if t.arm == "dead" else None,
    )
    comparison = compare(declared(made, a, b, at))
    assert (comparison.primary, comparison.untested) == (None, why)
    assert f"the primary contrast could not be tested: {why}" in comparison.notes


def test_an_arm_that_lacks_a_seed_is_marked_and_ranks_behind_those_that_have_all():
    made = study({FE: 1.0, FT: 2.5, "lora": 2.0})
    made = replace(made, trials=tuple(t for t in made.trials if (t.arm, t.seed) != (FT, 2)))
    comparison = compare(made)
    assert [(row.arm, row.incomplete) for row in comparison.arms] == [
        ("lora", False),
        (FE, False),
        (FT, True),
    ]
    row = comparison.arms[-1]
    assert row.mean > comparison.arms[0].mean
    assert row.by_seed == {str(t.seed): t.metrics["auroc"] for t in made.trials if t.arm == FT}
    seeds = {frozenset({c.a, c.b}): c.n_seeds for c in comparison.contrasts}
    assert seeds == {
        frozenset({"lora", FE}): 3,
        frozenset({"lora", FT}): 2,
        frozenset({FE, FT}): 2,
    }


def external(made, arms, seeds=range(3)):
    """Give the study predictions of another site, where the arms have other skills."""
    frames = {f"external {t.run_id}": predictions(arms[t.arm], t.seed, n=90) for t in made.trials}
    own = {t.run_id: made.predictions(t.run_id) for t in made.trials}

    def told(trial):
        frame = frames[f"external {trial.run_id}"]
        return {"external": {"auroc": float(values_of(frame, "auroc").mean())}}

    return replace(changed(made, told), predictions=stored(own | frames))


def test_external_data_are_compared_by_their_own_metrics_and_cases():
    made = external(study({FE: 1.0, FT: 2.5}), {FE: 2.5, FT: 1.0})
    (here,) = compare(made).contrasts
    found = compare(declared(made, FE, FT), "external")
    (there,) = found.contrasts
    assert (here.a, here.n_cases) == (FT, 120)
    assert (there.a, there.n_cases, there.verdict) == (FE, 90, "better")
    assert found.primary is None
    assert not found.untested
    expected = compare(study({FE: 2.5, FT: 1.0}, n=90)).contrasts[0]
    assert there.diff == pytest.approx(expected.diff)


def test_a_trial_without_external_data_is_missing_there_alone():
    made = external(study({FE: 1.0, FT: 2.5}), {FE: 2.5, FT: 1.0})
    made = changed(made, lambda t: {"external": {}} if (t.arm, t.seed) == (FE, 1) else None)
    assert compare(made).notes == ()
    assert f"{FE}: seed 1 finished without external/auroc" in compare(made, "external").notes


def test_an_undecided_contrast_says_what_it_would_need_and_a_decided_one_does_not():
    undecided = compare(study({FE: 1.0, FT: 1.3}, range(5), n=60)).contrasts[0]
    assert undecided.verdict == "undecided"
    assert undecided.more_cases > 0
    decided = compare(study({FE: 1.0, FT: 2.5}, range(5))).contrasts[0]
    assert (decided.more_cases, decided.more_seeds) == (None, None)
    seeds = compare(replace(study({FE: 1.0, FT: 1.3}, range(5)), predictions=stored({})))
    assert seeds.contrasts[0].more_cases is None


def test_what_is_needed_grows_with_the_correction():
    axes = [{"dataset.fraction": value} for value in ("0.1", "0.5", "1")]
    made = study({FE: 1.0, FT: 1.3}, range(5), axes=axes, n=60)
    secondary = compare(made).contrasts[-1]
    primary = compare(declared(made, FT, FE)).primary
    assert secondary.diff == primary.diff
    assert secondary.more_cases > primary.more_cases


@pytest.mark.parametrize("metric", ["auroc", "brier", "dice"])
def test_trials_with_other_cases_do_not_change_what_the_rest_share(metric):
    """Arms that share all cases, and one that lacks some, each pair by its own common cases."""
    arms = {FE: 1.0, FT: 2.0, "lora": 1.5}
    whole = study(arms)
    rng = np.random.default_rng(0)
    dice = {t.run_id: rng.random(120) for t in whole.trials}
    for each in dice.values():
        each[rng.integers(0, 120, 15)] = np.nan

    def read(run):
        frame = whole.predictions(run).sort_values("sample_id").assign(dice=dice[run])
        return frame[frame["sample_id"] > "s0019"] if run.startswith("lora") else frame

    made = replace(whole, metric=metric, predictions=of_test(read))
    made = changed(made, lambda _: {"metrics": {metric: 0.5}})
    cases = Cases.of(made)
    frames = {t.run_id: case_frame(made, t).reset_index(drop=True) for t in made.trials}
    for chosen in (made.trials, made.trials[:6], made.trials[3:], made.trials[::2]):
        found = cases.matrix(chosen)
        # by pandas alone, trial by trial
        common = set.intersection(*(set(frames[t.run_id]["sample_id"]) for t in chosen))
        parts = [frames[t.run_id] for t in chosen]
        parts = [part[part["sample_id"].isin(common)] for part in parts]
        columns = [values_of(part.sort_values("sample_id"), metric) for part in parts]
        means = [np.nanmean(column) for column in columns]
        assert found.values.mean(axis=0) == pytest.approx(means)
        kept = np.isfinite(columns).any(axis=0).sum()
        assert (found.n_cases, found.n_groups) == (kept, kept)
        if metric != "dice":
            assert found.values == pytest.approx(np.column_stack(columns))

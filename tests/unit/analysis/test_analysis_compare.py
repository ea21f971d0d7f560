"""Arms and contrasts of studies in memory."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import FE, FT, changed, study

from medtransfer.analysis.cases import case_frame, values_of
from medtransfer.analysis.compare import compare, difference, paired_seeds
from medtransfer.analysis.grid import cells
from medtransfer.analysis.statistics.intervals import two_way_interval


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
    frames = {t.run_id: case_frame(made, t) for t in made.trials}
    ((a, b),) = cells(made)
    there = difference(a, b, paired_seeds(a, b), frames, "auroc").interval()
    back = difference(b, a, paired_seeds(b, a), frames, "auroc").interval()
    assert (there.estimate, there.lo, there.hi) == (-back.estimate, -back.hi, -back.lo)
    assert there.p == back.p
    order = [made.trials[i] for i in rng.permutation(len(made.trials))]
    shuffled = replace(
        made,
        trials=tuple(order),
        predictions=lambda run: made.predictions(run).sample(frac=1, random_state=rng),
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


def test_without_predictions_the_seeds_remain():
    made = replace(study({FE: 1.0, FT: 2.0}), predictions={}.get)
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

    made = replace(plain, metric="dice", predictions=segmented)
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

    comparison = compare(replace(made, predictions=relabelled))
    assert comparison.contrasts[0].n_cases == 118
    assert {row.arm: row.n_cases for row in comparison.arms} == {FE: 120, FT: 119}


def test_repeated_cases_count_once_and_an_exam_stands_in_for_its_samples():
    made = study({FE: 1.0, FT: 2.0})
    exams = replace(
        made,
        predictions=lambda run: made.predictions(run).assign(
            exam_id=lambda f: f["sample_id"], sample_id=None, group_id=None
        ),
    )
    padded = replace(
        made, predictions=lambda run: pd.concat([f := made.predictions(run), f.head(4)])
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
    single = replace(made, predictions=lambda run: made.predictions(run).query("target == 1"))
    comparison = compare(single)
    (contrast,) = comparison.contrasts
    assert (contrast.diff, contrast.lo, contrast.p_adj) == (None, None, None)
    assert contrast.verdict == "undecided"
    assert {row.mean for row in comparison.arms} == {None}

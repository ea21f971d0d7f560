"""What a study spent and tuned, where learning curves cross, and arms over datasets."""

from dataclasses import replace

import numpy as np
import pytest
from simulated import FE, FT, changed, predictions, stored, study

from medtransfer.analysis.cases import Cases, values_of
from medtransfer.analysis.compare import compare
from medtransfer.analysis.datasets import across
from medtransfer.analysis.learning import crossings
from medtransfer.analysis.report.build import build
from medtransfer.analysis.results import Spent
from medtransfer.analysis.spending import spent, splits, tuning
from medtransfer.analysis.statistics.across import across_datasets

AXIS = "dataset.fraction"


def draws(made, arm, scores, settings):
    """Return tuning trials like the study's own: one for each score."""
    like = next(trial for trial in made.trials if trial.arm == arm)
    return tuple(
        replace(
            like,
            run_id=f"draw {number} of {arm}",
            metrics={},
            best={"auroc": score},
            draw=number,
            settings=each,
            cost={"steps": 50.0, "train_seconds": 2.0, "validations": 5.0},
        )
        for number, (score, each) in enumerate(zip(scores, settings, strict=True))
    )


def tuned(made, settings):
    """Return the study, its final trials having run with these settings."""
    tags = {"medtransfer.tuned": "yes", "medtransfer.test_openings": "1"}
    cost = {"steps": 100.0, "train_seconds": 10.0, "validations": 9.0}
    return changed(made, lambda _: {"tags": tags, "settings": settings, "cost": cost})


def test_tuning_tells_each_draw_and_the_one_that_was_chosen():
    made = study({FE: 1.0, FT: 2.0})
    settings = [{}, {"lr": 0.1}, {"lr": 0.01}]
    made = replace(made, tuning=draws(made, FT, [0.7, 0.9, 0.8], settings))
    (found,) = tuning(tuned(made, {"lr": 0.1}))
    assert (found.arm, found.axes, found.chosen) == (FT, {}, 1)
    assert [(d.number, d.score, d.settings) for d in found.draws] == [
        (0, 0.7, {}),
        (1, 0.9, {"lr": 0.1}),
        (2, 0.8, {"lr": 0.01}),
    ]
    assert (found.draws[0].steps, found.draws[0].seconds, found.draws[0].validations) == (50, 2, 5)
    assert tuning(made)[0].chosen is None


def test_of_equal_draws_the_best_was_chosen_and_a_failed_one_never():
    made = study({FE: 1.0, FT: 2.0})
    trials = draws(made, FT, [0.7, 0.9, 0.8], [{"k": 1}] * 3)
    trials = (*trials[:1], replace(trials[1], status="FAILED", best={}), trials[2])
    assert tuning(tuned(replace(made, tuning=trials), {"k": 1}))[0].chosen == 2
    lower = replace(
        made, metric="brier", tuning=tuple(replace(t, best={"brier": t.draw}) for t in trials)
    )
    assert tuning(tuned(lower, {"k": 1}))[0].chosen == 0


def test_what_was_spent_counts_tuning_and_attempts_that_were_replaced():
    made = tuned(study({FE: 1.0, FT: 2.0}), {})
    trials = draws(made, FT, [0.7, 0.9], [{}, {"lr": 1}])
    made = replace(made, tuning=(trials[0], replace(trials[1], status="FAILED", cost={}, tags={})))
    made = replace(made, replaced=(replace(made.trials[-1], run_id="again"),))
    by_arm = {each.arm: each for each in spent(made)}
    assert by_arm[FE] == Spent(FE, 0, 3, 0, 300.0, 30.0, 27.0, 3)
    assert by_arm[FT] == Spent(FT, 2, 3, 1, 450.0, 42.0, 41.0, 5)


def test_splits_are_counted():
    made = changed(study({FE: 1.0}), lambda t: {"split_hash": "x" if t.seed else None})
    assert splits(made) == {"x": 2}


def learning(curves, seeds=range(4), n_train=None, **options):
    """Return a study whose arms have a skill for each fraction: `{arm: {fraction: skill}}`."""
    fractions = list(next(iter(curves.values())))
    made = study(dict.fromkeys(curves, 1.0), seeds, axes=[{AXIS: f} for f in fractions], **options)
    frames = {
        t.run_id: predictions(curves[t.arm][t.axes[AXIS]], t.seed, n=150) for t in made.trials
    }

    def told(trial):
        tags = {"medtransfer.n_train": str(n_train[trial.axes[AXIS]])} if n_train else {}
        value = float(values_of(frames[trial.run_id], made.metric).mean())
        return {"metrics": {made.metric: value}, "tags": trial.tags | tags}

    return replace(changed(made, told), predictions=stored(frames))


UP = {"0.1": 0.5, "0.3": 1.5, "1.0": 3.0}
FLAT = {"0.1": 1.5, "0.3": 1.6, "1.0": 1.7}
COUNTS = {"0.1": 40, "0.3": 120, "1.0": 400}


def test_where_a_curve_overtakes_another_is_told_in_training_cases():
    made = learning({FT: UP, FE: FLAT}, n_train=COUNTS)
    (found,) = crossings(made, Cases.of(made))
    assert (found.a, found.b, found.axis, found.unit) == (FE, FT, AXIS, "training cases")
    assert 40 < found.lo < found.at < found.hi < 400
    assert found.text == (
        f"{FT} overtakes {FE} at {found.at:.0f} training cases "
        f"(95 % CI {found.lo:.0f} to {found.hi:.0f})"
    )
    assert crossings(made, Cases.of(made)) == (found,)
    assert build(made).headline.endswith(f" {found.text}.")
    assert build(made).crossings == (found,)


def test_exams_are_called_exams_and_without_counts_the_fraction_stands():
    made = learning({FT: UP, FE: FLAT}, n_train=COUNTS)
    exams = changed(made, lambda t: {"tags": t.tags | {"medtransfer.task": "exam_classification"}})
    assert crossings(exams, Cases.of(exams))[0].unit == "training exams"
    bare = changed(made, lambda _: {"tags": {}})
    (found,) = crossings(bare, Cases.of(bare))
    assert 0.1 < found.at < 1
    assert "of the training data" in found.text


def test_less_is_better_turns_the_curves():
    made = learning({FT: UP, FE: FLAT}, n_train=COUNTS, metric="brier")
    (found,) = crossings(made, Cases.of(made))
    assert (found.a, found.b) == (FE, FT)


def test_who_is_ahead_all_along_is_said():
    made = learning({FT: {k: v + 1 for k, v in FLAT.items()}, FE: FLAT}, n_train=COUNTS)
    (found,) = crossings(made, Cases.of(made))
    assert found.at is None
    assert found.text == f"{FT} is ahead of {FE} throughout, from 40 to 400 training cases"
    assert "throughout" not in build(made).headline


def test_the_declared_pair_alone_is_looked_at_and_too_many_are_not():
    curves = {f"arm{k}": FLAT for k in range(4)} | {"up": UP}
    made = learning(curves, range(2), n_train=COUNTS)
    assert crossings(made, Cases.of(made)) == ()
    made = replace(made, protocol={"primary": {"a": "up", "b": "arm1", "at": {}}})
    (found,) = crossings(made, Cases.of(made))
    assert (found.a, found.b) == ("arm1", "up")


def test_curves_without_common_seeds_or_with_one_size_do_not_cross():
    made = learning({FT: UP, FE: FLAT}, n_train=COUNTS)
    apart = replace(made, trials=tuple(t for t in made.trials if (t.arm == FT) == (t.seed > 1)))
    assert crossings(apart, Cases.of(apart)) == ()
    same = changed(made, lambda _: {"tags": {"medtransfer.n_train": "40"}})
    assert crossings(same, Cases.of(same)) == ()
    plain = study({FE: 1.0, FT: 2.0})
    assert crossings(plain, Cases.of(plain)) == ()


NAMES = ("a", "b", "c", "d")


def datasets(arms):
    made = study(arms, axes=[{"dataset": name} for name in NAMES])
    made = replace(made, protocol={"arms": {arm: [] for arm in arms}})
    # each dataset is hard in its own way
    return changed(made, lambda t: {"metrics": {"auroc": _metric(t, arms)}})


def _metric(trial, arms):
    rng = np.random.default_rng([NAMES.index(trial.axes["dataset"]), trial.seed])
    return 0.5 + 0.1 * arms[trial.arm] + 0.02 * rng.random()


def test_arms_are_ranked_over_datasets():
    made = replace(datasets({FE: 1.0, FT: 2.0, "lora": 1.5}), predictions=stored({}))
    arms = compare(made).arms
    found = across(made, arms)
    assert (found.datasets, found.baseline) == (NAMES, FE)
    assert [(each.arm, each.rank) for each in found.ranks] == [(FT, 1), ("lora", 2), (FE, 3)]
    mean = {(row.arm, row.axes["dataset"]): row.mean for row in arms}
    scores = [[mean[arm, name] for arm in sorted({FE, FT, "lora"})] for name in NAMES]
    expected = across_datasets(scores, sorted({FE, FT, "lora"}), FE)
    assert found.p == pytest.approx(expected.friedman)
    by_arm = {each.arm: each for each in found.ranks}
    assert by_arm[FE].mean_diff is by_arm[FE].p_adj is None
    assert by_arm[FT].mean_diff == pytest.approx(0.1, abs=0.001)
    assert build(made).across == found
    assert by_arm[FE].improvement is by_arm[FE].shares is None
    assert by_arm[FT].improvement == 1.0  # every seed of it beats every seed of the baseline
    assert by_arm[FT].shares[2] > 0.9
    assert sum(by_arm["lora"].shares) == pytest.approx(1.0)
    for each in found.ranks:
        assert each.iqm_lo <= each.iqm <= each.iqm_hi
    assert by_arm[FE].iqm < by_arm["lora"].iqm < by_arm[FT].iqm


def test_the_baseline_is_the_second_of_the_declared_contrast():
    made = datasets({FE: 1.0, FT: 2.0})
    made = replace(made, protocol={"arms": {FE: []}, "primary": {"a": FE, "b": FT, "at": {}}})
    assert across(made, compare(made).arms).baseline == FT


def test_a_dataset_where_an_arm_lacks_a_seed_does_not_count():
    made = datasets({FE: 1.0, FT: 2.0})
    lacking = [t for t in made.trials if (t.arm, t.axes["dataset"], t.seed) != (FE, "c", 0)]
    fewer = replace(made, trials=tuple(lacking))
    assert across(fewer, compare(fewer).arms).datasets == ("a", "b", "d")
    fewer = replace(made, trials=tuple(t for t in lacking if t.axes["dataset"] != "d"))
    assert across(fewer, compare(fewer).arms) is None
    assert across(made, compare(study({FE: 1.0, FT: 2.0})).arms) is None


def test_the_headline_tells_the_crossing_of_its_own_setting():
    made = learning({FT: UP, FE: FLAT}, n_train=COUNTS)
    both = [
        replace(t, run_id=f"{name} {t.run_id}", axes={**t.axes, "dataset": name})
        for name in ("b", "a")
        for t in made.trials
    ]
    read = made.predictions
    made = replace(
        made,
        trials=tuple(both),
        predictions=lambda run, split="test": read(run.partition(" ")[2], split),
    )
    found = crossings(made, Cases.of(made))
    assert [each.axes for each in found] == [{"dataset": "a"}, {"dataset": "b"}]
    text = build(made).headline
    assert text.startswith("With dataset.fraction=1.0, dataset=b: ")
    assert text.endswith(f" {found[1].text}.")
    assert text.count("overtakes") == 1

"""Details of a study: what each kind of task shows, and what they do not depend on."""

import json
import time
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from simulated import FE, FT, changed, predictions, study

from medtransfer.analysis.details.build import details
from medtransfer.analysis.details.calibration import Probabilities, temperature_of
from medtransfer.analysis.details.parts import Details
from medtransfer.analysis.details.spread import MOST, OF_CLASSES, OF_LABELS

SKILLS = {FE: 1.0, FT: 2.5}
CURVES = ["roc", "pr", "decision", "reliability", "reliability_scaled"]


def from_tables(simulated, tables):
    """Return the study with these tables, by run id and split."""
    return replace(simulated, predictions=lambda run, split="test": tables.get((run, split)))


def both_splits(arms=SKILLS, seeds=range(3), **options):
    """Return a study whose trials have test and validation predictions, and these tables."""
    simulated = study(arms, seeds, **options)
    tables = {}
    for trial in simulated.trials:
        frame = simulated.predictions(trial.run_id)
        site = np.where(frame["sample_id"].str[-1].astype(int) % 2, "east", "west")
        tables[trial.run_id, "test"] = frame.assign(attribute_site=site)
        options.pop("per_patient", None)
        tables[trial.run_id, "val"] = predictions(arms[trial.arm], 100 + trial.seed, **options)
    return from_tables(simulated, tables), tables


def dense(simulated, metric="dice", seed=0):
    rng = np.random.default_rng(seed)
    return {
        (trial.run_id, "test"): pd.DataFrame(
            {"sample_id": [f"s{i}" for i in range(30)], metric: rng.random(30)}
        )
        for trial in simulated.trials
    }


def test_a_classification_study_has_everything_and_survives_json():
    found = details(both_splits()[0], {}, [FE, FT])
    assert [chart.name for chart in found.charts] == CURVES
    assert all([line.label for line in chart.lines] == [FE, FT] for chart in found.charts)
    assert [row.arm for row in found.calibration] == [FE, FT]
    assert {row.value for row in found.subgroups} == {"east", "west"}
    assert [(each.arm, each.kind) for each in found.spread] == [
        (FE, "seeds"),
        (FT, "seeds"),
        (FE, "cases"),
        (FT, "cases"),
    ]
    assert len(found.worst) == 12
    content = json.loads(json.dumps(asdict(found), allow_nan=False))
    assert Details.from_dict(content) == found


def test_only_finished_trials_of_these_arms_and_setting_count():
    axes = ({"dataset.fraction": "0.1"}, {"dataset.fraction": "1"})
    made = study(SKILLS, range(3), axes=axes)
    tables = {(t.run_id, "test"): made.predictions(t.run_id) for t in made.trials}
    made = from_tables(made, tables)
    failed = changed(made, lambda t: {"status": "FAILED"} if t.seed == 2 else None)
    found = details(failed, axes[0], [FT])
    assert found.setting == axes[0]
    assert {line.label for chart in found.charts for line in chart.lines} == {FT}
    few = [t for t in made.trials if t.seed < 2 and t.axes == axes[0]]
    assert found == details(replace(made, trials=tuple(few)), axes[0], [FT])
    assert len(found.spread[0].values) == 2


def test_neither_the_order_of_rows_nor_that_of_seeds_matters():
    made, tables = both_splits(seeds=range(4))
    shuffled = {
        key: frame.sample(frac=1, random_state=place)
        for place, (key, frame) in enumerate(tables.items())
    }
    other = from_tables(replace(made, trials=made.trials[::-1]), shuffled)
    assert details(other, {}, [FE, FT]) == details(made, {}, [FE, FT])


def test_a_case_listed_twice_counts_once():
    made, tables = both_splits()
    padded = {key: pd.concat([frame, frame.iloc[:7]]) for key, frame in tables.items()}
    assert details(from_tables(made, padded), {}, [FE]) == details(made, {}, [FE])


def test_a_temperature_comes_from_validation_and_never_from_test():
    made, tables = both_splits()
    row = details(made, {}, [FT]).calibration[0]
    runs = [trial.run_id for trial in made.trials if trial.arm == FT]
    expected = [temperature_of(Probabilities.of(tables[run, "val"])) for run in runs]
    assert row.temperature == pytest.approx(np.mean(expected))
    flipped = {
        key: frame.assign(target=1 - frame["target"]) if key[1] == "test" else frame
        for key, frame in tables.items()
    }
    other = details(from_tables(made, flipped), {}, [FT]).calibration[0]
    assert other.temperature == row.temperature
    assert other.nll_scaled > row.nll_scaled


def test_without_validation_predictions_of_every_seed_nothing_is_scaled():
    made, tables = both_splits()
    first = next(key for key in tables if key[1] == "val" and key[0].startswith(FE))
    kept = {key: frame for key, frame in tables.items() if key != first}
    found = details(from_tables(made, kept), {}, [FE, FT])
    without, with_ = found.calibration
    assert (without.temperature, without.nll_scaled) == (None, None)
    assert with_.temperature is not None
    scaled = found.charts[-1]
    assert (scaled.name, [line.label for line in scaled.lines]) == ("reliability_scaled", [FT])


def test_the_spread_over_cases_is_the_probability_of_the_true_class():
    made, tables = both_splits(n=60)
    found = details(made, {}, [FT])
    over_seeds, over_cases = found.spread
    trials = [trial for trial in made.trials if trial.arm == FT]
    assert over_seeds.values == tuple(trial.metrics["auroc"] for trial in trials)
    frames = [tables[t.run_id, "test"].sort_values("sample_id") for t in trials]
    right = [np.where(f["target"] == 1, f["score_malignant"], f["score_benign"]) for f in frames]
    means = np.mean(right, axis=0)
    assert over_cases.of == OF_CLASSES
    assert over_cases.values == pytest.approx(np.sort(means))
    worst = found.worst[0]
    place = means.argmin()
    assert worst.sample_id == f"s{place:04d}"
    assert worst.target == ("benign", "malignant")[frames[0]["target"].iloc[place]]
    assert worst.arms == {FT: pytest.approx(means.min())}
    listed = [each.arms[FT] for each in found.worst]
    assert listed == sorted(listed)


def test_of_many_cases_quantiles_are_kept():
    values = details(both_splits(n=1200)[0], {}, [FE]).spread[1].values
    assert len(values) == MOST
    assert list(values) == sorted(values)


def test_labels_show_curves_and_how_right_they_are_in_the_mean():
    made = study({FE: 1.0}, range(2))
    rng = np.random.default_rng(0)
    tables = {}
    for trial in made.trials:
        for split in ("test", "val"):
            target = rng.integers(0, 2, (50, 2))
            target[:5, 0] = -1
            scores = rng.random((50, 2))
            tables[trial.run_id, split] = pd.DataFrame(
                {
                    "sample_id": [f"s{i:02d}" for i in range(50)],
                    "target_edema": target[:, 0],
                    "score_edema": scores[:, 0],
                    "target_mass": target[:, 1],
                    "score_mass": scores[:, 1],
                }
            )
    found = details(from_tables(made, tables), {}, [FE])
    assert [chart.name for chart in found.charts] == CURVES
    assert found.spread[1].of == OF_LABELS
    first, second = (tables[t.run_id, "test"] for t in made.trials)

    def right(row):
        known = [n for n in ("edema", "mass") if row[f"target_{n}"] >= 0]
        return np.mean([1 - abs(row[f"target_{n}"] - row[f"score_{n}"]) for n in known])

    means = (first.apply(right, axis=1) + second.apply(right, axis=1)) / 2
    assert found.spread[1].values == pytest.approx(np.sort(means))
    assert found.worst[0].sample_id == f"s{means.argmin():02d}"
    truth = first.iloc[means.argmin()]
    held = [name for name in ("edema", "mass") if truth[f"target_{name}"] == 1]
    assert found.worst[0].target == ", ".join(held)


@pytest.mark.parametrize(("metric", "first"), [("dice", "argmin"), ("hd95", "argmax")])
def test_masks_show_their_own_metric_and_no_curves(metric, first):
    made = replace(study(SKILLS, range(2)), metric=metric)
    tables = dense(made, metric)
    for table in tables.values():
        table.loc[3, metric] = np.nan
    found = details(from_tables(made, tables), {}, [FE, FT])
    assert found.charts == found.calibration == ()
    mean = np.mean([table[metric] for table in tables.values()], axis=0)
    mean[3] = np.nanmean(mean)
    assert [each.of for each in found.spread if each.kind == "cases"] == [metric] * 2
    assert [len(each.values) for each in found.spread if each.kind == "cases"] == [29] * 2
    assert found.worst[0].sample_id == f"s{getattr(mean, first)()}"
    assert found.worst[0].target == ""
    assert set(found.worst[0].arms) == {FE, FT}


def test_detections_show_a_froc_curve_only():
    made = study({FE: 1.0}, range(2), metric="auroc")
    made = replace(made, metric="map")
    tables = {}
    for trial in made.trials:
        images = {"sample_id": ["a", "b"], "truths_x": [1, 1], "map": [1.2, -0.2]}
        tables[trial.run_id, "test"] = pd.DataFrame(images)
        tables[trial.run_id, "detections"] = pd.DataFrame(
            {"sample_id": ["a", "b"], "score": [0.9, 0.8], "match_50": [0, -1]}
        )
    found = details(from_tables(made, tables), {}, [FE])
    assert [chart.name for chart in found.charts] == ["froc"]
    assert set(found.charts[0].lines[0].y) == {0.5}
    assert found.worst == found.calibration == ()
    assert [each.kind for each in found.spread] == []
    del tables[made.trials[0].run_id, "detections"], tables[made.trials[1].run_id, "detections"]
    assert details(from_tables(made, tables), {}, [FE]).charts == ()


def test_without_predictions_there_are_the_seeds_alone():
    found = details(from_tables(study(SKILLS), {}), {}, [FE, FT])
    assert [(each.arm, each.kind) for each in found.spread] == [(FE, "seeds"), (FT, "seeds")]
    assert replace(found, spread=()) == Details()
    assert details(from_tables(study(SKILLS), {}), {}, ["unknown"]) == Details()


def test_exams_are_cases_too():
    made, tables = both_splits()
    exams = {
        key: frame.assign(exam_id=frame["sample_id"], sample_id=None)
        for key, frame in tables.items()
    }
    assert details(from_tables(made, exams), {}, [FE]) == details(made, {}, [FE])


def test_a_large_study_takes_seconds():
    arms = {f"arm{i}": 1 + i / 10 for i in range(8)}
    made, tables = both_splits(arms, range(10), n=1000, k=3)
    for key, frame in tables.items():
        place = frame["sample_id"].str[1:].astype(int)
        tables[key] = frame.assign(attribute_age=place % 90, attribute_year=place % 7)
    start = time.process_time()  # of this process alone, however busy the machine is
    found = details(from_tables(made, tables), {}, list(arms))
    assert time.process_time() - start < 15
    assert len(found.subgroups) == 8 * (2 + 3 + 7)

"""What a study declares becomes jobs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medtransfer.study import Declared, signature, spelled_override

STUDY = {
    "arms": {"frozen": ["strategy=feature_extraction"], "tuned": ["strategy=fine_tuning", "a=1"]},
    "axes": {"dataset.fraction": [0.1, 1.0]},
    "seeds": 2,
    "seed": 0,
    "budget": {"trials": 3, "max_steps": None, "seconds": None},
    "search": {"sampler": "random", "pruner": None},
}


def jobs(study, given):
    return Declared.of(study, given).final()


def test_every_arm_meets_every_combination_and_seed_arms_side_by_side():
    found = jobs(STUDY, [])
    assert len(found) == 2 * 2 * 2
    assert found[0] == (
        "study.arm='frozen'",
        "strategy=feature_extraction",
        "dataset.fraction=0.1",
        "seed=0",
    )
    assert found[1][:3] == ("study.arm='tuned'", "strategy=fine_tuning", "a=1")
    assert len(set(found)) == len(found)
    assert [job[-1] for job in found[:4]] == ["seed=0"] * 4


def test_the_command_line_wins_over_axes_and_arms_and_several_values_are_an_axis():
    found = jobs(STUDY, [("dataset.fraction", ["0.5"]), ("a", ["2"]), ("dataset", ["x", "y"])])
    assert len(found) == 2 * 2 * 2
    assert all("dataset.fraction=0.5" in job for job in found)
    assert all("a=2" in job and "a=1" not in job for job in found)
    assert {o for job in found for o in job if o.startswith("dataset=")} == {
        "dataset=x",
        "dataset=y",
    }


def test_seeds_are_how_many_or_which():
    assert {job[-1] for job in jobs({**STUDY, "seeds": [7, 9]}, [])} == {"seed=7", "seed=9"}
    assert {job[-1] for job in jobs(STUDY, [("seed", ["4", "5"])])} == {"seed=4", "seed=5"}
    assert all("seed=4" in job for job in jobs(STUDY, [("seed", ["4"])]))


@given(st.integers(1, 4), st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
def test_the_grid_is_complete_and_no_key_is_given_twice(seeds, values):
    found = jobs({**STUDY, "seeds": seeds, "axes": {"k": values}}, [])
    assert len(found) == seeds * len(values) * len(STUDY["arms"])
    for job in found:
        keys = [override.partition("=")[0] for override in job]
        assert len(keys) == len(set(keys))


def test_what_tuning_chose_for_a_cell_is_what_all_of_its_seeds_run_with():
    declared = Declared.of(STUDY, [])
    chosen = {0: {"optimizer.lr": 0.01, "strategy.groups": [0]}, 1: {}}
    found = declared.final(chosen)
    assert [job[-3:] for job in found if "seed=0" in job or "seed=1" in job][0::4] == [
        ("study.tuned=[optimizer.lr,strategy.groups]", "optimizer.lr=0.01", "strategy.groups=[0]"),
        ("study.tuned=[optimizer.lr,strategy.groups]", "optimizer.lr=0.01", "strategy.groups=[0]"),
    ]
    assert sum("optimizer.lr=0.01" in job for job in found) == 2


def test_a_trial_that_tunes_has_no_test_and_the_seed_of_the_study_whatever_its_final_seeds():
    budget = {"trials": 3, "max_steps": 20, "seconds": 5.0}
    declared = Declared.of({**STUDY, "seed": 7, "seeds": [1, 2], "budget": budget}, [])
    job = declared.tuning(1, 2, {"optimizer.lr": 0.5})
    told = dict(override.partition("=")[::2] for override in job)
    assert told["seed"] == "7"
    assert told["test"] == "false"
    assert (told["study.phase"], told["study.draw"]) == ("tuning", "2")
    assert (told["trainer.max_steps"], told["trainer.max_seconds"]) == ("20", "5.0")
    assert told["optimizer.lr"] == "0.5"
    assert told["strategy"] == "fine_tuning"


def test_what_somebody_has_set_is_not_tuned():
    declared = Declared.of(STUDY, [("optimizer.lr", ["1e-3"]), ("b", ["1", "2"])])
    assert {"optimizer.lr", "b", "a", "dataset.fraction"} <= declared.fixed


def test_the_external_dataset_is_a_choice_wherever_it_is_named():
    assert spelled_override("dataset.external=busi") == "dataset@dataset.external=busi"
    assert spelled_override("dataset.external.root=/x") == "dataset.external.root=/x"
    study = {**STUDY, "axes": {"dataset.external": ["a", "b"]}}
    assert "dataset@dataset.external=a" in jobs(study, [])[0]


def test_more_seeds_arms_or_values_are_the_same_question_and_other_data_are_not():
    asked = signature(["study=x", "dataset=busi", "dataset.fraction=0.1,0.3", "seed=0"])
    more = ["study=x", "study.seeds=9", "dataset=busi", "dataset.fraction=0.1,1.0", "paths.data=/d"]
    assert signature(more) == asked
    assert signature(["study=x", "dataset=phantom", "dataset.fraction=0.1,0.3"]) != asked
    assert signature(["dataset=busi", "trainer.max_steps=5"]) != asked

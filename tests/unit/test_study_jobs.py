"""What a study declares becomes jobs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medtransfer.study import jobs

STUDY = {
    "arms": {"frozen": ["strategy=feature_extraction"], "tuned": ["strategy=fine_tuning", "a=1"]},
    "axes": {"dataset.fraction": [0.1, 1.0]},
    "seeds": 2,
}


def test_every_arm_meets_every_combination_and_seed_arms_side_by_side():
    found = jobs(STUDY, [])
    assert len(found) == 2 * 2 * 2
    assert found[0] == (
        "study.arm='frozen'",
        "strategy=feature_extraction",
        "seed=0",
        "dataset.fraction=0.1",
    )
    assert found[1][:3] == ("study.arm='tuned'", "strategy=fine_tuning", "a=1")
    assert len(set(found)) == len(found)
    assert [job[-2] for job in found[:4]] == ["seed=0"] * 4


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
    assert {job[-2] for job in jobs({**STUDY, "seeds": [7, 9]}, [])} == {"seed=7", "seed=9"}
    assert {job[-2] for job in jobs(STUDY, [("seed", ["4", "5"])])} == {"seed=4", "seed=5"}
    assert all("seed=4" in job for job in jobs(STUDY, [("seed", ["4"])]))


@given(st.integers(1, 4), st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
def test_the_grid_is_complete_and_no_key_is_given_twice(seeds, values):
    found = jobs({**STUDY, "seeds": seeds, "axes": {"k": values}}, [])
    assert len(found) == seeds * len(values) * len(STUDY["arms"])
    for job in found:
        keys = [override.partition("=")[0] for override in job]
        assert len(keys) == len(set(keys))

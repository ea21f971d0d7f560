"""What is tried for a cell before its final trials."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtransfer.errors import ConfigError
from medtransfer.tuning import Tuner

SPACE = {
    "optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "strategy.rank": {"choices": [4, 8]},
    "strategy.groups": {"choices": [[0], [1, 2], [-1]]},
    "strategy.depth": {"low": 1, "high": 6},
}


def drawn(space=SPACE, sampler="random", seed=0, trials=6, score=None):
    """Return every draw; `score` says what each of them comes to."""
    tuner = Tuner(space, trials=trials, sampler=sampler, seed=seed)
    found = []
    while (settings := tuner.ask()) is not None:
        found.append(settings)
        if score is not None:
            tuner.tell(len(found) - 1, score(settings))
    return tuner, found


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "gp"])
def test_every_draw_lies_in_the_space_and_the_first_is_the_yaml_itself(sampler):
    lr = {"optimizer.lr": SPACE["optimizer.lr"]} if sampler == "gp" else SPACE
    _, found = drawn(lr, sampler, score=lambda s: s.get("optimizer.lr", 0.0))
    assert found[0] == {}
    assert len(found) == 6
    for settings in found[1:]:
        assert settings.keys() == lr.keys()
        assert 1e-5 <= settings["optimizer.lr"] <= 1e-2
        assert settings.get("strategy.rank", 4) in [4, 8]
        assert settings.get("strategy.groups", [0]) in [[0], [1, 2], [-1]]
        assert settings.get("strategy.depth", 3) in range(1, 7)


@given(st.integers(0, 2**31 - 1), st.sampled_from(["random", "qmc"]))
def test_draws_follow_from_the_seed_alone(seed, sampler):
    _, ahead = drawn(sampler=sampler, seed=seed, trials=4)
    _, told = drawn(sampler=sampler, seed=seed, trials=4, score=lambda s: float(len(s)))
    assert ahead == told
    assert ahead != drawn(sampler=sampler, seed=seed + 1, trials=4)[1]


def test_arms_of_one_space_try_the_same_and_arms_of_shifted_ranges_the_same_places_in_them():
    narrow = {"optimizer.lr": {"low": 1e-4, "high": 1e-3, "log": True}}
    wide = {"optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True}}

    def places(space):
        low, high = (math.log(space["optimizer.lr"][end]) for end in ("low", "high"))
        values = [settings["optimizer.lr"] for settings in drawn(space)[1][1:]]
        return [(math.log(value) - low) / (high - low) for value in values]

    assert places(narrow) == pytest.approx(places(wide))


def test_the_best_is_the_first_of_the_best_and_failures_never_are():
    tuner, found = drawn(trials=5)
    for draw, score in enumerate([0.5, None, 0.7, math.nan, 0.7]):
        tuner.tell(draw, score)
    assert tuner.best == found[2]
    failed, _ = drawn(trials=3)
    for draw in range(3):
        failed.tell(draw, None)
    assert failed.best == {}


def test_an_adaptive_search_comes_near_the_optimum():
    space = {"x": {"low": -10.0, "high": 10.0}}
    tuner, _ = drawn(space, "tpe", trials=60, score=lambda s: -abs(s.get("x", 9.0) - 3.0))
    assert abs(tuner.best["x"] - 3.0) < 0.5


def test_nothing_to_tune_needs_no_trial():
    tuner, found = drawn({})
    assert found == []
    assert tuner.trials == 0
    assert tuner.best == {}


@pytest.mark.parametrize(
    "told",
    [
        {"low": 1.0},
        {"choices": []},
        {"low": 2.0, "high": 1.0},
        {"low": 0.0, "high": 1.0, "log": 1},
        {"low": "a", "high": 2.0},
        {"low": 1.0, "high": 2.0, "steps": 3},
    ],
)
def test_a_space_that_cannot_be_read_is_told(told):
    with pytest.raises(ConfigError, match=r"search_space\.optimizer\.lr"):
        Tuner({"optimizer.lr": told}, trials=2, sampler="random", seed=0)

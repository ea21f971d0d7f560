"""Learning-rate schedules as functions of the share of the training that is done."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtransfer.components import build
from medtransfer.errors import ConfigError
from medtransfer.tasks.schedulers import Constant, Cosine, MultiStep, Scheduler

SHARE = st.floats(0, 1)
WARMUP = st.floats(0, 0.99)
GAMMA = st.floats(0.01, 1)
MILESTONES = st.lists(st.floats(0.01, 0.99), max_size=4, unique=True).map(tuple)
SCHEDULES = st.one_of(
    st.just(Constant()),
    st.builds(Cosine, warmup=WARMUP),
    st.builds(MultiStep, milestones=MILESTONES, gamma=GAMMA),
)


@settings(deadline=None)
@given(schedule=SCHEDULES, progress=SHARE)
def test_a_factor_lies_between_zero_and_one(schedule, progress):
    assert 0 <= schedule.factor(progress) <= 1


@settings(deadline=None)
@given(progress=SHARE)
def test_constant_stays_one(progress):
    assert Constant().factor(progress) == 1


@settings(deadline=None)
@given(warmup=WARMUP)
def test_cosine_starts_small_but_moves_at_once_peaks_after_warmup_and_ends_at_zero(warmup):
    schedule = Cosine(warmup=warmup)
    assert schedule.factor(0.0) == pytest.approx(0.01 if warmup else 1.0)
    assert schedule.factor(warmup) == 1
    assert schedule.factor((1 + warmup) / 2) == pytest.approx(0.5)
    assert schedule.factor(1.0) == pytest.approx(0, abs=1e-12)


@settings(deadline=None)
@given(warmup=WARMUP, a=SHARE, b=SHARE)
def test_cosine_rises_while_it_warms_up_and_falls_from_then_on(warmup, a, b):
    schedule = Cosine(warmup=warmup)
    a, b = sorted((a, b))
    if b <= warmup:
        assert schedule.factor(a) <= schedule.factor(b)
    if a >= warmup:
        assert schedule.factor(a) >= schedule.factor(b)


@settings(deadline=None)
@given(warmup=st.floats(0.01, 0.99), progress=SHARE, step=st.floats(0, 1e-3))
def test_cosine_has_no_jump(warmup, progress, step):
    schedule = Cosine(warmup=warmup)
    steepest = max(1 / warmup, math.pi / 2 / (1 - warmup))
    there = min(1.0, progress + step)
    moved = abs(schedule.factor(there) - schedule.factor(progress))
    assert moved <= steepest * (there - progress) + 1e-9


@settings(deadline=None)
@given(milestones=MILESTONES, gamma=GAMMA, progress=SHARE)
def test_multistep_multiplies_at_each_milestone_that_is_reached(milestones, gamma, progress):
    expected = math.prod(gamma for milestone in milestones if milestone <= progress)
    found = MultiStep(milestones=milestones, gamma=gamma).factor(progress)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("choice", "argument", "value"),
    [
        ("Cosine", "warmup", 1.0),
        ("Cosine", "warmup", -0.1),
        ("Cosine", "warmup", "early"),
        ("MultiStep", "gamma", 0.0),
        ("MultiStep", "gamma", 1.5),
        ("MultiStep", "milestones", [50, 75]),
    ],
)
def test_values_without_meaning_are_refused(choice, argument, value):
    rest = {"milestones": [0.5], "gamma": 0.1} if choice == "MultiStep" else {}
    node = {"_target_": f"medtransfer.tasks.schedulers.{choice}", **rest, argument: value}
    with pytest.raises(ConfigError, match=rf"scheduler\.{argument}"):
        build(node, Scheduler)

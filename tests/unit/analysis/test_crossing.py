"""Where one learning curve overtakes another."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtransfer.analysis.statistics.crossing import CrossingPoint, crossing

SIZES = np.array([20.0, 60.0, 200.0, 600.0])


def rng(seed=0):
    return np.random.default_rng(seed)


def flat(curve, cases=4, seeds=3):
    """No case and no seed differs from another."""
    return np.broadcast_to(np.asarray(curve, float)[:, None, None], (len(curve), cases, seeds))


def noisy(generator, at=140.0, *, cases=100, seeds=5, by_seed=0.01, by_case=0.05):
    """Gains linear in log size that cross at `at`; patients keep their pull at all sizes."""
    return (
        0.03 * np.log(SIZES / at)[:, None, None]
        + by_case * generator.normal(size=(1, cases, 1))
        + by_seed * generator.normal(size=(1, 1, seeds))
        + 0.05 * generator.normal(size=(len(SIZES), cases, seeds))
    )


@given(st.floats(21, 599))
@settings(max_examples=30, deadline=None)
def test_a_line_in_log_size_is_crossed_where_it_is_zero(at):
    found = crossing(SIZES, flat(np.log(SIZES / at)), rng(), draws=20)
    assert (found.at, found.lo, found.hi) == pytest.approx((at, at, at))
    assert (found.share_crossing, found.share_ahead) == (1, 0)


def test_between_two_sizes_by_hand():
    # a third of the way from 20 to 60 on the log scale
    found = crossing([20, 60], flat([-1, 2]), rng(), draws=10)
    assert found.at == pytest.approx(20 * 3 ** (1 / 3))


@pytest.mark.parametrize(
    ("curve", "at"),
    [
        ([1, 2, 3, 4], None),  # ahead all along
        ([-4, -3, -2, -1], None),  # never
        ([-1, 1, 1, -1], None),  # ahead, but not at the end
        ([1, 1, -1, 1], np.sqrt(200 * 600)),  # ahead for good only there
        ([-1, 1, -1, 1], np.sqrt(200 * 600)),
        ([0, 1, 1, 1], 20),
        ([-1, 0, 1, 1], 60),
        ([-1, -1, -1, 0], None),
        ([0, 0, 0, 0], None),
    ],
)
def test_overtaking_means_ahead_up_to_the_end(curve, at):
    found = crossing(SIZES, flat(curve), rng(), draws=10)
    assert found.at == (None if at is None else pytest.approx(at))
    assert found.share_crossing == (at is not None)
    assert found.share_ahead == (min(curve) > 0)
    if at is None:
        assert (found.lo, found.hi) == (None, None)


def test_equal_generators_give_equal_intervals_and_others_do_not():
    gains = noisy(rng(3))
    first, second, other = (crossing(SIZES, gains, rng(k), draws=300) for k in (1, 1, 2))
    assert first == second
    assert (first.lo, first.hi) != (other.lo, other.hi)
    assert first.at == other.at
    assert first.lo < first.at < first.hi


def test_an_end_outside_of_what_was_measured_is_none():
    early = crossing(SIZES, noisy(rng(1), at=24), rng(), draws=400)
    assert early.at is not None
    assert early.lo is None
    assert early.hi is not None
    assert early.share_ahead > 0.05
    late = crossing(SIZES, noisy(rng(1), at=520), rng(), draws=400)
    assert late.hi is None
    assert late.lo is not None
    assert late.share_crossing + late.share_ahead < 0.98


def test_the_same_cases_and_seeds_are_drawn_at_all_sizes():
    """What all sizes share moves the curve as a whole, what they do not share bends it."""
    generator = rng(5)
    pull = generator.normal(size=(1, 60, 1)) + np.zeros((4, 1, 3))
    gains = np.log(SIZES / 110)[:, None, None] + 0.8 * pull
    found = crossing(SIZES, gains, rng(), draws=400)
    # parallel curves cross exactly once, wherever the resample puts them
    assert found.share_crossing == 1
    shift = 0.8 * pull[0, :, 0].mean()
    assert found.at == pytest.approx(110 * np.exp(-shift))
    half = 0.8 * 1.96 * pull[0, :, 0].std() / np.sqrt(60)
    assert np.log(found.hi / found.lo) == pytest.approx(2 * half, rel=0.2)


def test_copies_of_a_patients_cases_add_no_certainty():
    gains = noisy(rng(2), by_seed=0, by_case=0.1)
    once = crossing(SIZES, gains, rng(1), draws=300)
    patients = np.repeat([f"p{k:03}" for k in range(100)], 3)
    copied = crossing(SIZES, np.repeat(gains, 3, axis=1), rng(1), groups=patients, draws=300)
    assert (copied.at, copied.lo, copied.hi) == pytest.approx((once.at, once.lo, once.hi))
    naive = crossing(SIZES, np.repeat(gains, 3, axis=1), rng(1), draws=300)
    assert np.log(naive.hi / naive.lo) < 0.75 * np.log(once.hi / once.lo)


def test_without_cases_the_seeds_are_resampled():
    gains = noisy(rng(4), by_seed=0.02).mean(axis=1)
    found = crossing(SIZES, gains, rng(), draws=300)
    assert found == crossing(SIZES, gains[:, None], rng(), draws=300)
    assert found.lo < found.at < found.hi


def test_a_list_of_matrices_is_as_good_as_an_array():
    gains = noisy(rng(4))
    assert crossing(SIZES, list(gains), rng(), draws=50) == crossing(SIZES, gains, rng(), draws=50)


def test_one_value_a_size_one_size_and_nan():
    single = crossing(SIZES, np.array([[-1.0], [-1], [1], [1]]), rng())
    assert single.at == pytest.approx(np.sqrt(60 * 200))
    assert (single.lo, single.hi) == (None, None)
    assert np.isnan(single.share_crossing)
    holed = noisy(rng(0))
    holed[1, 3, 2] = np.nan
    for found in (crossing([50], flat([1]), rng()), crossing(SIZES, holed, rng())):
        assert isinstance(found, CrossingPoint)
        assert (found.at, found.lo, found.hi) == (None, None, None)
        assert np.isnan(found.share_crossing)


@pytest.mark.parametrize("sizes", [[60, 20], [20, 20], [20, 60, 200], [-5, 20]])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match="2 gains need as many ascending"):
        crossing(sizes, flat([-1, 1]), rng())


def test_coverage_with_seeds_that_differ_much():
    """Nominal 95 %, 100 cases, 5 seeds, 400 times; an end that is None lies beyond."""
    generator = rng(9)
    covered = []
    for _ in range(400):
        found = crossing(SIZES, noisy(generator, by_seed=0.02), generator, draws=500)
        low = 0 if found.lo is None else found.lo
        high = np.inf if found.hi is None else found.hi
        covered.append(low <= 140 <= high)
    assert 0.915 <= np.mean(covered) <= 0.98

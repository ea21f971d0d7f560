"""Metrics of masks and boxes as values of cases, whose mean is the metric."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medtransfer.analysis.cases import values_of
from medtransfer.analysis.statistics.average_precision import (
    Matched,
    ap50,
    case_values,
    mean_average_precision,
)

VALUES = st.one_of(st.just(np.nan), st.floats(0, 1))


@given(arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(2, 4)), elements=VALUES))
def test_class_metrics_become_cases_whose_mean_is_the_mean_over_classes(values):
    by_class = {f"dice_{k}": column for k, column in enumerate(values.T)}
    found = values_of(pd.DataFrame({"dice": 0.0, **by_class}), "dice")
    has = np.isfinite(values)
    assert np.array_equal(np.isfinite(found), has.any(axis=1))
    if has.any():
        means = [
            column[np.isfinite(column)].mean() for column in values.T if np.isfinite(column).any()
        ]
        assert np.nanmean(found) == pytest.approx(np.mean(means))


def test_where_every_case_has_every_class_a_case_counts_as_its_own_mean():
    frame = pd.DataFrame({"dice": [0.0, 0.0], "dice_a": [0.2, 0.6], "dice_b": [0.4, 1.0]})
    assert values_of(frame, "dice") == pytest.approx([0.3, 0.8])


def test_one_class_is_taken_as_it_is():
    frame = pd.DataFrame({"dice": [0.5, np.nan], "dice_a": [0.5, np.nan]})
    np.testing.assert_array_equal(values_of(frame, "dice"), [0.5, np.nan])


def draw(seed: int, images: int = 7) -> Matched:
    rng = np.random.default_rng(seed)
    count = 40
    return Matched(
        image=rng.integers(0, images, count),
        label=rng.integers(0, 2, count),
        score=rng.permutation(count) / count,
        hit=rng.random((count, 1)) > np.linspace(0.3, 0.9, 10),
        truths=rng.integers(5, 9, (images, 2)),
    )


@pytest.mark.parametrize("seed", range(5))
def test_pseudo_values_of_average_precision_have_it_as_their_mean(seed):
    matched = draw(seed)
    found = case_values(matched)
    assert found["map"].mean() == pytest.approx(mean_average_precision(matched)[0])
    assert found["ap50"].mean() == pytest.approx(ap50(matched)[0])


@pytest.mark.parametrize("seed", range(3))
def test_a_pseudo_value_says_how_far_an_image_pulls(seed):
    matched = draw(seed)
    images = len(matched.truths)
    without = []
    for left in range(images):
        kept = matched.image != left
        place = np.cumsum(np.arange(images) != left) - 1
        part = Matched(
            image=place[matched.image[kept]],
            label=matched.label[kept],
            score=matched.score[kept],
            hit=matched.hit[kept],
            truths=np.delete(matched.truths, left, axis=0),
        )
        without.append(mean_average_precision(part)[0])
    pulled = -(images - 1) * np.array(without)
    found = case_values(matched)["map"]
    assert found - found.mean() == pytest.approx(pulled - pulled.mean())

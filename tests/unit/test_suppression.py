"""Suppression against loops over boxes, and cases drawn by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medtransfer.heads.suppression import (
    Detections,
    Suppression,
    agnostic,
    hard,
    soft,
    weighted_fusion,
)

LIMITS = st.sampled_from([0.0, 0.1037, 0.3137, 0.5021, 0.7013, 1.0])  # no quotient of small areas


@st.composite
def found_in_an_image(draw, most=12):
    count = draw(st.integers(0, most))
    place, side = st.integers(0, 12), st.integers(1, 10)
    rows = draw(st.lists(st.tuples(place, place, side, side), min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    ranks = draw(st.permutations(range(count)))
    boxes = [[x, y, x + w, y + h] for x, y, w, h in rows]
    scores = [(rank + 1) / (count + 1) for rank in ranks]
    return detections(boxes, labels, scores)


def detections(boxes, labels, scores):
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
        torch.tensor(scores, dtype=torch.float32),
    )


def rows(found):
    """Boxes as (box, label, score), the best first."""
    each = zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True)
    return sorted(each, key=lambda row: -row[2])


def iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def kept_by_loop(found, limit, *, by_class):
    kept = []
    for row in rows(found):
        rivals = [k for k in kept if k[1] == row[1] or not by_class]
        if all(iou(row[0], rival[0]) <= limit for rival in rivals):
            kept.append(row)
    return kept


def softened_by_loop(found, sigma):
    left, taken = rows(found), []
    while left:
        best = max(left, key=lambda row: row[2])
        left.remove(best)
        taken.append(best)
        left = [
            (b, c, s * math.exp(-(iou(b, best[0]) ** 2) / sigma) if c == best[1] else s)
            for b, c, s in left
        ]
    return taken


def fused_by_loop(found, limit):
    groups = []

    def mean(group):
        total = sum(score for *_, score in group)
        return [sum(box[k] * score for box, _, score in group) / total for k in range(4)]

    for row in rows(found):
        same = [group for group in groups if group[0][1] == row[1]]
        nearest = max(same, key=lambda group: iou(mean(group), row[0]), default=None)
        if nearest is not None and iou(mean(nearest), row[0]) > limit:
            nearest.append(row)
        else:
            groups.append([row])
    return [(mean(group), group[0][1], group[0][2]) for group in groups]


def assert_same(found, expected):
    assert found.labels.tolist() == [label for _, label, _ in expected]
    boxes = torch.tensor([box for box, *_ in expected], dtype=torch.float32).reshape(-1, 4)
    torch.testing.assert_close(found.boxes, boxes, atol=1e-4, rtol=1e-5)
    scores = torch.tensor([score for *_, score in expected], dtype=torch.float32)
    torch.testing.assert_close(found.scores, scores, atol=1e-6, rtol=1e-5)


@given(found=found_in_an_image(), limit=LIMITS)
def test_hard_suppression_is_the_loop_within_each_class(found, limit):
    assert_same(hard(found, limit), kept_by_loop(found, limit, by_class=True))


@given(found=found_in_an_image(), limit=LIMITS)
def test_agnostic_suppression_is_the_loop_over_all_classes(found, limit):
    assert_same(agnostic(found, limit), kept_by_loop(found, limit, by_class=False))


@given(found=found_in_an_image(), sigma=st.sampled_from([0.1, 0.5, 2.0]), limit=st.integers(1, 15))
def test_soft_suppression_is_the_loop_up_to_its_limit(found, sigma, limit):
    result = soft(found, sigma, limit)
    expected = softened_by_loop(found, sigma)[:limit]
    # equal lowered scores may come in any order; their values may not differ
    scores = torch.tensor([score for *_, score in expected])
    torch.testing.assert_close(result.scores, scores, atol=1e-6, rtol=1e-4)
    if len({round(score, 5) for *_, score in expected}) == len(expected):
        assert_same(result, expected)


@pytest.mark.parametrize("sigma", [0.001, 0.5])
def test_soft_suppression_takes_each_box_once_even_at_scores_of_zero(sigma):
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 9, 9]]
    result = soft(detections(boxes, [0, 1, 0], [0.5, 0.0, 0.0]), sigma, 9)
    assert sorted(zip(result.boxes.tolist(), result.labels.tolist(), strict=True)) == sorted(
        zip(torch.tensor(boxes).float().tolist(), [0, 1, 0], strict=True)
    )


@settings(max_examples=200)
@given(found=found_in_an_image(), limit=LIMITS.filter(lambda limit: limit < 1))
def test_fusion_is_the_loop_that_keeps_every_member(found, limit):
    assert_same(weighted_fusion(found, limit), fused_by_loop(found, limit))


def test_fusion_weighs_boxes_by_their_scores_and_keeps_the_best():
    found = detections([[0, 0, 10, 10], [2, 0, 12, 10], [2, 0, 12, 10]], [0, 0, 1], [0.2, 0.6, 0.5])
    result = weighted_fusion(found, 0.5)
    torch.testing.assert_close(result.boxes, torch.tensor([[1.5, 0, 11.5, 10], [2, 0, 12, 10]]))
    assert result.labels.tolist() == [0, 1]
    torch.testing.assert_close(result.scores, torch.tensor([0.6, 0.5]))


def test_fusion_bears_scores_of_zero():
    found = detections([[0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 30, 30]], [0, 0, 0], [0, 0, 0])
    result = weighted_fusion(found, 0.5)
    assert torch.isfinite(result.boxes).all()
    assert len(result.boxes) == 2


@given(found=found_in_an_image(), limit=st.integers(1, 8), floor=st.sampled_from([0.0, 0.3, 0.9]))
@pytest.mark.parametrize("kind", ["hard", "agnostic", "soft", "weighted_fusion"])
def test_every_kind_gives_the_best_above_the_floor(kind, found, limit, floor):
    suppress = Suppression(kind=kind, iou=0.5, sigma=0.5, score="auto")
    result = suppress(found, limit=limit, floor=floor)
    assert len(result.boxes) == len(result.labels) == len(result.scores) <= limit
    assert (result.scores >= floor).all()
    assert (result.scores.diff() <= 0).all()
    everything = suppress(found, limit=100, floor=0)
    above = everything.above(floor)
    assert_same(result, rows(above)[:limit])


def test_the_kinds_differ_where_they_should():
    found = detections([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8]], [0, 0, 1], [0.9, 0.8, 0.7])
    kept = {
        kind: Suppression(kind=kind, iou=0.5, sigma=0.5, score=0.5)(found, limit=9, floor=0)
        for kind in ("hard", "agnostic", "soft", "weighted_fusion")
    }
    assert kept["hard"].labels.tolist() == [0, 1]
    assert kept["agnostic"].labels.tolist() == [0]
    assert kept["soft"].labels.tolist() == [0, 1, 0]
    assert kept["weighted_fusion"].labels.tolist() == [0, 1]
    assert kept["weighted_fusion"].boxes[0, 3] < 10


def test_rows_are_taken_together():
    found = detections([[0, 0, 1, 1], [0, 0, 2, 2]], [0, 1], [0.3, 0.6])
    assert rows(found.above(0.6)) == rows(found.take(torch.tensor([1])))
    assert len(found.above(0.61).boxes) == 0

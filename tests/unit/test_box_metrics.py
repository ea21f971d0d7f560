"""Metrics of detection against pycocotools, loops over thresholds, and cases drawn by hand."""

import contextlib
import io
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from medtransfer.analysis.statistics.average_precision import (
    IOUS,
    Matched,
    ap50,
    average_precision,
    match_column,
    mean_average_precision,
    truth_column,
)
from medtransfer.errors import DataError
from medtransfer.heads.suppression import Detections
from medtransfer.tasks.box_metrics import (
    FROC_RATES,
    NO_CHOICE,
    Truth,
    best_score_threshold,
    coco_metrics,
    count_error,
    froc,
    match,
)

NAMES = ("a", "b", "c")


def boxes_of(rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def truth(*rows):
    return Truth(boxes_of([box for box, _ in rows]), torch.tensor([k for _, k in rows]).long())


def found(*rows):
    boxes = boxes_of([box for box, *_ in rows])
    labels = torch.tensor([label for _, label, _ in rows]).long()
    return Detections(boxes, labels, torch.tensor([score for *_, score in rows]).float())


def box(x, y, side=10):
    return [x, y, x + side, y + side]


def scene(seed, images=6, classes=3, *, most=6, noise=12, ties=False):
    """Random truths; detections near some of them and elsewhere; half pixels, so exactly."""
    rng = np.random.default_rng(seed)
    truths, detections = [], []
    for _ in range(images):
        n, stray = rng.integers(0, most), rng.integers(0, noise)
        corner = rng.integers(0, 60, (n, 2)) / 2
        boxes = np.concatenate([corner, corner + rng.integers(8, 40, (n, 2)) / 2], 1)
        labels = rng.integers(0, classes, n)
        truths.append(Truth(torch.tensor(boxes).float(), torch.tensor(labels)))
        near = np.repeat(boxes, 2, axis=0) + rng.integers(-3, 4, (2 * n, 4)) / 2
        far = rng.integers(0, 60, (stray, 2)) / 2
        all_boxes = np.concatenate([near, np.concatenate([far, far + 8], 1)])
        all_labels = np.concatenate([np.repeat(labels, 2), rng.integers(0, classes, stray)])
        scores = rng.random(2 * n + stray)
        scores = np.round(scores, 1) if ties else scores
        detections.append(
            Detections(
                torch.tensor(all_boxes).float(),
                torch.tensor(all_labels),
                torch.tensor(scores).float(),
            )
        )
    return detections, truths


def oracle(detections, truths, classes=3):
    """Average precision by IoU and class, (10, classes), as pycocotools computes it."""
    categories = [{"id": k, "name": str(k)} for k in range(classes)]
    annotations, results = [], []
    for image, (f, t) in enumerate(zip(detections, truths, strict=True)):
        for (x0, y0, x1, y1), label in zip(t.boxes.tolist(), t.labels.tolist(), strict=True):
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": label, "iscrowd": 0}
                | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}
            )
        rows = zip(f.boxes.tolist(), f.labels.tolist(), f.scores.tolist(), strict=True)
        results += [
            {"image_id": image, "category_id": label, "score": score}
            | {"bbox": [x0, y0, x1 - x0, y1 - y0]}
            for (x0, y0, x1, y1), label, score in rows
        ]
    images = [{"id": k} for k in range(len(truths))]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return np.where((precision > -1).all(1), precision.mean(1), np.nan)


def frames(detections, truths, classes=3):
    """What a trial writes of them."""
    rows, images = [], []
    for image, (f, t) in enumerate(zip(detections, truths, strict=True)):
        counts = torch.bincount(t.labels, minlength=classes).tolist()
        columns = {truth_column(NAMES[k]): counts[k] for k in range(classes)}
        images.append({"sample_id": f"image {image}"} | columns)
        for label, score, hits in zip(f.labels, f.scores, match(f, t), strict=True):
            columns = {match_column(u): int(hit) for u, hit in zip(IOUS, hits, strict=True)}
            row = {"sample_id": f"image {image}", "class": NAMES[label], "score": float(score)}
            rows.append(row | columns)
    names = ["sample_id", "class", "score", *map(match_column, IOUS)]
    return pd.DataFrame(rows, columns=names), pd.DataFrame(images)


def matched(detections, truths, classes=3):
    return Matched.from_frames(*frames(detections, truths, classes), NAMES[:classes])


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_pycocotools(seed, ties):
    case = scene(seed, ties=ties)
    expected = oracle(*case)
    rows = matched(*case)
    np.testing.assert_allclose(average_precision(rows)[0], expected, atol=1e-12)
    assert ap50(rows)[0] == pytest.approx(np.nanmean(expected[0]), abs=1e-12)
    assert mean_average_precision(rows)[0] == pytest.approx(np.nanmean(expected), abs=1e-12)
    metrics = coco_metrics(*case, NAMES)
    assert metrics["map"] == pytest.approx(np.nanmean(expected), abs=1e-6)
    assert metrics["ap50"] == pytest.approx(np.nanmean(expected[0]), abs=1e-6)
    assert metrics["ap75"] == pytest.approx(np.nanmean(expected[5]), abs=1e-6)
    by_class = [metrics[f"ap50_{name}"] for name in NAMES]
    np.testing.assert_allclose(by_class, expected[0], atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_more_than_a_hundred_detections_of_an_image_and_class_do_not_count(seed):
    case = scene(seed, images=3, classes=1, most=9, noise=300)
    assert any(len(each.scores) > 100 for each in case[0])
    expected = oracle(*case, classes=1)
    np.testing.assert_allclose(average_precision(matched(*case, 1))[0], expected, atol=1e-12)
    assert coco_metrics(*case, NAMES[:1])["map"] == pytest.approx(expected.mean(), abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_an_image_drawn_several_times_counts_as_several_images(seed):
    detections, truths = scene(seed)
    rng = np.random.default_rng(seed)
    drawn = [np.sort(rng.integers(0, len(truths), len(truths))) for _ in range(3)]
    times = np.array([np.bincount(each, minlength=len(truths)) for each in drawn])
    result = average_precision(matched(detections, truths), times)
    for each, values in zip(drawn, result, strict=True):
        expected = oracle([detections[k] for k in each], [truths[k] for k in each])
        np.testing.assert_allclose(values, expected, atol=1e-12)


def test_many_draws_are_computed_in_parts(monkeypatch):
    rows = matched(*scene(1))
    times = np.random.default_rng(0).integers(0, 3, (50, len(rows.truths)))
    whole = average_precision(rows, times)
    monkeypatch.setattr("medtransfer.analysis.statistics.average_precision._CELLS", 7)
    np.testing.assert_array_equal(average_precision(rows, times), whole)


def test_without_truths_there_is_no_precision():
    case = [found((box(0, 0), 0, 0.9))], [truth()]
    assert np.isnan(average_precision(matched(*case))).all()
    assert math.isnan(ap50(matched(*case))[0])
    metrics = coco_metrics(*case, NAMES)
    assert all(math.isnan(value) for value in metrics.values())
    assert set(metrics) == {"map", "ap50", "ap75", "ap50_a", "ap50_b", "ap50_c"}


def test_without_detections_precision_is_zero():
    case = [found()], [truth((box(0, 0), 1))]
    assert ap50(matched(*case))[0] == 0
    metrics = coco_metrics(*case, NAMES)
    assert metrics["map"] == metrics["ap50_b"] == 0
    assert math.isnan(metrics["ap50_a"])


def test_a_table_of_predictions_in_another_order_means_the_same():
    detections, images = frames(*scene(2))
    plain = Matched.from_frames(detections, images, NAMES)
    mixed = Matched.from_frames(detections.sample(frac=1, random_state=0), images, NAMES)
    np.testing.assert_array_equal(average_precision(plain), average_precision(mixed))


def test_each_truth_is_matched_once_and_by_the_best_detection():
    here = truth((box(0, 0), 0), (box(40, 40), 0))
    seen = found((box(0, 1), 0, 0.5), (box(0, 0), 0, 0.9), (box(41, 40), 0, 0.7))
    result = match(seen, here, [0.5, 0.95])
    assert result.tolist() == [[-1, -1], [0, 0], [1, -1]]
    assert result.dtype == torch.int64


def test_a_detection_takes_the_truth_that_it_overlaps_most_of_those_free():
    here = truth((box(0, 0), 0), (box(0, 3), 0))
    assert match(found((box(0, 2), 0, 0.9)), here, [0.5]).tolist() == [[1]]
    both = found((box(0, 3), 0, 0.9), (box(0, 2), 0, 0.8))
    assert match(both, here, [0.5]).tolist() == [[1], [0]]


def test_of_equal_overlaps_the_last_truth_is_taken_as_coco_does():
    here = truth((box(0, 0), 0), (box(0, 4), 0))
    assert match(found((box(0, 2), 0, 0.9)), here, [0.5]).tolist() == [[1]]


def test_only_a_truth_of_the_class_is_matched():
    here = truth((box(0, 0), 1))
    assert match(found((box(0, 0), 0, 0.9)), here, [0.5]).tolist() == [[-1]]


def test_a_box_that_fits_exactly_passes_every_overlap():
    assert match(found((box(0, 0), 0, 0.9)), truth((box(0, 0), 0)), [0.5, 1.0]).tolist() == [[0, 0]]


@pytest.mark.parametrize("case", [(found(), truth((box(0, 0), 0))), (found(), truth())])
def test_nothing_found_matches_nothing(case):
    assert match(*case).shape == (0, len(IOUS))


def test_no_truth_is_matched_by_nothing():
    assert match(found((box(0, 0), 0, 0.9)), truth(), [0.5]).tolist() == [[-1]]


def by_threshold(detections, truths, score):
    """True positives and detections from a score on, by matching what is left."""
    left = [each.above(score) for each in detections]
    pairs = zip(left, truths, strict=True)
    hits = sum(int((match(f, t, [0.5]) >= 0).sum()) for f, t in pairs)
    return hits, sum(len(each.scores) for each in left)


def thresholds(detections):
    scores = torch.cat([each.scores for each in detections])
    return [*scores.unique().double().tolist(), math.inf]


@settings(max_examples=25)
@given(seed=st.integers(0, 999), ties=st.booleans())
def test_froc_is_the_best_of_all_thresholds(seed, ties):
    detections, truths = scene(seed, images=4, ties=ties)
    total = sum(len(each.labels) for each in truths)
    values = froc(detections, truths)
    assert list(values) == [*(f"sensitivity_{rate:g}" for rate in FROC_RATES), "froc"]
    if not total:
        assert all(math.isnan(value) for value in values.values())
        return
    points = [by_threshold(detections, truths, score) for score in thresholds(detections)]
    for rate in FROC_RATES:
        allowed = [hits for hits, kept in points if (kept - hits) / len(truths) <= rate]
        assert values[f"sensitivity_{rate:g}"] == pytest.approx(max(allowed) / total)
    assert values["froc"] == pytest.approx(np.mean([*values.values()][:-1]))


def test_froc_by_hand():
    """One image: a hit, a false positive, a hit, another false positive, by descending score."""
    here = truth((box(0, 0), 0), (box(40, 0), 1), (box(0, 40), 1), (box(40, 40), 1))
    rows = [(box(0, 0), 0, 0.9), (box(20, 20), 0, 0.8), (box(40, 0), 1, 0.7), (box(20, 0), 0, 0.6)]
    values = froc([found(*rows)], [here])
    assert [values[f"sensitivity_{rate:g}"] for rate in FROC_RATES] == [0.25] * 3 + [0.5] * 4
    assert values["froc"] == pytest.approx((3 * 0.25 + 4 * 0.5) / 7)


def test_froc_takes_another_overlap():
    case = [found((box(0, 2), 0, 0.9))], [truth((box(0, 0), 0))]
    assert froc(*case)["froc"] == 1
    assert froc(*case, iou=0.75)["froc"] == 0


@settings(max_examples=25)
@given(seed=st.integers(0, 999), ties=st.booleans())
def test_the_score_threshold_gives_the_best_f1(seed, ties):
    detections, truths = scene(seed, images=4, ties=ties)
    total = sum(len(each.labels) for each in truths)

    def f1(score):
        hits, kept = by_threshold(detections, truths, score)
        return 2 * hits / max(kept + total, 1)

    chosen = best_score_threshold(detections, truths)
    best = max(map(f1, thresholds(detections)))
    assert f1(chosen) == pytest.approx(best)
    if best == 0:
        assert chosen == NO_CHOICE


def test_of_equal_thresholds_the_highest_is_taken():
    """Two hits of three truths either way: 2*1/(1+3) = 2*2/(5+3)."""
    here = truth((box(0, 0), 0), (box(40, 0), 0), (box(0, 40), 0))
    hits = [(box(0, 0), 0, 0.875), (box(40, 0), 0, 0.25)]
    wrong = [(box(20, 20 + k), 0, 0.5) for k in range(3)]
    assert best_score_threshold([found(*hits, *wrong)], [here]) == 0.875


def test_count_error_is_a_mean_over_images():
    detections = [found((box(0, 0), 0, 0.9), (box(0, 0), 0, 0.4)), found(), found()]
    truths = [truth(), truth((box(0, 0), 0), (box(0, 0), 1)), truth()]
    assert count_error(detections, truths, 0.5) == pytest.approx((1 + 2 + 0) / 3)
    assert count_error(detections, truths, 0.4) == pytest.approx((2 + 2 + 0) / 3)
    assert math.isnan(count_error([], [], 0.5))


@pytest.mark.parametrize("metric", [froc, best_score_threshold])
def test_images_without_their_truths_are_refused(metric):
    with pytest.raises(DataError, match="detections of 1 images and truths of 2"):
        metric([found()], [truth(), truth()])


def test_no_images_have_no_metrics():
    assert math.isnan(froc([], [])["froc"])
    assert best_score_threshold([], []) == NO_CHOICE

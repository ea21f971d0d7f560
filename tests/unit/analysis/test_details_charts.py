"""Curves against their definitions, scikit-learn, and the metric of detection."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from medtransfer.analysis.details import charts
from medtransfer.analysis.details.calibration import Probabilities
from medtransfer.heads.suppression import Detections
from medtransfer.tasks import box_metrics

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def judged(draw, k=2):
    """Return probabilities with ties, and their target, in which every class occurs."""
    rng = np.random.default_rng(draw(SEEDS))
    n = draw(st.integers(2 * k, 50))
    target = rng.permutation(np.concatenate([np.arange(k), rng.integers(0, k, n - k)]))
    scores = rng.integers(1, draw(st.sampled_from([4, 1000])), (n, k)).astype(float)
    scores /= scores.sum(axis=1, keepdims=True)
    return of(target, scores), target, scores


def of(target, scores):
    frame = pd.DataFrame({f"score_{c}": scores[:, c] for c in range(scores.shape[1])})
    return Probabilities.of(frame.assign(target=target))


def many(seed, n=4000, k=2):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k)) + 1.2 * np.eye(k)[target]
    return target, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@settings(max_examples=50, deadline=None)
@given(judged())
def test_the_roc_curve_holds_what_every_threshold_reaches(case):
    found, target, scores = case
    line = charts.roc({"arm": [found]}).lines[0]
    assert len(line.x) == len(line.y) <= 101
    assert (np.diff(line.y) >= -1e-12).all()
    assert line.y[-1] == 1
    for threshold in np.unique(scores[:, 1]):
        flagged = scores[:, 1] >= threshold
        alarms, hits = flagged[target == 0].mean(), flagged[target == 1].mean()
        later = np.array(line.y)[np.array(line.x) >= alarms - 1e-9]
        assert later.min() >= hits - 1e-9
        earlier = np.array(line.y)[np.array(line.x) < alarms - 1e-9]
        assert (earlier <= hits + 1e-9).all()


@pytest.mark.parametrize("k", [2, 4])
def test_areas_are_those_of_scikit_learn(k):
    target, scores = many(0, k=k)
    arms = {"arm": [of(target, scores)]}
    of_sklearn = scores[:, 1] if k == 2 else scores
    auroc = metrics.roc_auc_score(target, of_sklearn, multi_class="ovr")
    one_hot = target if k == 2 else np.eye(k)[target]
    precision = metrics.average_precision_score(one_hot, of_sklearn)
    roc, pr = charts.roc(arms).lines[0], charts.pr(arms).lines[0]
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(auroc, abs=3e-3)
    assert np.trapezoid(pr.y, pr.x) == pytest.approx(precision, abs=5e-3)


@settings(max_examples=50, deadline=None)
@given(judged())
def test_precision_is_that_of_the_highest_threshold_that_reaches_the_recall(case):
    found, target, scores = case
    chart = charts.pr({"arm": [found]})
    line = chart.lines[0]
    for x, y in zip(line.x[::10], line.y[::10], strict=True):
        for threshold in np.unique(scores[:, 1])[::-1]:
            flagged = scores[:, 1] >= threshold
            if flagged[target == 1].mean() >= x - 1e-9:
                assert y == pytest.approx((target[flagged] == 1).mean())
                break
    assert chart.references[0].y == pytest.approx([target.mean()] * 2)


@settings(max_examples=50, deadline=None)
@given(judged())
def test_net_benefit_is_as_it_was_defined(case):
    found, target, scores = case
    chart = charts.decision({"arm": [found]})
    everyone, nobody = chart.references
    for at, threshold in enumerate(charts.THRESHOLDS):
        odds = threshold / (1 - threshold)
        flagged = scores[:, 1] >= threshold
        hits, alarms = (flagged & (target == 1)).mean(), (flagged & (target == 0)).mean()
        assert chart.lines[0].y[at] == pytest.approx(hits - alarms * odds)
        share = target.mean()
        assert everyone.y[at] == pytest.approx(share - (1 - share) * odds)
    assert set(nobody.y) == {0}
    low, high = chart.y_range
    assert low < 0 < max(chart.lines[0].y) <= high


def test_more_classes_and_labels_are_means_of_one_against_the_rest():
    target, scores = many(1, 300, k=3)
    each = [of((target == c).astype(int), np.column_stack([1 - s, s]))
            for c, s in enumerate(scores.T)]  # fmt: skip
    columns = {f"target_{c}": (target == c).astype(int) for c in range(3)}
    labels = pd.DataFrame(columns | {f"score_{c}": scores[:, c] for c in range(3)})
    labels.loc[:9, "target_0"] = -1
    known = of((target[10:] == 0).astype(int), np.column_stack([1 - scores, scores])[10:, [0, 3]])
    for draw in (charts.roc, charts.pr, charts.decision):
        alone = [draw({"arm": [p]}).lines[0].y for p in each]
        together = draw({"arm": [of(target, scores)]})
        assert together.lines[0].y == pytest.approx(np.mean(alone, axis=0))
        assert "each against the rest" in together.note
        alone[0] = draw({"arm": [known]}).lines[0].y
        together = draw({"arm": [Probabilities.of(labels)]})
        assert together.lines[0].y == pytest.approx(np.mean(alone, axis=0))
        assert "labels" in together.note


def test_a_line_is_the_mean_over_seeds_between_least_and_greatest():
    trials = [of(*many(seed, 200)) for seed in range(3)]
    for draw in (charts.roc, charts.pr, charts.decision, charts.reliability):
        line = draw({"arm": trials}).lines[0]
        if draw is not charts.reliability:
            alone = np.array([draw({"arm": [p]}).lines[0].y for p in trials])
            assert line.y == pytest.approx(alone.mean(axis=0))
            assert line.lo == pytest.approx(alone.min(axis=0))
            assert line.hi == pytest.approx(alone.max(axis=0))
        assert all(a <= b <= c for a, b, c in zip(line.lo, line.y, line.hi, strict=True))
        assert not draw({"arm": trials[:1]}).lines[0].lo


def test_a_single_class_has_no_curve_but_a_reliability():
    one = of(np.ones(30, int), many(0, 30)[1])
    assert charts.roc({"arm": [one]}) is charts.pr({"arm": [one]}) is None
    assert charts.decision({"arm": [one], "none": []}) is None
    assert charts.reliability({"arm": [one]}).lines[0].y == (1.0,)
    assert charts.reliability({}) is charts.froc({}) is None
    both = charts.roc({"arm": [one], "other": [of(*many(0, 30))]})
    assert [line.label for line in both.lines] == ["other"]


@pytest.mark.parametrize(("n", "bins"), [(15, 1), (100, 5), (4000, 10)])
def test_a_diagram_has_as_many_points_as_the_cases_bear(n, bins):
    target, scores = many(2, n)
    line = charts.reliability({"arm": [of(target, scores)]}).lines[0]
    assert len(line.x) == bins
    assert (np.diff(line.x) > 0).all()
    order = np.array_split(np.argsort(scores[:, 1]), bins)
    assert line.x == pytest.approx([scores[rows, 1].mean() for rows in order])
    assert line.y == pytest.approx([target[rows].mean() for rows in order])


def test_cases_of_one_probability_share_their_outcome():
    target = np.repeat([0, 1], 50)
    scores = np.full((100, 2), 0.5)
    line = charts.reliability({"arm": [of(target, scores)]}).lines[0]
    assert line.y == pytest.approx([0.5] * 5)


def test_the_likeliest_of_several_classes_is_what_a_diagram_is_about():
    target, scores = many(3, 4000, k=4)
    line = charts.reliability({"arm": [of(target, scores)]}, scaled=True).lines[0]
    hit = (scores.argmax(1) == target).mean()
    assert np.mean(line.y) == pytest.approx(hit)
    assert np.mean(line.x) == pytest.approx(scores.max(1).mean())


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, images=st.integers(1, 8), ties=st.booleans())
def test_froc_agrees_with_the_metric_at_its_rates(seed, images, ties):
    rng = np.random.default_rng(seed)
    rows, found, truths, counts = [], [], [], []
    for image in range(images):
        n = int(rng.integers(0, 4)) + (image == 0)
        corner = rng.integers(0, 60, (n, 2)).astype(float)
        boxes = np.concatenate([corner, corner + 10], 1)
        stray = rng.integers(0, 60, (int(rng.integers(0, 15)), 2)).astype(float)
        everything = np.concatenate([boxes + 1, boxes - 2, np.concatenate([stray, stray + 8], 1)])
        scores = rng.random(len(everything))
        scores = np.round(scores, 1) if ties else scores
        labels = rng.integers(0, 2, len(everything))
        truth = box_metrics.Truth(torch.tensor(boxes), torch.tensor(rng.integers(0, 2, n)))
        each = Detections(torch.tensor(everything), torch.tensor(labels), torch.tensor(scores))
        matches = box_metrics.match(each, truth, [0.5])[:, 0].tolist()
        name = f"i{image}"
        rows += [
            {"sample_id": name, "score": s, "match_50": m}
            for s, m in zip(scores, matches, strict=True)
        ]
        of_class = torch.bincount(truth.labels, minlength=2).tolist()
        counts.append({"sample_id": name, "truths_a": of_class[0], "truths_b": of_class[1]})
        found.append(each)
        truths.append(truth)
    detections = pd.DataFrame(rows, columns=["sample_id", "score", "match_50"])
    chart = charts.froc({"arm": [(detections, pd.DataFrame(counts))]})
    read = dict(zip(chart.lines[0].x, chart.lines[0].y, strict=True))
    expected = box_metrics.froc(found, truths)
    for rate in box_metrics.FROC_RATES:
        assert read[rate] == pytest.approx(expected[f"sensitivity_{rate:g}"])
    assert (np.diff(chart.lines[0].y) >= 0).all()


def test_images_without_anything_to_find_have_no_froc():
    images = pd.DataFrame({"sample_id": ["a"], "truths_x": [0]})
    found = pd.DataFrame({"sample_id": ["a"], "score": [0.5], "match_50": [-1]})
    assert charts.froc({"arm": [(found, images)]}) is None
    nothing = found.iloc[:0]
    line = charts.froc({"arm": [(nothing, images.assign(truths_x=2))]}).lines[0]
    assert set(line.y) == {0.0}

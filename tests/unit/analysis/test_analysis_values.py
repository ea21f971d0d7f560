"""Per-case values: their mean is the metric, their spread the metric's variance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from medtransfer.analysis.statistics.case_values import CASE_METRICS, case_values
from medtransfer.analysis.statistics.intervals import two_way_interval
from medtransfer.errors import ConfigError


@st.composite
def tied(draw, k=2):
    """Targets with every class present, and probabilities coarse enough to tie often."""
    n = draw(st.integers(2 * k, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    target = rng.permutation(np.concatenate([np.arange(k), rng.integers(0, k, n - k)]))
    scores = rng.integers(1, draw(st.integers(2, 6)), (n, k)).astype(float)
    return target, scores / scores.sum(axis=1, keepdims=True)


def sklearn_auroc(target, scores):
    if scores.shape[1] == 2:
        return metrics.roc_auc_score(target, scores[:, 1])
    return metrics.roc_auc_score(target, scores, multi_class="ovr", average="macro")


ORACLES = {
    "accuracy": lambda y, p: metrics.accuracy_score(y, p.argmax(1)),
    "auroc": sklearn_auroc,
    "balanced_accuracy": lambda y, p: metrics.balanced_accuracy_score(y, p.argmax(1)),
    "brier": lambda y, p: metrics.brier_score_loss(
        y, p[:, 1] if p.shape[1] == 2 else p, labels=range(p.shape[1])
    ),
}


@pytest.mark.parametrize("metric", CASE_METRICS)
@pytest.mark.parametrize("k", [2, 3, 5])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_the_mean_of_the_values_is_the_metric(metric, k, data):
    target, scores = data.draw(tied(k))
    values = case_values(metric, target, scores)
    assert values.shape == target.shape
    assert values.mean() == pytest.approx(ORACLES[metric](target, scores), abs=1e-12)


def delong_variance(target, first, second):
    """DeLong, DeLong & Clarke-Pearson (1988) as written: kernels, components, covariance."""
    areas, positives, negatives = [], [], []
    for score in (first, second):
        x, y = score[target == 1], score[target == 0]
        kernel = [[1.0 if a > b else 0.5 if a == b else 0.0 for b in y] for a in x]
        positives.append(np.mean(kernel, axis=1))
        negatives.append(np.mean(kernel, axis=0))
        areas.append(np.mean(kernel))
    s10, s01 = np.cov(positives), np.cov(negatives)
    covariance = s10 / len(positives[0]) + s01 / len(negatives[0])
    return areas[0] - areas[1], covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(8, 50), levels=st.integers(2, 30))
def test_one_seed_gives_delongs_variance_of_a_difference(seed, n, levels):
    rng = np.random.default_rng(seed)
    target = rng.permutation(np.arange(n) % 3 == 0).astype(int)
    first, second = rng.integers(0, levels, (2, n)) + target * rng.integers(0, levels)
    difference, variance = delong_variance(target, first, second)
    values = [
        case_values("auroc", target, np.column_stack([-score, score])) for score in (first, second)
    ]
    interval = two_way_interval((values[0] - values[1])[:, None])
    assert interval.estimate == pytest.approx(difference, abs=1e-12)
    assert interval.se**2 == pytest.approx(variance, abs=1e-12)
    assert interval.over == "cases"


def test_balanced_accuracy_has_the_variance_of_a_mean_of_recalls():
    target = np.repeat([0, 1], [80, 20])
    scores = np.column_stack([np.tile([0.9, 0.9, 0.9, 0.1], 25), np.tile([0.1, 0.1, 0.1, 0.9], 25)])
    hit = scores.argmax(1) == target
    expected = sum(hit[target == c].var(ddof=1) / (target == c).sum() for c in (0, 1)) / 4
    se = two_way_interval(case_values("balanced_accuracy", target, scores)[:, None]).se
    assert se**2 == pytest.approx(expected)


def test_a_perfect_classifier_has_no_spread_from_the_sizes_of_classes():
    target = np.repeat([0, 1, 2], [30, 5, 2])
    for metric in ("balanced_accuracy", "auroc"):
        assert case_values(metric, target, np.eye(3)[target]) == pytest.approx(np.ones(37))


def test_auroc_of_a_single_class_is_undefined_and_an_absent_class_is_left_out():
    assert np.isnan(case_values("auroc", [1, 1], [[0.2, 0.8], [0.4, 0.6]])).all()
    target, scores = np.array([0, 1, 0, 1]), np.random.default_rng(0).random((4, 3))
    areas = [metrics.roc_auc_score(target == c, scores[:, c]) for c in (0, 1)]
    assert case_values("auroc", target, scores).mean() == pytest.approx(np.mean(areas))


def test_no_cases_give_no_values():
    for metric in CASE_METRICS:
        assert case_values(metric, np.empty(0, int), np.empty((0, 3))).shape == (0,)


def test_an_unknown_metric_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'auroc'"):
        case_values("auc_roc", [0, 1], [[0.5, 0.5], [0.5, 0.5]])

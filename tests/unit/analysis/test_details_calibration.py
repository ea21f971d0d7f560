"""Calibration against torchmetrics and scikit-learn, and temperatures that are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn import metrics
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from medtransfer.analysis.details.calibration import (
    TEMPERATURES,
    Probabilities,
    calibration_error,
    calibration_row,
    temperature_of,
)

SEEDS = st.integers(0, 2**32 - 1)


def said(seed, n=60, k=3, sharp=1.0):
    """Return probabilities that hold exactly as often as they say, times what `sharp` adds."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    honest = special.softmax(logits, axis=1)
    target = (honest.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    scores = special.softmax(logits * sharp, axis=1)
    frame = pd.DataFrame({f"score_{c}": scores[:, c] for c in range(k)})
    return Probabilities.of(frame.assign(target=target)), target, scores


def labelled(seed, n=60, k=3, sharp=1.0):
    """Return probabilities of labels, some unknown, with their targets and scores."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k))
    target = (rng.random((n, k)) < special.expit(logits)).astype(int)
    target[rng.random((n, k)) < 0.2] = -1
    scores = special.expit(logits * sharp)
    columns = {f"target_{c}": target[:, c] for c in range(k)}
    frame = pd.DataFrame(columns | {f"score_{c}": scores[:, c] for c in range(k)})
    return Probabilities.of(frame), target, scores


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, n=st.integers(1, 80), bins=st.sampled_from([5, 15]))
def test_the_calibration_error_of_two_classes_is_that_of_torchmetrics(seed, n, bins):
    found, target, scores = said(seed, n, k=2)
    expected = binary_calibration_error(
        torch.tensor(scores[:, 1]), torch.tensor(target), n_bins=bins
    )
    assert calibration_error(*found.stated(), bins) == pytest.approx(float(expected), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, n=st.integers(1, 80), k=st.integers(3, 6))
def test_the_calibration_error_of_more_is_that_of_torchmetrics(seed, n, k):
    found, target, scores = said(seed, n, k)
    expected = multiclass_calibration_error(torch.tensor(scores), torch.tensor(target), k)
    assert calibration_error(*found.stated()) == pytest.approx(float(expected), abs=1e-6)


def test_probabilities_of_zero_and_one_have_a_bin():
    truth, scores = np.array([True, True, False]), np.array([0.0, 1.0, 1.0])
    expected = binary_calibration_error(torch.tensor(scores), torch.tensor(truth).long())
    assert calibration_error(truth, scores) == pytest.approx(float(expected))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, k=st.integers(2, 5))
def test_brier_score_and_likelihood_are_those_of_scikit_learn(seed, k):
    found, target, scores = said(seed, 50, k)
    of = scores[:, 1] if k == 2 else scores
    brier = metrics.brier_score_loss(target, of, labels=range(k))
    assert found.brier() == pytest.approx(brier)
    assert found.nll() == pytest.approx(metrics.log_loss(target, scores, labels=range(k)))


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_of_labels_only_what_is_known_counts(seed):
    found, target, scores = labelled(seed)
    truth, score = target[target >= 0], scores[target >= 0]
    assert found.brier() == pytest.approx(((score - truth) ** 2).mean())
    assert found.nll() == pytest.approx(metrics.log_loss(truth, score, labels=[0, 1]))
    expected = binary_calibration_error(torch.tensor(score), torch.tensor(truth))
    assert calibration_error(*found.stated()) == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("made", [said, labelled])
@pytest.mark.parametrize("sharp", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(made, sharp):
    assert temperature_of(made(0, 6000, sharp=sharp)[0]) == pytest.approx(sharp, rel=0.06)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, k=st.integers(2, 4), sharp=st.floats(0.3, 4))
def test_no_other_temperature_is_likelier(seed, k, sharp):
    found = said(seed, 40, k, sharp)[0]
    best = found.nll(temperature_of(found))
    others = [found.nll(float(t)) for t in np.geomspace(*TEMPERATURES, 60)]
    assert best <= min(others) + 1e-6


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, temperature=st.floats(0.2, 5))
def test_scaling_keeps_the_order_of_classes_and_gives_probabilities(seed, temperature):
    plain = said(seed)[0]
    scaled = plain.scaled(temperature)
    assert (scaled.scores.argmax(1) == plain.scores.argmax(1)).all()
    assert scaled.scores.sum(axis=1) == pytest.approx(1)
    assert scaled.nll() == pytest.approx(plain.nll(temperature))
    labels = labelled(seed, sharp=0.3)[0]
    scaled = labels.scaled(temperature)
    assert scaled.nll() == pytest.approx(labels.nll(temperature))
    assert ((scaled.scores > 0.5) == (labels.scores > 0.5)).all()


def test_a_temperature_of_one_changes_nothing():
    for made in (said, labelled):
        plain = made(1)[0]
        assert plain.scaled(1.0).scores == pytest.approx(plain.scores)


def test_certainty_that_is_wrong_costs_much_but_not_everything():
    frame = pd.DataFrame({"target": [0, 1], "score_a": [0.0, 0.0], "score_b": [1.0, 1.0]})
    assert 10 < Probabilities.of(frame).nll() < np.inf
    frame = pd.DataFrame({"target_a": [0, 1], "score_a": [1.0, 0.0]})
    assert 10 < Probabilities.of(frame).nll() < np.inf


def test_tables_without_probabilities_have_none():
    assert Probabilities.of(pd.DataFrame({"dice": [0.5]})) is None
    assert Probabilities.of(pd.DataFrame({"target": [], "score_a": [], "score_b": []})) is None
    assert Probabilities.of(pd.DataFrame({"target_a": [-1], "score_a": [0.5]})) is None
    assert Probabilities.of(pd.DataFrame({"score_a": [0.5]})) is None


def test_a_row_holds_means_over_trials_before_and_after_scaling():
    trials = [said(seed, 4000, sharp=3.0)[0] for seed in range(2)]
    row = calibration_row("arm", trials, [2.5, 3.5])
    assert row.temperature == pytest.approx(3.0)
    assert row.brier == pytest.approx(np.mean([each.brier() for each in trials]))
    assert row.nll_scaled == pytest.approx((trials[0].nll(2.5) + trials[1].nll(3.5)) / 2)
    assert row.ece_scaled < row.ece
    assert row.brier_scaled < row.brier
    bare = calibration_row("arm", trials, None)
    assert (bare.ece, bare.temperature, bare.ece_scaled) == (row.ece, None, None)

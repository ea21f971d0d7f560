"""Metrics of classification, with scikit-learn as the oracle."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from medtransfer.data.base import DataSpec
from medtransfer.errors import ConfigError
from medtransfer.tasks.classification import DIRECTIONS, Classification

# Weighing each class by its size, and not by the number of classes, would be seen.
SHARES = {2: (0.8, 0.2), 3: (0.6, 0.3, 0.1), 5: (0.4, 0.3, 0.1, 0.1, 0.1)}
CASES = [(classes, seed) for classes in SHARES for seed in range(4)]


@pytest.fixture
def make_task():
    def make(classes: int) -> Classification:
        names = tuple(f"class{k}" for k in range(classes))
        spec = DataSpec(names, 1, 8, (1,) * classes, "data", "split")
        parts = dict.fromkeys(("schedule", "optimizer", "make_optimizer"))
        parts["strategy"] = SimpleNamespace(distils=False)
        backbone = nn.Flatten()
        backbone.embed = backbone.forward
        head = nn.LazyLinear(classes)
        return Classification(
            backbone=backbone, head=head, loss=nn.CrossEntropyLoss(), spec=spec, **parts
        )

    return make


def draw(
    classes: int, seed: int, *, cases: int = 200, ties: bool = True
) -> dict[str, torch.Tensor]:
    """Return outputs that know something of their targets, many of them equal to each other."""
    rng, cases = np.random.default_rng(seed), 200
    target = np.r_[np.arange(classes), rng.choice(classes, cases - classes, p=SHARES[classes])]
    logits = rng.normal(size=(cases, classes))
    logits[np.arange(cases), target] += 0.7
    logits = torch.tensor(np.round(logits) if ties else logits, dtype=torch.float32)
    return from_logits(logits, torch.tensor(target))


def from_logits(logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    nll = nn.functional.cross_entropy(logits, target, reduction="none")
    return {"scores": logits.softmax(1), "target": target, "nll": nll}


def by_hand(kept: dict[str, torch.Tensor]) -> dict[str, float]:
    scores, target = kept["scores"].numpy(), kept["target"].numpy()
    classes = scores.shape[1]
    called = scores.argmax(1)
    labels = np.arange(classes)
    one_hot = np.eye(classes)[target]
    if classes == 2:
        ranked = metrics.roc_auc_score(target, scores[:, 1])
        precision = metrics.average_precision_score(target, scores[:, 1])
        brier = metrics.brier_score_loss(target, scores[:, 1])
    else:
        ranked = metrics.roc_auc_score(target, scores, multi_class="ovr", average="macro")
        precision = metrics.average_precision_score(one_hot, scores, average="macro")
        brier = metrics.brier_score_loss(target, scores, labels=labels)
    return {
        "auroc": ranked,
        "average_precision": precision,
        "brier": brier,
        "loss": metrics.log_loss(target, scores.astype(float), labels=labels),
        "accuracy": metrics.accuracy_score(target, called),
        "balanced_accuracy": metrics.balanced_accuracy_score(target, called),
        "f1": metrics.f1_score(target, called, average="macro"),
    }


@pytest.mark.filterwarnings("ignore:.*do not sum to one")  # they do in single precision
@pytest.mark.parametrize(("classes", "seed"), CASES)
def test_metrics_equal_those_of_scikit_learn(classes, seed, make_task):
    kept = draw(classes, seed)
    found = make_task(classes).evaluate("val", kept)
    expected = by_hand(kept)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("classes", [3, 5])
def test_mcc_of_several_classes_is_that_of_the_likeliest_class(classes, make_task):
    kept = draw(classes, seed=0)
    expected = metrics.matthews_corrcoef(kept["target"], kept["scores"].argmax(1))
    assert make_task(classes).evaluate("test", kept)["mcc"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_is_the_best_on_validation_and_kept_for_the_test(seed, make_task):
    task, val, test = make_task(2), draw(2, seed), draw(2, seed + 100)
    task.evaluate("val", val)
    chosen = float(task.threshold)

    negative, positive, candidates = metrics.roc_curve(val["target"], val["scores"][:, 1])
    youden = positive - negative
    assert chosen in candidates[np.isclose(youden, youden.max())]

    found = task.evaluate("test", test)
    flagged, target = test["scores"][:, 1].numpy() >= chosen, test["target"].numpy()
    assert float(task.threshold) == chosen
    assert found["sensitivity"] == pytest.approx(metrics.recall_score(target, flagged))
    assert found["specificity"] == pytest.approx(metrics.recall_score(1 - target, ~flagged))
    assert found["mcc"] == pytest.approx(metrics.matthews_corrcoef(target, flagged), abs=1e-6)


def test_the_threshold_travels_with_the_state_dict(make_task):
    task, other = make_task(2), make_task(2)
    task.evaluate("val", draw(2, 0))
    other.load_state_dict({**other.state_dict(), "threshold": task.state_dict()["threshold"]})
    assert float(other.threshold) == float(task.threshold) != 0.5


def test_auroc_does_not_suffer_from_confident_scores(make_task):
    # The probability of the first class rounds to one for all, that of the last one still ranks.
    logits = torch.stack([torch.zeros(40), torch.linspace(-40, -20, 40)], dim=1)
    kept = from_logits(logits, (torch.arange(40) >= 20).long())
    assert make_task(2).evaluate("val", kept)["auroc"] == 1.0


@pytest.mark.filterwarnings("ignore:No positive samples")
def test_a_class_without_cases_does_not_count_in_averages(make_task):
    kept = draw(5, seed=0)
    seen = kept["target"] != 4
    kept = {name: values[seen] for name, values in kept.items()}
    scores, target = kept["scores"].numpy(), kept["target"].numpy()
    found = make_task(5).evaluate("val", kept)
    areas = [metrics.roc_auc_score(target == k, scores[:, k]) for k in range(4)]
    recalls = metrics.recall_score(target, scores.argmax(1), labels=range(4), average="macro")
    assert found["auroc"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert found["balanced_accuracy"] == pytest.approx(recalls, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_one_class_alone_has_no_auroc(classes, make_task):
    kept = draw(classes, seed=0)
    kept = {name: values[kept["target"] == 0] for name, values in kept.items()}
    assert np.isnan(make_task(classes).evaluate("test", kept)["auroc"])


def test_calibration_error_is_the_gap_between_confidence_and_truth(make_task):
    share = torch.tensor([0.25] * 40 + [0.75] * 40)
    target = torch.tensor([1] * 20 + [0] * 20 + [1] * 30 + [0] * 10)  # true: 0.5 and 0.75
    logits = torch.stack([torch.zeros(80), torch.logit(share)], dim=1)
    found = make_task(2).evaluate("val", from_logits(logits, target))
    assert found["ece"] == pytest.approx((0.25 + 0.0) / 2, abs=1e-6)


@pytest.mark.parametrize("classes", SHARES)
def test_every_metric_has_a_direction_that_tells_better_from_worse(classes, make_task):
    kept = draw(classes, seed=0, ties=False)
    ideal = from_logits(20.0 * nn.functional.one_hot(kept["target"], classes), kept["target"])
    task = make_task(classes)
    usual, best = task.evaluate("val", kept), task.evaluate("val", ideal)
    assert usual.keys() <= DIRECTIONS.keys()
    for name in usual:
        better = best[name] > usual[name]
        assert better == (Classification.direction(name) == "max"), name


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'auroc'"):
        Classification.direction("auruc")


def test_the_headline_is_a_metric_that_grows():
    assert Classification.direction(Classification.headline) == "max"


def test_a_step_keeps_each_case_and_returns_the_loss(make_task):
    task = make_task(3)
    batch = {
        "image": torch.rand(4, 1, 8, 8),
        "target": torch.tensor([0, 1, 2, 0]),
        "index": torch.tensor([7, 5, 3, 1]),
    }
    loss, kept = task.step(batch)
    torch.testing.assert_close(kept["scores"].sum(1), torch.ones(4))
    assert torch.equal(kept["index"], batch["index"])
    assert torch.equal(kept["target"], batch["target"])
    torch.testing.assert_close(kept["nll"].mean(), loss)
    assert kept["scores"].shape[1] == 3

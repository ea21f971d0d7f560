"""Losses against torch and against sums written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from medtransfer.components import build
from medtransfer.errors import ConfigError
from medtransfer.tasks.losses import CrossEntropy, Focal, Loss

COUNTS = (60, 30, 10)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def target() -> torch.Tensor:
    return torch.tensor([0, 1, 2] * 4)


def focal_by_hand(logits, target, gamma, weight) -> float:
    total, scale = 0.0, 0.0
    for row, k in zip(logits.softmax(1).tolist(), target.tolist(), strict=True):
        log = torch.log(torch.tensor(row[k]))
        total += -weight[k] * (1 - row[k]) ** gamma * float(log)
        scale += weight[k]
    return total / scale


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing, logits, target):
    loss = CrossEntropy(COUNTS, "none", smoothing)
    expected = cross_entropy(logits, target, label_smoothing=smoothing)
    torch.testing.assert_close(loss(logits, target), expected)


def test_balanced_classes_have_equal_total_weight(logits, target):
    loss = CrossEntropy(COUNTS, "balanced", 0.0)
    totals = loss.weight * torch.tensor(COUNTS)
    torch.testing.assert_close(totals, torch.full((3,), sum(COUNTS) / 3))
    expected = cross_entropy(logits, target, weight=torch.tensor([100 / 180, 100 / 90, 100 / 30]))
    torch.testing.assert_close(loss(logits, target), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_focal_is_the_sum_of_its_definition(gamma, class_weights, logits, target):
    loss = Focal(COUNTS, class_weights, gamma)
    weight = [1.0] * 3 if class_weights == "none" else [100 / 180, 100 / 90, 100 / 30]
    expected = focal_by_hand(logits, target, gamma, weight)
    assert float(loss(logits, target)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_focal_without_gamma_is_cross_entropy(class_weights, logits, target):
    focal, plain = Focal(COUNTS, class_weights, 0.0), CrossEntropy(COUNTS, class_weights, 0.0)
    torch.testing.assert_close(focal(logits, target), plain(logits, target))


def test_focal_counts_easy_cases_less():
    easy, hard = torch.tensor([[4.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    target = torch.tensor([0])
    plain, focal = CrossEntropy((1, 1), "none", 0.0), Focal((1, 1), "none", 2.0)
    assert focal(easy, target) / plain(easy, target) < 0.01
    assert focal(hard, target) / plain(hard, target) > 0.5


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients_of_certain_cases_are_finite(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0]], requires_grad=True)
    Focal((1, 1), "none", gamma)(logits, torch.tensor([0, 0])).backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("cls", [CrossEntropy, Focal])
def test_a_class_without_training_cases_keeps_the_loss_finite(cls, logits):
    loss = cls((5, 0, 5), "balanced", 0.0)
    assert torch.isfinite(loss.weight).all()
    assert torch.isfinite(loss(logits, torch.tensor([0, 2] * 6)))


@pytest.mark.parametrize("choice", ["CrossEntropy", "Focal"])
def test_weights_are_no_part_of_a_checkpoint(choice):
    node = {"_target_": f"medtransfer.tasks.losses.{choice}", "class_weights": "balanced"}
    argument = {"CrossEntropy": "label_smoothing", "Focal": "gamma"}[choice]
    loss = build({**node, argument: 0.0}, Loss, counts=COUNTS)
    assert loss.state_dict() == {}
    assert loss.to(torch.float64).weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("choice", "key", "value"),
    [("CrossEntropy", "label_smoothing", 1.0), ("Focal", "gamma", -1.0), ("Focal", "gamma", "x")],
)
def test_values_without_meaning_are_refused(choice, key, value):
    node = {"_target_": f"medtransfer.tasks.losses.{choice}", "class_weights": "none", key: value}
    with pytest.raises(ConfigError, match=rf"loss\.{key}"):
        build(node, Loss, counts=COUNTS)

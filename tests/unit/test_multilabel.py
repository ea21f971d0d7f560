"""Several labels for an image, some unknown: metrics, loss and tables against scikit-learn."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from torch import nn

from medtransfer.data.base import DataSpec
from medtransfer.errors import ConfigError
from medtransfer.tasks.label_losses import BinaryCrossEntropy, LabelLoss, label_nll
from medtransfer.tasks.multilabel import DIRECTIONS, Multilabel

LABELS = ("edema", "mass", "none at all", "average_precision")  # one named like a metric
seeds = pytest.mark.parametrize("seed", range(4))


def made(labels=LABELS) -> Multilabel:
    backbone = nn.Flatten()
    backbone.embed = backbone.forward
    parts = dict.fromkeys(("schedule", "optimizer", "make_optimizer"))
    return Multilabel(
        backbone=backbone,
        head=nn.Linear(16, len(labels)),
        loss=BinaryCrossEntropy((5,) * len(labels), "none"),
        strategy=SimpleNamespace(distils=False),
        spec=DataSpec(labels, 1, 4, (5,) * len(labels), "data", "split", "labels"),
        **parts,
    )


def draw(seed: int, cases: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits with ties, and targets of which a quarter is unknown."""
    rng = np.random.default_rng(seed)
    target = (rng.random((cases, len(LABELS))) < (0.5, 0.2, 0.1, 0.7)).astype(np.int64)
    logits = np.round(rng.normal(size=target.shape) + target)
    target[rng.random(target.shape) < 0.25] = -1
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(target)


def kept_of(logits: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
    nll = label_nll(logits, target)
    index = torch.arange(len(target)) + 10
    return {"index": index, "scores": logits.sigmoid(), "target": target, "nll": nll}


@seeds
def test_metrics_are_those_of_scikit_learn_where_labels_are_known(seed):
    logits, target = draw(seed)
    found = made().evaluate("test", kept_of(logits, target))
    oracles = {
        "auroc": metrics.roc_auc_score,
        "average_precision": metrics.average_precision_score,
    }
    for name, oracle in oracles.items():
        values = []
        for k, label in enumerate(LABELS):
            known = target[:, k] >= 0
            values.append(oracle(target[known, k], logits[known, k]))
            assert found[f"{name}_{label}"] == pytest.approx(values[-1], abs=1e-6)
        assert found[name] == pytest.approx(np.mean(values), abs=1e-6)
    known = target >= 0
    truth, score = target[known].numpy(), logits[known].sigmoid().double().numpy()
    assert found["brier"] == pytest.approx(metrics.brier_score_loss(truth, score), abs=1e-6)
    assert found["loss"] == pytest.approx(metrics.log_loss(truth, score), abs=1e-5)


@seeds
def test_what_is_unknown_changes_nothing(seed):
    logits, target = draw(seed)
    other = torch.where(target < 0, 5 * torch.randn_like(logits), logits)
    task = made()
    found, again = (task.evaluate("val", kept_of(x, target)) for x in (logits, other))
    assert found == again
    for weights in ("none", "balanced"):
        loss = BinaryCrossEntropy((5, 20, 1, 0), weights)
        assert torch.equal(loss(logits, target), loss(other, target))


@pytest.mark.parametrize("value", [0, 1, -1])
def test_a_label_of_one_value_has_no_say_in_the_mean(value):
    logits, target = draw(0)
    target[:, 2] = value
    found = made().evaluate("val", kept_of(logits, target))
    for name in ("auroc", "average_precision"):
        assert np.isnan(found[f"{name}_{LABELS[2]}"])
        others = [found[f"{name}_{label}"] for label in LABELS if label != LABELS[2]]
        assert found[name] == pytest.approx(np.mean(others))
    target[:] = value
    assert np.isnan(made().evaluate("val", kept_of(logits, target))["auroc"])


def test_every_metric_has_a_direction_that_tells_better_from_worse():
    logits, target = draw(0)
    task, kept = made(), kept_of(logits, target)
    ideal = kept_of(20.0 * (2 * target - 1), target)
    usual, best = task.evaluate("val", kept), task.evaluate("val", ideal)
    assert set(DIRECTIONS) < set(usual)
    for name in usual:
        assert (best[name] > usual[name]) == (Multilabel.direction(name) == "max"), name
        task.require_metric(name)
    assert Multilabel.direction(Multilabel.headline) == "max"


def test_metrics_that_there_are_not_are_refused():
    for name in ("auruc", "brier_edema", "average", "average_edema"):
        with pytest.raises(ConfigError):
            Multilabel.direction(name)
    with pytest.raises(ConfigError, match="did you mean 'average_precision_mass'"):
        made().require_metric("average_precision_mas")


def test_columns_hold_targets_and_scores_by_label():
    logits, target = draw(1)
    columns = made().columns(kept_of(logits, target))
    assert len(columns) == 2 * len(LABELS)
    for k, label in enumerate(LABELS):
        np.testing.assert_array_equal(columns[f"target_{label}"], target[:, k])
        np.testing.assert_allclose(columns[f"score_{label}"], logits[:, k].sigmoid())


def test_a_step_keeps_each_case_and_returns_the_loss():
    task, target = made(), torch.tensor([[1, 0, -1, 1], [-1, -1, -1, -1], [0, 0, 1, 0]])
    batch = {"image": torch.rand(3, 1, 4, 4), "target": target, "index": torch.tensor([4, 2, 9])}
    loss, kept = task.step(batch)
    assert {len(values) for values in kept.values()} == {3}
    torch.testing.assert_close(kept["nll"].sum() / (target >= 0).sum(), loss)
    torch.testing.assert_close(kept["scores"], task(batch["image"]).sigmoid())
    assert (kept["nll"][target < 0] == 0).all()


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 99))
def test_the_loss_is_the_mean_of_torchs_over_what_is_known(labels, cases, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(cases, labels, generator=generator)
    target = torch.randint(-1, 2, (cases, labels), generator=generator)
    known = target >= 0
    found = BinaryCrossEntropy((1,) * labels, "none")(logits, target)
    if known.any():
        oracle = nn.BCEWithLogitsLoss()
        torch.testing.assert_close(found, oracle(logits[known], target[known].float()))
    else:
        assert found == 0


def test_nothing_known_teaches_nothing():
    logits = torch.randn(4, 3, requires_grad=True)
    BinaryCrossEntropy((1, 2, 3), "balanced")(logits, torch.full((4, 3), -1)).backward()
    assert (logits.grad == 0).all()


def test_balanced_gives_what_shows_a_label_the_same_say_for_every_label():
    counts = (30, 3)
    loss = BinaryCrossEntropy(counts, "balanced")
    assert isinstance(loss, LabelLoss)
    torch.testing.assert_close(loss.weight * torch.tensor(counts), torch.full((2,), 16.5))
    logits = torch.zeros(60, 2, requires_grad=True)
    target = torch.zeros(60, 2, dtype=torch.int64)
    target[:30, 0] = target[30:33, 1] = 1
    loss(logits, target).backward()
    shown = [-logits.grad[target[:, k] == 1, k].sum() for k in range(2)]
    torch.testing.assert_close(*shown)
    absent = logits.grad[target == 0]
    torch.testing.assert_close(absent, absent[0].expand_as(absent))


def test_cases_are_ranked_by_what_is_known_of_them():
    logits = torch.tensor([[5.0, -5, -5, -5], [5, 5, -5, -5], [0, 0, 0, 0], [-5, 5, 5, 5]])
    target = torch.tensor([[1, 0, 0, 0], [1, 0, -1, 0], [-1, -1, -1, -1], [1, 0, 0, -1]])
    examples = made().examples(None, kept_of(logits, target))
    cases = [case for group in examples.groups.values() for case in group]
    assert [case.index for case in cases] == [10, 11, 13]
    assert cases[0].words[1:] == ("true: edema", "said: edema 0.99")
    assert cases[2].words[1] == "true: edema"
    assert "mass 0.99" in cases[2].words[2]

"""Grades: classes in an order, with scikit-learn as the oracle."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from medtransfer.data.base import DataSpec
from medtransfer.errors import ConfigError
from medtransfer.tasks.classification import Classification
from medtransfer.tasks.exam_classification import ExamClassification


def graded(classes: int, *, ordinal: bool = True, kind=Classification) -> Classification:
    spec = DataSpec(tuple(f"grade{k}" for k in range(classes)), 1, 8, (1,) * classes, "d", "s")
    parts = dict.fromkeys(("loss", "schedule", "optimizer", "make_optimizer"))
    strategy = SimpleNamespace(distils=False)
    return kind(
        backbone=nn.Identity(),
        head=nn.Identity(),
        spec=spec,
        strategy=strategy,
        ordinal=ordinal,
        **parts,
    )


def draw(classes: int, seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    target = torch.tensor(np.r_[np.arange(classes), rng.integers(0, classes, 80)])
    logits = torch.tensor(rng.normal(size=(len(target), classes)), dtype=torch.float32)
    logits -= (torch.arange(classes) - target[:, None]).abs() * 0.7
    nll = nn.functional.cross_entropy(logits, target, reduction="none")
    return {"scores": logits.softmax(1), "target": target, "nll": nll}


@pytest.mark.parametrize("classes", [3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_agreement_and_error_of_grades_equal_those_of_scikit_learn(classes, seed):
    kept = draw(classes, seed)
    called, target = kept["scores"].argmax(1), kept["target"]
    found = graded(classes).evaluate("val", kept)
    expected = metrics.cohen_kappa_score(target, called, weights="quadratic")
    assert found["quadratic_kappa"] == pytest.approx(expected, abs=1e-5)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(target, called), abs=1e-6)


def test_the_order_changes_nothing_else():
    kept = draw(4, seed=0)
    plain = graded(4, ordinal=False).evaluate("val", kept)
    ordered = graded(4).evaluate("val", kept)
    assert ordered.keys() - plain.keys() == {"quadratic_kappa", "mae"}
    assert {name: ordered[name] for name in plain} == pytest.approx(plain, nan_ok=True)


def test_a_grade_beside_the_true_one_is_better_than_one_far_off():
    target = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    near, far = target.clone(), target.clone()
    near[0], far[0] = 1, 3

    def evaluated(called: torch.Tensor) -> dict[str, float]:
        scores = nn.functional.one_hot(called, 4).float()
        return graded(4).evaluate("val", {"scores": scores, "target": target, "nll": scores[:, 0]})

    found, worse = evaluated(near), evaluated(far)
    assert found["accuracy"] == worse["accuracy"]
    assert found["quadratic_kappa"] > worse["quadratic_kappa"]
    assert found["mae"] < worse["mae"]


@pytest.mark.parametrize("kind", [Classification, ExamClassification])
def test_two_classes_have_no_order_to_speak_of(kind):
    with pytest.raises(ConfigError, match=r"(?s)three grades or more.*task\.ordinal=false"):
        graded(2, kind=kind)
    graded(2, ordinal=False, kind=kind)


def test_metrics_of_grades_go_the_right_way_and_are_refused_without_grades():
    assert Classification.direction("quadratic_kappa") == "max"
    assert Classification.direction("mae") == "min"
    for name in ("quadratic_kappa", "mae"):
        graded(3).require_metric(name)
        with pytest.raises(ConfigError, match=r"task\.ordinal=true"):
            graded(3, ordinal=False).require_metric(name)


def test_metrics_of_two_classes_are_refused_for_more():
    graded(2, ordinal=False).require_metric("sensitivity")
    with pytest.raises(ConfigError, match="there are 3"):
        graded(3).require_metric("sensitivity")
    graded(3).require_metric("auroc")

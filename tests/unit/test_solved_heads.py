"""Heads that are solved from features, against scikit-learn on the same features."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn

from medtransfer.backbones.pixels import Pixels
from medtransfer.components import build
from medtransfer.errors import ConfigError, DataError
from medtransfer.heads.linear import Linear
from medtransfer.strategies.base import Strategy
from medtransfer.strategies.classic_head import ClassicHead, Fitted
from medtransfer.strategies.linear_probe import LinearProbe

BASE = {"batchnorm": "auto", "search_space": {}}
CHOICES = {"neighbours": (5,), "C": (1.0,), "max_features": (0.5,), "trees": 20}
KINDS = ("knn", "svm", "random_forest")
SIZE = 12  # of the features
every_kind = pytest.mark.parametrize("kind", KINDS)
every_number = pytest.mark.parametrize("classes", [2, 3])


def table(classes, count=90, seed=0):
    """Return features of unlike scales, whose classes overlap, and targets."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (count,), generator=generator)
    targets[:classes] = torch.arange(classes)
    features = torch.randn(count, SIZE, generator=generator)
    features[:, 0] += targets
    features[:, 1] -= (targets == 1).float()
    return 3 + features * torch.logspace(-1, 1, SIZE), targets


def weights_of(classes, *, weighted):
    return torch.tensor([0.2, 1.0, 3.0])[:classes] if weighted else None


def begun(strategy, classes, norm="none") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Module()
    model.backbone = Pixels(channels=3, size=2, image_size=8)
    model.head = Linear(SIZE, classes, norm=norm, dropout=0.3)
    assert model.backbone.embedding_size == SIZE
    strategy.trainable(model)
    strategy.setup(model, [], statistics=True)
    return model


def solved(strategy, classes, *, norm="none", weights=None, data=None, score=lambda: 0.0):
    """Return the head in eval mode, and what was chosen."""
    model = begun(strategy, classes, norm)
    chosen = strategy.fit_head(model, *(data or table(classes)), weights, score)
    return model.head.eval(), chosen


def probabilities(head, features):
    with torch.no_grad():
        return head(features).softmax(1).numpy()


def probe(*c):
    return LinearProbe(C=c or (0.5,), **BASE)


def classic(kind, **changed):
    return ClassicHead(kind=kind, **{**CHOICES, **changed}, **BASE)


@every_number
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_probe_is_a_logistic_regression_at_its_optimum(classes, norm, weighted):
    features, targets = table(classes)
    weights = weights_of(classes, weighted=weighted)
    head, _ = solved(probe(), classes, norm=norm, weights=weights)

    mean, variance = features.mean(0), features.var(0, correction=0)
    inputs = (features - mean) / (variance + 1e-5).sqrt() if norm == "batch" else features
    exact = LogisticRegression(
        C=0.5,
        solver="newton-cg",
        tol=1e-10,
        max_iter=1000,
        class_weight=None if weights is None else dict(enumerate(weights.tolist())),
    ).fit(inputs.double().numpy(), targets)
    expected = exact.predict_proba(inputs.double().numpy())
    np.testing.assert_allclose(probabilities(head, features), expected, atol=1e-5)


def test_the_probe_weighs_classes():
    features, _ = table(2)
    rare = [
        probabilities(solved(probe(), 2, weights=weights)[0], features)[:, 1].mean()
        for weights in (None, torch.tensor([0.1, 5.0]))
    ]
    assert rare[1] > rare[0] + 0.1


def test_the_probe_takes_the_c_that_scores_best():
    def choose(wanted):
        strategy = probe(10.0, 0.01, 1.0)
        model, norms = begun(strategy, 2), []

        def score():
            norms.append(float(model.head.linear.weight.detach().norm()))
            return wanted(len(norms) - 1)

        chosen = strategy.fit_head(model, *table(2), None, score)
        assert norms == sorted(norms)  # from the strongest penalty to the weakest
        return chosen, norms.index(float(model.head.linear.weight.detach().norm()))

    assert choose(lambda step: [0.1, 0.9, 0.2][step]) == ({"C": 1.0}, 1)
    assert choose(lambda step: [0.1, 0.2, 0.9][step]) == ({"C": 10.0}, 2)
    assert choose(lambda _: 0.5) == ({"C": 0.01}, 0)


@pytest.mark.parametrize("present", [(0, 1), (1, 2), (0, 2, 3)])
def test_the_probe_gives_absent_classes_next_to_nothing(present):
    features, targets = table(len(present))
    targets = torch.tensor(present)[targets]
    head, _ = solved(probe(), 4, data=(features, targets))
    exact = LogisticRegression(C=0.5, tol=1e-10, solver="newton-cg").fit(features, targets)
    found = probabilities(head, features)
    assert found[:, [k for k in range(4) if k not in present]].max() < 1e-12
    np.testing.assert_allclose(found[:, present], exact.predict_proba(features), atol=1e-5)


def test_the_probe_wants_a_linear_head():
    model = nn.Module()
    model.backbone, model.head = nn.Identity(), nn.Sequential(nn.Linear(SIZE, 2))
    with pytest.raises(ConfigError, match=r"(?s)linear head, not Sequential.*head=linear"):
        probe().trainable(model)


@pytest.mark.parametrize("strategy", [probe(), *(classic(kind) for kind in KINDS)])
def test_nothing_is_learnt_of_one_class(strategy):
    features, targets = table(2)
    with pytest.raises(DataError, match=r"(?s)one class only.*dataset\.fraction"):
        solved(strategy, 2, data=(features, torch.ones_like(targets)))


def reference(kind, features, targets, weights):
    """Return scikit-learn's own scores of new features, as a function."""
    of_class = None if weights is None else dict(enumerate(weights.tolist()))
    if kind == "random_forest":
        forest = RandomForestClassifier(
            20, max_features=0.5, class_weight=of_class, random_state=torch.initial_seed() % 2**32
        )
        return forest.fit(features, targets).predict_proba
    scaler = StandardScaler().fit(features)
    inputs = scaler.transform(features)
    if kind == "svm":
        machine = SVC(C=1.0, class_weight=of_class).fit(inputs, targets)
        return lambda new: machine.decision_function(scaler.transform(new))
    neighbours = KNeighborsClassifier(5, weights="distance").fit(inputs, targets)
    return lambda new: neighbours.predict_proba(scaler.transform(new))


# scikit-learn's neighbours heed no class weights: see the next test
@pytest.mark.parametrize(
    ("kind", "weighted"),
    [*((kind, False) for kind in KINDS), ("svm", True), ("random_forest", True)],
)
@every_number
def test_a_classic_head_scores_as_scikit_learn_does(kind, classes, weighted):
    features, targets = table(classes)
    weights = weights_of(classes, weighted=weighted)
    head, chosen = solved(classic(kind), classes, weights=weights)
    assert set(chosen.values()) <= {5, 1.0, 0.5, 20}

    new = table(classes, seed=1)[0]
    scores = reference(kind, features.numpy(), targets.numpy(), weights)(new.numpy())
    if kind != "svm":
        expected = scores
    elif classes == 2:
        expected = torch.stack([-torch.tensor(scores), torch.tensor(scores)], 1).div(2).softmax(1)
    else:
        expected = torch.tensor(scores).softmax(1)
    found = head(new)
    assert (found.shape, found.dtype) == ((90, classes), torch.float32)
    np.testing.assert_allclose(found.softmax(1), expected, atol=1e-5)


@every_number
def test_each_neighbour_votes_by_distance_and_class(classes):
    features, targets = table(classes)
    weights = weights_of(classes, weighted=True)
    head, _ = solved(classic("knn"), classes, weights=weights)
    new = table(classes, seed=1)[0]

    mean, std = features.mean(0), features.std(0, correction=0)
    distances = torch.cdist(((new - mean) / std).double(), ((features - mean) / std).double())
    near, which = distances.topk(5, largest=False)
    votes = torch.zeros(len(new), classes).double()
    votes.scatter_add_(1, targets[which], weights[targets[which]].double() / near)
    expected = votes / votes.sum(1, keepdim=True)
    np.testing.assert_allclose(probabilities(head, new), expected, atol=1e-5)


@every_kind
def test_a_weight_makes_a_class_more_likely(kind):
    features, _ = table(3)
    shares = [
        probabilities(solved(classic(kind), 3, weights=weights)[0], features + 0.3)[:, 2].mean()
        for weights in (torch.tensor([1.0, 1.0, 0.05]), None, torch.tensor([0.05, 0.05, 1.0]))
    ]
    assert shares[0] < shares[1] < shares[2]


@pytest.mark.parametrize("weighted", [True, False])
@every_kind
@pytest.mark.parametrize("absent", [0, 1, 2])
def test_a_classic_head_gives_absent_classes_next_to_nothing(kind, absent, weighted):
    features, targets = table(2)
    targets = torch.tensor([k for k in range(3) if k != absent])[targets]
    weights = weights_of(3, weighted=weighted)
    head, _ = solved(classic(kind), 3, weights=weights, data=(features, targets))
    found = probabilities(head, features)
    assert found.shape == (90, 3)
    assert found[:, absent].max() < 1e-5


@every_kind
@every_number
def test_a_classic_head_is_what_it_was_after_a_checkpoint(kind, classes):
    head, _ = solved(classic(kind), classes, weights=weights_of(classes, weighted=True))
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    file.seek(0)
    again = Fitted(classes)
    torch.manual_seed(123)
    again.load_state_dict(torch.load(file, weights_only=True))
    new = table(classes, seed=1)[0]
    assert torch.equal(again(new), head(new))


@pytest.mark.parametrize(
    ("kind", "changed", "chosen"),
    [
        ("knn", {"neighbours": (1, 3, 9)}, {"neighbours": 3}),
        ("svm", {"C": (0.1, 1.0, 10.0)}, {"C": 1.0}),
        ("random_forest", {"max_features": (0.1, 0.4, 1.0)}, {"max_features": 0.4, "trees": 20}),
    ],
)
def test_the_setting_that_scores_best_is_taken(kind, changed, chosen):
    scores = iter([0.3, 0.8, 0.5])
    head, found = solved(classic(kind, **changed), 2, score=lambda: next(scores))
    assert found == chosen
    assert chosen.items() <= head.settings.items()


def test_more_neighbours_than_cases_are_passed_over_or_refused():
    data = tuple(part[:6] for part in table(2))
    scores = iter([0.1])
    _, chosen = solved(classic("knn", neighbours=(3, 9)), 2, data=data, score=lambda: next(scores))
    assert chosen == {"neighbours": 3}
    with pytest.raises(ConfigError, match=r"(?s)9 neighbours.*6 cases.*dataset\.shots"):
        solved(classic("knn", neighbours=(9, 15)), 2, data=data)


@pytest.mark.parametrize("key", ["neighbours", "C", "max_features"])
def test_there_must_be_something_to_choose_from(key):
    node = {
        "_target_": "medtransfer.strategies.classic_head.ClassicHead",
        "kind": "svm",
        **CHOICES,
        **BASE,
        key: [],
    }
    with pytest.raises(ConfigError, match=key):
        build(node, Strategy)


@every_kind
def test_a_classic_head_takes_single_cases_in_bf16(kind):
    head, _ = solved(classic(kind), 2)
    one = table(2)[0][:1]
    with torch.autocast("cpu", torch.bfloat16):
        found = head(one.bfloat16().requires_grad_())
    assert (found.shape, found.dtype) == ((1, 2), torch.float32)
    assert torch.equal(found, head(one.bfloat16().float()))

"""Transferability estimates against their definitions, written out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.stats import ortho_group
from sklearn.covariance import LedoitWolf
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from medtransfer import transferability
from medtransfer.errors import ConfigError, DataError
from medtransfer.transferability import h_score, knn_accuracy, leep, log_me

seeds = st.integers(0, 2**32 - 1)


def problem(seed, n, d, classes=3, signal=1.0):
    """Features with class means apart by about `signal` deviations; every class has cases."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % classes)
    x = rng.normal(size=(n, d)) * rng.uniform(0.3, 2, size=d) + 0.5
    return x + signal * rng.normal(size=(classes, d))[y], y


def grouped(x, y):
    return knn_accuracy(x, y, np.arange(len(y)))


FUNCTIONS = pytest.mark.parametrize("function", [log_me, h_score, grouped])


# LogME


def marginal_evidence(x, y, log_alpha, log_beta):
    covariance = x @ x.T / np.exp(log_alpha) + np.eye(len(y)) / np.exp(log_beta)
    size = np.linalg.slogdet(2 * np.pi * covariance)[1]
    return -(size + y @ np.linalg.solve(covariance, y)) / 2


def brute_force_log_me(x, targets):
    # with n <= D, beta may grow without end; at exp(24) the evidence has its limit
    most = 24 if x.shape[0] <= x.shape[1] else 12
    found = []
    for k in np.unique(targets):
        y = (targets == k).astype(float)
        start = optimize.brute(
            lambda at, y=y: -marginal_evidence(x, y, *at),
            ranges=[(-10, 14), (-6, most)],
            Ns=25,
            finish=None,
        )
        best = -optimize.minimize(
            lambda at, y=y: -marginal_evidence(x, y, *at),
            start,
            method="Nelder-Mead",
            bounds=[(-14, 18), (-14, most)],
            options={"xatol": 1e-6, "fatol": 1e-9},
        ).fun
        found.append(best / len(y))
    return np.mean(found)


@pytest.mark.parametrize("signal", [0.0, 1.0])
@pytest.mark.parametrize(("n", "d"), [(30, 4), (12, 12), (12, 25)])
def test_log_me_is_the_maximum_of_the_evidence(n, d, signal):
    x, y = problem(n + d, n, d, signal=signal)
    assert log_me(x, y) == pytest.approx(brute_force_log_me(x, y), abs=1e-5)


def test_log_me_agrees_with_the_fixed_point_of_the_paper():
    x, y = problem(5, 80, 6)
    singular = np.linalg.svd(x, compute_uv=False)
    total = 0.0
    for k in range(3):
        target = (y == k).astype(float)
        alpha = beta = 1.0
        for _ in range(500):
            mean = np.linalg.solve(alpha * np.eye(6) + beta * x.T @ x, beta * x.T @ target)
            effective = (beta * singular**2 / (alpha + beta * singular**2)).sum()
            alpha = effective / (mean @ mean)
            beta = (80 - effective) / ((target - x @ mean) ** 2).sum()
        total += marginal_evidence(x, target, np.log(alpha), np.log(beta)) / 80
    assert log_me(x, y) == pytest.approx(total / 3, rel=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, n=st.integers(6, 40), d=st.integers(2, 40), scale=st.floats(1e-3, 1e3))
def test_log_me_is_blind_to_rotation_scale_and_the_order_of_cases(seed, n, d, scale):
    x, y = problem(seed, n, d)
    rng = np.random.default_rng(seed)
    order = rng.permutation(n)
    turned = scale * x[order] @ ortho_group.rvs(d, random_state=rng)
    assert log_me(turned, y[order]) == pytest.approx(log_me(x, y), abs=1e-6)


def test_log_me_of_features_that_say_nothing_is_that_of_noise():
    # with all features zero the best model of y is noise of variance mean(y^2)
    y = np.array([0, 0, 0, 1])
    expected = np.mean([-(math.log(2 * math.pi * share) + 1) / 2 for share in (0.75, 0.25)])
    assert log_me(np.zeros((4, 3)), y) == pytest.approx(expected)


def test_log_me_without_a_bound_is_finite_and_large():
    y = np.arange(30) % 3
    perfect = log_me(np.eye(3)[y], y)
    assert math.isfinite(perfect)
    assert perfect > 10 > log_me(*problem(0, 30, 3, signal=3.0))


# H-score


def plain_h_score(x, y):
    means = np.stack([x[y == k].mean(axis=0) for k in range(y.max() + 1)])[y]
    within = np.cov(x, rowvar=False, bias=True)
    return np.trace(np.linalg.pinv(within) @ np.cov(means, rowvar=False, bias=True))


def test_h_score_of_many_cases_is_the_plain_one():
    x, y = problem(1, 20000, 4)
    assert h_score(x, y) == pytest.approx(plain_h_score(x, y), rel=1e-3)


def test_one_feature_is_not_shrunk():
    x, y = problem(2, 40, 1)
    x = x.reshape(-1, 1)
    share = sum((y == k).mean() * (x[y == k].mean() - x.mean()) ** 2 for k in range(3)) / x.var()
    assert h_score(x, y) == pytest.approx(share)


@pytest.mark.parametrize(("n", "d"), [(60, 5), (20, 50)])
def test_h_score_is_that_of_the_shrunk_covariance(n, d):
    x, y = problem(3, n, d)
    fitted = LedoitWolf().fit(x)
    means = np.stack([x[y == k].mean(axis=0) for k in range(y.max() + 1)])[y]
    between = np.cov(means, rowvar=False, bias=True)
    ratio = np.linalg.solve(fitted.covariance_, (1 - fitted.shrinkage_) * between)
    assert fitted.shrinkage_ > 0.01
    assert h_score(x, y) == pytest.approx(np.trace(ratio))


def test_h_score_of_many_cases_is_blind_to_linear_maps():
    x, y = problem(4, 20000, 4)
    mix = np.random.default_rng(4).normal(size=(4, 4)) + 2 * np.eye(4)
    assert h_score(x @ mix + 7, y) == pytest.approx(h_score(x, y), rel=1e-3)


@settings(max_examples=50, deadline=None)
@given(
    seed=seeds,
    n=st.integers(2, 40),
    d=st.integers(1, 40),
    classes=st.integers(1, 5),
    signal=st.floats(0, 100),
)
def test_h_score_lies_between_zero_and_the_classes_less_one(seed, n, d, classes, signal):
    x, y = problem(seed, n, d, classes, signal)
    assert -1e-9 <= h_score(x, y) <= len(np.unique(y)) - 1 + 1e-9


# LEEP


def leep_by_loop(theta, y):
    n, z = theta.shape
    total = 0.0
    for i in range(n):
        expected = 0.0
        for s in range(z):
            joint = sum(theta[j, s] for j in range(n) if y[j] == y[i]) / n
            marginal = sum(theta[j, s] for j in range(n)) / n
            expected += joint / marginal * theta[i, s]
        total += math.log(expected)
    return total / n


def probabilities(seed, n, z):
    return np.random.default_rng(seed).dirichlet(np.full(z, 0.4), size=n)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, n=st.integers(1, 15), z=st.integers(1, 6), classes=st.integers(1, 4))
def test_leep_is_the_loop_and_at_most_zero(seed, n, z, classes):
    theta = probabilities(seed, n, z) + 1e-12
    theta /= theta.sum(axis=1, keepdims=True)
    y = np.random.default_rng(seed).integers(0, classes, size=n)
    assert leep(theta, y) == pytest.approx(leep_by_loop(theta, y), abs=1e-9)
    assert leep(theta, y) <= 0


def test_leep_of_perfect_source_labels_is_zero_and_of_one_is_the_entropy():
    y = np.array([0, 1, 2, 2, 1, 0, 2, 1])
    # source classes 3 and 4 are both class 2; 5 is never seen
    assert leep(np.eye(6)[[0, 1, 3, 4, 1, 0, 3, 1]], y) == pytest.approx(0)
    share = np.array([2, 3, 3]) / 8
    assert leep(np.ones((8, 1)), y) == pytest.approx((share * np.log(share)).sum())


def test_leep_forgives_the_rounding_of_half_precision():
    theta, y = probabilities(0, 50, 20), np.arange(50) % 3
    assert leep(theta.astype(np.float16), y) == pytest.approx(leep(theta, y), abs=1e-3)
    assert leep(0.995 * np.eye(3)[y], y) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("theta", [[[0.5, 0.6], [1, 0]], [[1.5, -0.5], [1, 0]], [[3, 2], [1, 0]]])
def test_leep_wants_probabilities(theta):
    with pytest.raises(DataError, match="softmax"):
        leep(theta, [0, 1])


# k nearest neighbours


def knn_by_loop(x, y, groups, neighbours):
    hits = {k: [] for k in set(y)}
    for i in range(len(y)):
        others = [j for j in range(len(y)) if groups[j] != groups[i]]
        cosine = {j: x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j])) for j in others}
        votes = [y[j] for j in sorted(others, key=lambda j: -cosine[j])[:neighbours]]
        hits[y[i]].append(max(sorted(set(votes)), key=votes.count) == y[i])
    return np.mean([np.mean(each) for each in hits.values()])


@settings(max_examples=30, deadline=None)
@given(seed=seeds, n=st.integers(6, 30), neighbours=st.integers(1, 40), chunk=st.integers(1, 200))
def test_knn_is_the_loop_in_chunks_of_any_size(seed, n, neighbours, chunk):
    x, y = problem(seed, n, 5)
    groups = [f"patient {i}" for i in np.random.default_rng(seed).integers(0, 4, n)]
    groups[0] = "another"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transferability, "_CHUNK", chunk)
        got = knn_accuracy(x, y, groups, neighbours)
    assert got == pytest.approx(knn_by_loop(x, y.tolist(), groups, neighbours))


@pytest.mark.parametrize("neighbours", [1, 4, 5])
def test_knn_of_single_images_is_leave_one_out(neighbours):
    x, y = problem(6, 60, 4, signal=1.5)
    model = KNeighborsClassifier(neighbours, metric="cosine")
    predicted = cross_val_predict(model, x, y, cv=LeaveOneOut())
    expected = balanced_accuracy_score(y, predicted)
    assert 0.4 < expected < 1
    assert knn_accuracy(x, y, np.arange(60), neighbours) == pytest.approx(expected)


def test_other_images_of_a_patient_are_no_neighbours():
    # every patient has two equal images and looks like nobody of the own class
    x = np.repeat([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]], 2, axis=0)
    y = np.repeat([0, 1, 0, 1], 2)
    assert knn_accuracy(x, y, np.arange(8), neighbours=1) == 1
    assert knn_accuracy(x, y, np.repeat(np.arange(4), 2), neighbours=1) == 0


def test_a_class_of_one_patient_is_never_recognised():
    x, y = np.repeat(np.eye(3), [4, 4, 1], axis=0), np.array([0] * 4 + [1] * 4 + [2])
    assert knn_accuracy(x, y, np.arange(9), neighbours=3) == pytest.approx(2 / 3)


def test_knn_wants_two_groups_and_a_neighbour():
    x, y = problem(0, 6, 2)
    with pytest.raises(DataError, match="one group"):
        knn_accuracy(x, y, ["a"] * 6)
    with pytest.raises(DataError, match="shape"):
        knn_accuracy(x, y, ["a", "b"])
    with pytest.raises(ConfigError, match="0 neighbours"):
        knn_accuracy(x, y, np.arange(6), neighbours=0)


# All of them


@FUNCTIONS
@pytest.mark.parametrize(("n", "d"), [(90, 5), (40, 200)])
def test_more_signal_is_a_higher_value(function, n, d):
    values = [function(*problem(8, n, d, signal=signal)) for signal in (0.0, 0.4, 2.0)]
    assert values == sorted(values)
    assert values[0] < values[2]


@FUNCTIONS
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "case", ["dead", "constant", "zero", "twice", "single", "one class", "two"]
)
def test_degenerate_features_have_a_finite_value(function, case):
    x, y = problem(9, 12, 20)
    if case == "dead":
        x[:, 3:] = 0
    elif case == "constant":
        x[:, :] = 3.7
    elif case == "zero":
        x[:] = 0
    elif case == "twice":
        x, y = np.repeat(x, 2, axis=0), np.repeat(y, 2)
    elif case == "single":
        y[:] = 0
        y[3] = 1
    elif case == "one class":
        y[:] = 4
    else:
        x, y = x[:2], y[:2]
    before = x.copy()
    value = function(x, y)
    assert math.isfinite(value)
    assert function(x, y) == value
    np.testing.assert_array_equal(x, before)


@FUNCTIONS
def test_names_of_classes_and_precision_of_features_do_not_matter(function):
    x, y = problem(10, 30, 6)
    x = x.astype(np.float32)
    assert function(x, np.array([-2, 7, 90])[y]) == pytest.approx(function(x.astype(float), y))


@pytest.mark.parametrize("function", [log_me, h_score, leep, grouped])
@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(function, wrong):
    x, y = np.full((6, 2), 0.5), np.arange(6) % 2
    x[4, 1] = wrong
    with pytest.raises(DataError, match="1 of 6 cases"):
        function(x, y)


@pytest.mark.parametrize("function", [log_me, h_score, leep, grouped])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.ones(4), np.zeros(4, int)),
        (np.ones((0, 2)), np.zeros(0, int)),
        (np.ones((4, 1)), np.zeros(3, int)),
        (np.ones((4, 1)), np.zeros(4)),
        (np.ones((4, 1)), np.zeros((4, 1), int)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(function, x, y):
    with pytest.raises(DataError, match="shape"):
        function(x, y)

"""Estimates of how well features will serve a task, from one training set and without training.

Each takes one row a case and returns one number, larger is better. Nothing is standardised, and
cases that occur twice count twice. Targets may be any integers; only classes that have a case
count. Every function is deterministic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import linalg, optimize
from sklearn.covariance import ledoit_wolf

from medtransfer.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

# Similarities held at once: 128 MiB.
_CHUNK = 2**24
# How far a row of probabilities may sum from 1; half precision over 1000 classes stays below.
_ROUNDING = 1e-2


def log_me(features: ArrayLike, targets: ArrayLike) -> float:
    """Return LogME (You et al. 2021, arXiv 2102.11005), in nats per case.

    Each class against the rest is a Bayesian linear regression of 0 and 1 on the features, without
    an intercept: weights ~ N(0, 1 / alpha), noise ~ N(0, 1 / beta). The value is the log evidence
    at its maximum over alpha and beta, divided by the number of cases, averaged over the classes.

    It wants features as the network gives them: it is blind to a common scale and to rotations,
    but not to the scale of single features nor to a shift. Constant features do no harm. Where the
    features explain a class without error and are not of full row rank (one feature a class, or a
    duplicated case with n <= D), the evidence has no bound. Errors then count as no smaller than
    the rounding of a float64, which gives a large but finite value; take duplicates out first.

    Args:
        features: Shape (n, D), finite; n may be below D.
        targets: Class indices, shape (n,). A class of one case is a class like any other.

    Raises:
        DataError: The shapes do not fit, or a feature is not finite.
    """
    x, codes = _checked(features, targets)
    n = len(x)
    one_hot = np.eye(codes.max() + 1)[codes]
    left, singular, _ = linalg.svd(x, full_matrices=False)
    left = left[:, singular > singular[0] * max(x.shape) * np.finfo(float).eps]
    sigma = singular[: left.shape[1]] ** 2
    projected = left.T @ one_hot
    energy = projected**2
    if len(sigma) == n:
        # nothing lies outside the span of all rows; rounding would bend the limit of no noise
        outside = np.zeros(one_hot.shape[1])
    else:
        least = np.finfo(float).eps * one_hot.sum(axis=0)
        outside = np.maximum(((one_hot - left @ projected) ** 2).sum(axis=0), least)

    def evidence(log_ratio: Floats) -> Floats:
        """Return the log evidence, shape (ratios, classes), maximised over beta in closed form."""
        gain = sigma / np.exp(log_ratio)[:, None]
        error = outside + (1 / (1 + gain)) @ energy
        spread = np.log1p(gain).sum(axis=1, keepdims=True)
        return np.asarray(-(n * (np.log(2 * np.pi * error / n) + 1) + spread) / 2)

    return float(np.mean(_maxima(evidence, sigma))) / n


def _maxima(evidence: Callable[[Floats], Floats], sigma: Floats) -> list[float]:
    """Return the maximum of each class over log(alpha / beta).

    With beta known, one variable is left, so that a grid and a search around its best point find
    the maximum that the fixed-point iterations of the paper may miss or reach slowly: it often
    lies at zero or at infinity. The grid goes so far that its ends are those limits.
    """
    if not len(sigma):
        return [float(value) for value in evidence(np.zeros(1))[0]]
    step, beyond = 0.5, 50.0
    grid = np.arange(np.log(sigma[-1]) - beyond, np.log(sigma[0]) + beyond, step)
    coarse = evidence(grid)
    found = []
    for k, best in enumerate(coarse.argmax(axis=0)):
        near = optimize.minimize_scalar(
            lambda at, k=k: -float(evidence(np.array([at]))[0, k]),
            bounds=(grid[best] - step, grid[best] + step),
            method="bounded",
            options={"xatol": 1e-6},
        )
        found.append(max(-float(near.fun), float(coarse[best, k])))
    return found


def h_score(features: ArrayLike, targets: ArrayLike) -> float:
    """Return the H-score (Bao et al. 2019) with shrinkage (Ibrahim et al. 2022).

    H = (1 - a) tr(S^-1 B), with B the covariance of the class means, each counted once a case, and
    S = (1 - a) C + a (tr(C) / D) I the covariance of the features shrunk after Ledoit & Wolf
    (2004), who also give a. Both covariances divide by n. With a = 0, which many cases come close
    to, it is tr(C^-1 B), the H-score as first defined; S^-1 is a pseudo-inverse where need be.

    It lies in [0, K - 1] for K classes; 0 where the class means agree, as with one class or with
    constant features. Shrinkage makes it usable for n < D. It is blind to a shift, to rotations
    and to a common scale, and to other invertible linear maps only as far as a is small: features
    of very different scales may want to be standardised first. The mean of a class of one case is
    that case, which flatters; classes that small make a high value meaningless.

    Args:
        features: Shape (n, D), finite.
        targets: Class indices, shape (n,).

    Raises:
        DataError: The shapes do not fit, or a feature is not finite.
    """
    x, codes = _checked(features, targets)
    x = x - x.mean(axis=0)
    counts = np.bincount(codes)
    means = np.stack([x[codes == k].mean(axis=0) for k in range(len(counts))])
    if len(x) == 1:
        return 0.0
    covariance, shrinkage = ledoit_wolf(x, assume_centered=True)
    between = np.einsum("kd,kd->k", means @ linalg.pinvh(covariance), means)
    return float((1 - shrinkage) * (counts @ between) / len(x))


def leep(source_probabilities: ArrayLike, targets: ArrayLike) -> float:
    """Return LEEP (Nguyen et al. 2020, arXiv 2002.12462), in nats per case.

    The mean log-likelihood of the targets under the classifier that draws a source class z by the
    network's probabilities and then a class by its share among the cases, p(y | z). At most 0,
    which it reaches where each source class belongs to one class and the network is certain. A
    source class that has no probability in any case plays no part.

    Args:
        source_probabilities: What the network's own classifier gives over its Z source classes,
            shape (n, Z): after the softmax, rows that sum to 1. The rounding of lower precision is
            undone.
        targets: Class indices, shape (n,).

    Raises:
        DataError: The shapes do not fit, or the rows are not probabilities.
    """
    theta, codes = _checked(source_probabilities, targets)
    total = theta.sum(axis=1, keepdims=True)
    if theta.min() < 0 or abs(total - 1).max() > _ROUNDING:
        raise DataError(
            "the source probabilities are not: a value is negative or a row does not sum to 1",
            remedy="apply the softmax to the logits first",
        )
    theta = theta / total
    joint = np.stack([theta[codes == k].sum(axis=0) for k in range(codes.max() + 1)])
    seen = theta.sum(axis=0)
    given = np.divide(joint, seen, out=np.zeros_like(joint), where=seen > 0)
    expected = np.einsum("nz,nz->n", theta, given[codes])
    return min(float(np.log(expected).mean()), 0.0)


def knn_accuracy(
    features: ArrayLike, targets: ArrayLike, groups: ArrayLike, neighbours: int = 5
) -> float:
    """Return the balanced accuracy of a vote of the nearest cases of other patients.

    Each case is classified by its nearest cases in cosine similarity, leaving its whole group out;
    each neighbour has one vote, and ties go to the class with the smaller index. The value is the
    mean recall of the classes, in [0, 1]. Cosine ignores the length of a row but not the scale of
    single features, nor a shift. A row of zeros is equally far from all. Which of several equally
    near cases come in is arbitrary but repeatable. A class that only one group has, such as a
    class of one case, cannot be recognised and counts with a recall of 0.

    Args:
        features: Shape (n, D), finite.
        targets: Class indices, shape (n,).
        groups: Patient of each case, shape (n,), of any kind that can be sorted.
        neighbours: Cases that vote, at least 1; fewer where other groups have fewer.

    Raises:
        ConfigError: `neighbours` is below 1.
        DataError: The shapes do not fit, a feature is not finite, or there is only one group.
    """
    if neighbours < 1:
        raise ConfigError(f"{neighbours} neighbours cannot vote", remedy="take at least 1")
    x, codes = _checked(features, targets)
    patients = np.asarray(groups)
    if patients.shape != codes.shape:
        raise DataError(f"groups have shape {patients.shape}, the targets {codes.shape}")
    names, patient = np.unique(patients, return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"all {len(x)} cases are of one group: no case has a neighbour",
            remedy="give the cases of at least two patients",
        )
    length = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.divide(x, length, out=np.zeros_like(x), where=length > 0)
    n, k = len(x), min(neighbours, len(x) - 1)
    correct = np.zeros(n)
    rows = max(1, _CHUNK // n)
    for start in range(0, n, rows):
        part = slice(start, min(start + rows, n))
        distance = -(x[part] @ x.T)
        distance[patient[part, None] == patient] = np.inf
        nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
        may_vote = np.isfinite(np.take_along_axis(distance, nearest, axis=1))
        votes = np.zeros((len(nearest), codes.max() + 1))
        np.add.at(votes, (np.arange(len(nearest))[:, None], codes[nearest]), may_vote)
        correct[part] = votes.argmax(axis=1) == codes[part]
    return float(np.mean(np.bincount(codes, weights=correct) / np.bincount(codes)))


def _checked(features: ArrayLike, targets: ArrayLike) -> tuple[Floats, Codes]:
    """Return features (n, D) in double precision, and the classes counted from 0 without gaps."""
    x, labels = np.asarray(features, dtype=np.float64), np.asarray(targets)
    if x.ndim != 2 or not x.size:
        raise DataError(f"values have shape {x.shape}, not (cases, columns) with one or more")
    if labels.shape != x.shape[:1] or labels.dtype.kind not in "iub":
        raise DataError(
            f"targets have shape {labels.shape} and type {labels.dtype}, "
            f"not one integer for each of {len(x)} cases"
        )
    if wrong := int((~np.isfinite(x).all(axis=1)).sum()):
        raise DataError(
            f"{wrong} of {len(x)} cases have values that are not finite",
            remedy="look for overflow in low precision, trainer.precision=fp32, or for bad images",
        )
    return x, np.unique(labels, return_inverse=True)[1]

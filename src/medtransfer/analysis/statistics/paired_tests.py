"""Tests of paired differences: over repeated splits, and by flipping signs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medtransfer.analysis.statistics.intervals import ALPHA, Interval

Floats = NDArray[np.float64]

EXACT = 20  # differences of which all combinations of signs are looked at
_ROUNDING = 1e-12
_CELLS = 4_000_000  # signs held at once


@dataclass(frozen=True)
class SignFlip:
    """Two-sided p of differences that are symmetric about zero.

    Attributes:
        p: NaN where a difference is.
        least: The least that p can be with so many differences: three of them cannot come below
            0.25, whatever they are.
        exact: Whether all combinations of signs were looked at.
    """

    p: float
    least: float
    exact: bool


def corrected_resampled_t(
    differences: ArrayLike, n_train: int, n_test: int, level: float = 1 - ALPHA
) -> Interval:
    """Return the interval of a mean difference over repeated splits of the same data.

    Training sets of repeated splits share cases, so that the differences are not independent and
    their variance over J splits is too small. Nadeau & Bengio (2003) multiply it by
    1 / J + n_test / n_train instead of 1 / J. Student's t with J - 1 degrees of freedom.

    Args:
        differences: One a split, shape (J,).
        n_train: Cases to train on in each split.
        n_test: Cases to test on.
        level: Coverage, in (0, 1).

    Returns:
        Over "seeds", which draw the splits; over "nothing" with fewer than two of them, or where
        one is NaN.
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    estimate = float(values.mean()) if count else np.nan
    if count < 2 or not np.isfinite(estimate):
        return Interval(estimate, np.nan, np.nan, np.nan, np.nan, np.nan, "nothing")
    se = float(values.std(ddof=1) * np.sqrt(1 / count + n_test / n_train))
    df = count - 1.0
    if se <= _ROUNDING:
        p = float(abs(estimate) <= _ROUNDING)
        return Interval(estimate, estimate, estimate, p, df, 0.0, "seeds")
    half = float(stats.t.ppf((1 + level) / 2, df)) * se
    p = float(2 * stats.t.sf(abs(estimate) / se, df))
    return Interval(estimate, estimate - half, estimate + half, p, df, se, "seeds")


def sign_flip(
    differences: ArrayLike, rng: np.random.Generator | None = None, draws: int = 100_000
) -> SignFlip:
    """Return how often differences with random signs have as large a mean (Fisher 1935).

    Up to `EXACT` differences all combinations of signs are looked at and nothing is drawn. With
    more, p counts the observed signs among the drawn ones (Phipson & Smyth 2010): it is never 0.

    Args:
        differences: One a pair, such as a seed or a dataset, shape (n,).
        rng: Draws the signs; needed for more than `EXACT` differences.
        draws: Combinations that are drawn.

    Raises:
        ValueError: There are too many differences for all combinations, and no generator.
    """
    values = np.asarray(differences, dtype=np.float64)
    count = len(values)
    exact = count <= EXACT
    least = 2.0 ** (1 - count) if exact else 1 / (draws + 1)
    if not count or not np.isfinite(values).all():
        return SignFlip(np.nan, least, exact)
    # sums that are equal on paper may differ in the last digits
    observed = abs(values.sum()) - _ROUNDING * np.abs(values).sum()
    if exact:
        return SignFlip(float((np.abs(_all_sums(values)) >= observed).mean()), least, exact)
    if rng is None:
        raise ValueError(f"{count} differences have too many signs to try: pass a generator")
    extreme, step = 0, max(1, _CELLS // count)
    for start in range(0, draws, step):
        signs = rng.integers(0, 2, (min(step, draws - start), count), dtype=np.int8)
        sums = 2 * (signs @ values) - values.sum()
        extreme += int((np.abs(sums) >= observed).sum())
    return SignFlip((extreme + 1) / (draws + 1), least, exact)


def _all_sums(values: Floats) -> Floats:
    """Return the sums under all signs of all values but the first, shape (2 ** (n - 1),).

    The other half is the same mirrored, and equal in size.
    """
    sums = values[:1]
    for value in values[1:]:
        sums = np.concatenate([sums + value, sums - value])
    return sums

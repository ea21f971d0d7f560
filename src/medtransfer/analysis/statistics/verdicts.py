"""From intervals and p-values to verdicts."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medtransfer.analysis.statistics.intervals import ALPHA

Floats = NDArray[np.float64]
Verdict = Literal["better", "worse", "equivalent", "undecided"]


def holm(p: ArrayLike) -> Floats:
    """Return Holm's (1979) adjusted p-values; a NaN is no test and stays NaN."""
    raw = np.asarray(p, dtype=np.float64)
    adjusted = np.full(raw.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(raw))
    order = tested[np.argsort(raw[tested])]
    steps = raw[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def verdict(lo: float, hi: float, rope: float, *, p_adj: float = 0.0) -> Verdict:
    """Return what the interval of a gain (positive is good) says.

    The region of practical equivalence comes first: an interval inside [-rope, rope] is
    `equivalent` even where it excludes 0, for a difference that small does not matter. Then an
    interval that excludes 0 is `better` or `worse`, if `p_adj`, corrected for the other
    comparisons, agrees. An interval without width inside the region comes from data that did not
    vary, such as two perfect arms on an easy test set; that is `undecided`, not equivalence.
    """
    if not np.isfinite([lo, hi]).all():
        return "undecided"
    if -rope <= lo and hi <= rope:
        return "equivalent" if hi > lo else "undecided"
    if lo <= 0 <= hi or not p_adj < ALPHA:
        return "undecided"
    return "better" if lo > 0 else "worse"

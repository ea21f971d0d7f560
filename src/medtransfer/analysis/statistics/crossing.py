"""Where one learning curve overtakes another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from medtransfer.analysis.statistics.bootstrap import DRAWS
from medtransfer.analysis.statistics.intervals import ALPHA, two_way_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CrossingPoint:
    """The size from which on `b` is ahead of `a`, up to the largest that was measured.

    Attributes:
        at: In the unit of the sizes; None where `b` is ahead all along, or is not at the end.
        lo: Lower end of the interval; None where it lies outside of what was measured.
        hi: Upper end.
        share_crossing: Of the resamples, those that cross; NaN where there are none.
        share_ahead: Those in which `b` is ahead all along. In the rest it is not ahead at the end.
    """

    at: float | None
    lo: float | None
    hi: float | None
    share_crossing: float
    share_ahead: float


def crossing(
    sizes: ArrayLike,
    gains: ArrayLike | Sequence[ArrayLike],
    rng: np.random.Generator,
    *,
    groups: ArrayLike | None = None,
    level: float = 1 - ALPHA,
    draws: int = DRAWS,
) -> CrossingPoint:
    """Return where the mean gain of `b` over `a` turns positive for good.

    Between two sizes the gain is taken as linear in the logarithm of the size. Where curves cross
    several times, the last time counts that `b` passes. The interval is a bootstrap over patients
    and seeds, the same ones at all sizes; a resample that does not cross lies beyond one end.
    Percentiles alone are too narrow with few seeds: they are taken so far out that at the crossing
    the gain's own interval would be as wide as `two_way_interval` has it.

    Args:
        sizes: Training cases, positive and ascending, shape (k,).
        gains: What `b` is better by, shape (k, cases, seeds), or (k, seeds) without cases.
        rng: Draws patients and seeds.
        groups: Patient of each case, shape (cases,).
        level: Nominal coverage, in (0, 1).
        draws: Number of resamples.

    Raises:
        ValueError: Sizes that are not positive and ascending, or not as many as gains.
    """
    log_size = np.log(np.asarray(sizes, dtype=np.float64))
    table = np.asarray(gains, dtype=np.float64)
    if table.ndim == 2:
        table = table[:, None]
    if len(log_size) != len(table) or not (np.diff(log_size) > 0).all():
        raise ValueError(f"{len(table)} gains need as many ascending, positive sizes: {sizes!r}")
    curve = table.mean(axis=(1, 2))
    if len(log_size) < 2 or not np.isfinite(curve).all():
        return CrossingPoint(None, None, None, np.nan, np.nan)
    log_at = float(_last_rise(log_size, curve[None])[0])
    at = float(np.exp(log_at)) if np.isfinite(log_at) else None
    if table[0].size < 2:
        return CrossingPoint(at, None, None, np.nan, np.nan)
    curves = _resampled(table, groups, rng, draws)
    found = _last_rise(log_size, curves)
    # where the curves come nearest, if they do not cross
    anchor = log_at if at is not None else log_size[np.abs(curve).argmin()]
    weights = np.array([np.interp(anchor, log_size, unit) for unit in np.eye(len(log_size))])
    there = np.tensordot(weights, table, axes=1)
    tail = _tail(there, groups, curves @ weights, level)
    # no interpolation: a resample beyond an end has no place
    lo = float(np.quantile(found, tail, method="lower"))
    hi = float(np.quantile(found, 1 - tail, method="higher"))
    return CrossingPoint(
        at=at,
        lo=float(np.exp(lo)) if np.isfinite(lo) else None,
        hi=float(np.exp(hi)) if np.isfinite(hi) else None,
        share_crossing=float(np.isfinite(found).mean()),
        share_ahead=float((found == -np.inf).mean()),
    )


def _last_rise(log_size: Floats, curves: Floats) -> Floats:
    """Return the log of the size where each curve rises above zero for good, shape (draws,).

    -inf where it is above all along, inf where it does not end above zero.

    Args:
        log_size: Shape (k,).
        curves: Shape (draws, k).
    """
    k = len(log_size)
    behind = curves <= 0
    last = k - 1 - behind[:, ::-1].argmax(axis=1)  # the last size at which it is behind
    start = np.minimum(last, k - 2)
    rows = np.arange(len(curves))
    low, high = curves[rows, start], curves[rows, start + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = -low / (high - low)
    place = log_size[start] + share * (log_size[start + 1] - log_size[start])
    place = np.where(behind[:, -1], np.inf, place)
    return np.where(behind.any(axis=1), place, -np.inf)


def _resampled(
    table: Floats, groups: ArrayLike | None, rng: np.random.Generator, draws: int
) -> Floats:
    """Return the mean gain of each draw at each size, shape (draws, k)."""
    _, cases, seeds = table.shape
    member = np.arange(cases)
    if groups is not None and cases > 1:
        member = np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(member.max()) + 1
    patients = rng.multinomial(count, np.full(count, 1 / count), size=draws)[:, member]
    seed_times = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws)
    by_seed = np.stack([patients @ gains for gains in table])
    total = (by_seed * seed_times).sum(axis=2).T
    return np.asarray(total / (patients.sum(axis=1) * seeds)[:, None], dtype=np.float64)


def _tail(gains: Floats, groups: ArrayLike | None, means: Floats, level: float) -> float:
    """Return the share of draws to leave beyond either end.

    Args:
        gains: Shape (cases, seeds).
        groups: Patient of each case.
        means: Of the resampled gains, shape (draws,).
        level: Nominal coverage.
    """
    interval = two_way_interval(gains, groups if len(gains) > 1 else None, level)
    spread, half = float(means.std(ddof=1)), (interval.hi - interval.lo) / 2
    if not spread > 0 or not half > 0:
        return (1 - level) / 2
    return float(min(stats.norm.sf(half / spread), (1 - level) / 2))

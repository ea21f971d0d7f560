"""How many more cases or seeds an undecided contrast would need."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from medtransfer.analysis.statistics.intervals import ALPHA, second_order, two_way_interval

if TYPE_CHECKING:
    from collections.abc import Callable

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

POWER = 0.8
MOST = 1000
"""How many times as many cases or seeds as there are is still called a number."""

_STEPS = 400  # of a first look from as many as there are to `MOST` times as many


@dataclass(frozen=True)
class Needed:
    """What it would take besides what there is; None where no number would do.

    Attributes:
        more_cases: With the same number of seeds.
        more_seeds: With the same cases.
    """

    more_cases: int | None
    more_seeds: int | None


def needed(
    values: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    level: float = 1 - ALPHA,
    power: float = POWER,
) -> Needed:
    """Return how many more cases, or seeds, would let the interval exclude zero.

    Suppose the observed difference and variance components are the true ones. Then a study of
    (n, m) cases and seeds has a mean whose variance and degrees of freedom are those of
    `two_way_interval` at the expected mean squares, and its t-statistic is about noncentral t. The
    smallest n, or m, is returned whose interval excludes zero, on the side of the difference, in a
    share `power` of such studies: 80 % by default. Were the interval asked only to reach zero at
    the observed difference, half of such studies would end undecided. Where the other source of
    error alone keeps the interval too wide, no number of these will do.

    Observed differences exaggerate where many are looked at: take the figures as an order of
    magnitude. `level` may be raised to that of a corrected test.

    Args:
        values: Differences, shape (cases, seeds). Of one seed the seeds' spread is unknown, and
            of one case that of the cases: then nothing is said of them.
        groups: Patient of each case, shape (cases,). Patients are added, with as many cases each
            as those have that are there.
        level: Coverage of the interval, in (0, 1).
        power: Share of studies, in (0, 1).
    """
    matrix = np.asarray(values, dtype=np.float64)
    gain = abs(float(matrix.mean())) if matrix.size else np.nan
    if not gain > 0:
        return Needed(None, None)
    layout = _Layout.of(matrix, groups)
    n, m = layout.n, layout.m
    # of a cluster's cases only all can be had
    each = len(matrix) / n
    cases = seeds = None
    if n > 1:
        cases = _smallest(n, power, lambda more: layout.power(gain, more, np.array(m), level))
    if m > 1:
        seeds = _smallest(m, power, lambda more: layout.power(gain, np.array(n), more, level))
    return Needed(
        more_cases=None if cases is None else ceil((cases - n) * each),
        more_seeds=None if seeds is None else seeds - m,
    )


@dataclass(frozen=True)
class _Layout:
    """Variance components of the two-way layout without replication.

    With one seed, or one case, all spread is that of the other; a negative component is zero.
    """

    n: int
    m: int
    case: float
    seed: float
    error: float

    @classmethod
    def of(cls, matrix: Floats, groups: ArrayLike | None) -> _Layout:
        m = matrix.shape[1]
        member = np.arange(len(matrix))
        if groups is not None:
            member = np.unique(np.asarray(groups), return_inverse=True)[1]
        n = int(member.max()) + 1
        by_case = matrix.mean(axis=1, keepdims=True)
        by_seed = matrix.mean(axis=0, keepdims=True)
        # mean squares over n m, by the one place that knows how patients are summed
        case = two_way_interval(by_case, member).se ** 2 if n > 1 else 0.0
        seed = two_way_interval(by_seed).se ** 2 if m > 1 else 0.0
        error = 0.0
        if n > 1 and m > 1:
            rest = (matrix - by_case - by_seed + matrix.mean()).reshape(-1, 1)
            cell = (member[:, None] * m + np.arange(m)).reshape(-1)
            error = two_way_interval(rest, cell).se ** 2 * (n * m - 1) / ((n - 1) * (m - 1))
        return cls(n, m, n * max(case - error, 0.0), m * max(seed - error, 0.0), n * m * error)

    def power(self, gain: float, n: Ints, m: Ints, level: float) -> Floats:
        """Return the share of studies of so many cases and seeds that find the gain."""
        case = m * self.case + self.error
        seed = n * self.seed + self.error
        total = case + seed - self.error
        # degrees of freedom as in `two_way_interval`
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.m == 1:
                df = n - 1.0
            elif self.n == 1:
                df = m - 1.0
            else:
                spread = seed**2 / (m - 1)
                if self.case > 0:
                    spread = spread + case**2 / (n - 1) + self.error**2 / ((n - 1) * (m - 1))
                slow = second_order(seed / total, m - 1, n - 1)
                df = np.maximum(1 / (spread / total**2 + slow), np.minimum(n, m) - 1.0)
            shift = gain / np.sqrt(total / (n * m))
            found = 1 - special.nctdtr(df, shift, special.stdtrit(df, (1 + level) / 2))
        # beyond a shift of 37 SciPy has no value, and hardly any study is undecided
        return np.where((total > 0) & ~np.isnan(found), found, 1.0)


def _smallest(start: int, power: float, reach: Callable[[Ints], Floats]) -> int | None:
    """Return the smallest number from `start` on that reaches the power.

    Steps first, then every number within the step. More is not always better: as the error of one
    source vanishes, few degrees of freedom of the other are left.
    """
    steps = np.unique(np.geomspace(start, MOST * start, _STEPS).round().astype(np.int64))
    enough = reach(steps) >= power
    if not enough.any():
        return None
    first = int(enough.argmax())
    if not first:
        return start
    within = np.arange(steps[first - 1] + 1, steps[first] + 1)
    return int(within[(reach(within) >= power).argmax()])

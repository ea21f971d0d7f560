"""The headline's contrast seen by other methods: would they have said the same?"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from medtransfer.analysis.compare import difference, paired_seeds
from medtransfer.analysis.grid import cells
from medtransfer.analysis.report.words import counted, number, probability
from medtransfer.analysis.results import Check
from medtransfer.analysis.statistics.bootstrap import crossed_bootstrap
from medtransfer.analysis.statistics.equivalence import rope_probabilities, tost
from medtransfer.analysis.statistics.intervals import two_way_interval
from medtransfer.analysis.statistics.paired_tests import EXACT, sign_flip

if TYPE_CHECKING:
    from medtransfer.analysis.cases import Cases, Matrix
    from medtransfer.analysis.load import Study
    from medtransfer.analysis.results import Contrast


def checks(study: Study, contrast: Contrast, cases: Cases) -> tuple[Check, ...]:
    """Return what other methods say of a contrast; they decide nothing.

    Args:
        study: Where it stands.
        contrast: With an estimate.
        cases: The predictions of the study's trials.
    """
    at = {c.arm: c for row in cells(study) for c in row if dict(c.axes) == dict(contrast.axes)}
    a, b = at[contrast.a], at[contrast.b]
    values = difference(a, b, paired_seeds(a, b), cases)
    return tuple(
        Check(name, told)
        for name, told in (
            ("Equivalence", _equivalence(values, study.rope)),
            ("Each seed alone", _alone(values)),
            ("Seeds by signs", _signs(values)),
            ("Bootstrap", _bootstrap(values)),
        )
        if told
    )


def _equivalence(values: Matrix, rope: float) -> str:
    interval = values.interval()
    p, shares = tost(interval, rope), rope_probabilities(interval, rope)
    if not isfinite(p):
        return ""
    below, inside, above = (f"{100 * s:.0f} %" for s in (shares.left, shares.inside, shares.right))
    return (
        f"within ±{rope:g} with p {_p(p)} (two one-sided tests, Schuirmann 1987); under a flat "
        f"prior {below} below -{rope:g}, {inside} within, {above} above {rope:g}"
    )


def _alone(values: Matrix) -> str:
    """Return what studies of one seed each would have found, cases being all they vary."""
    if not values.n_cases:
        return ""
    found = [two_way_interval(column[:, None], values.groups) for column in values.values.T]
    up, down = sum(each.lo > 0 for each in found), sum(each.hi < 0 for each in found)
    means = [each.estimate for each in found]
    return (
        f"with cases as the only source of error, {counted(up, 'of these seeds', 'of these seeds')}"
        f" would have favoured A, {down} B and {len(found) - up - down} neither; differences from "
        f"{number(min(means), signed=True)} to {number(max(means), signed=True)}"
    )


def _signs(values: Matrix) -> str:
    means = values.values.mean(axis=0)
    if not 1 < len(means) <= EXACT:
        return ""
    found = sign_flip(means)
    return (
        f"exact sign-flip test over seeds: p {_p(found.p)}; with {len(means)} seeds it cannot be "
        f"less than {probability(found.least)}"
    )


def _bootstrap(values: Matrix) -> str:
    if not values.n_cases or values.values.shape[1] < 2:
        return ""
    # a generator of its own, so that the same results give the same report
    found = crossed_bootstrap(
        values.values,
        lambda drawn: float(drawn.mean()),
        np.random.default_rng(0),
        groups=values.groups,
    )
    return f"over cases and seeds, 95 % CI {number(found.lo)} to {number(found.hi)}"


def _p(p: float) -> str:
    return probability(p) if isfinite(p) else "not defined"

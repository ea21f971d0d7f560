"""The cases on which the arms are most wrong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medtransfer.analysis.details.calibration import Probabilities
from medtransfer.analysis.details.parts import Worst
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

MOST = 12


def worst(
    of: str, cases: pd.DataFrame, frames: Mapping[str, Sequence[pd.DataFrame]]
) -> tuple[Worst, ...]:
    """Return the cases with the worst mean over arms, worst first, at most `MOST`.

    Only cases that every arm has a value for are looked at; of equal ones the first by name.

    Args:
        of: What the values are.
        cases: See `spread.case_table`.
        frames: Predictions of each arm's trials, which say what is true.
    """
    known = cases.dropna()
    if not known.size:
        return ()
    # rounded, so that equal cases are equal whichever arm is added first
    means = known.mean(axis=1).round(12)
    order = means.sort_values(ascending=of not in LOWER_IS_BETTER, kind="stable").index[:MOST]
    targets = _targets(frames)
    return tuple(
        Worst(str(name), targets.get(str(name), ""), {str(a): float(v) for a, v in row.items()})
        for name, row in known.loc[order].iterrows()
    )


def _targets(frames: Mapping[str, Sequence[pd.DataFrame]]) -> dict[str, str]:
    """Return the true class of each case, or the labels that hold."""
    found: dict[str, str] = {}
    for frame in (frame for tables in frames.values() for frame in tables):
        if (stated := Probabilities.of(frame)) is None:
            continue
        names = np.array(stated.names, dtype=object)
        for case, row in zip(frame["sample_id"], stated.truth == 1, strict=True):
            if case not in found:
                found[case] = ", ".join(names[row])
    return found

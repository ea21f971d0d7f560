"""How an arm's values are spread over seeds and over cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medtransfer.analysis.details.calibration import Probabilities
from medtransfer.analysis.details.parts import Spread

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

MOST = 500
"""Values of one spread at most; of more cases it holds quantiles."""

OF_CLASSES = "probability of the true class"
OF_LABELS = "mean probability of what is true of each label"


def case_table(
    frames: Mapping[str, Sequence[pd.DataFrame]], metric: str
) -> tuple[str, pd.DataFrame]:
    """Return what a case's own value is, and a table of them: cases by arms, means over seeds.

    It is the probability of what is true, or the metric where that is one of images. The table has
    no columns where cases have no value of their own, as in detection.

    Args:
        frames: Predictions of each arm's trials, with one row for each `sample_id`.
        metric: The study's.
    """
    of, columns = metric, {}
    for arm, tables in frames.items():
        found = [(named, each) for table in tables for named, each in _own(table, metric)]
        if found:
            of = found[0][0]
            columns[arm] = pd.concat([each for _, each in found], axis=1).mean(axis=1)
    return of, pd.DataFrame(columns).sort_index()


def spreads(
    scores: Mapping[str, Sequence[float]], metric: str, of: str, cases: pd.DataFrame
) -> tuple[Spread, ...]:
    """Return the spreads of each arm over seeds, then over cases.

    Args:
        scores: The metric of each arm's trials, in the order of their seeds.
        metric: Its name.
        of: What the values of the cases are.
        cases: See `case_table`.
    """
    over_cases = {arm: cases[arm].dropna().to_numpy() for arm in cases}
    return (
        *(Spread(arm, "seeds", metric, tuple(found)) for arm, found in scores.items() if found),
        *(
            Spread(str(arm), "cases", of, tuple(_quantiles(values).tolist()))
            for arm, values in over_cases.items()
            if len(values)
        ),
    )


def has_boxes(frame: pd.DataFrame) -> bool:
    """Return whether these are images in which objects were to be found."""
    return any(str(name).startswith("truths_") for name in frame)


def _own(frame: pd.DataFrame, metric: str) -> list[tuple[str, pd.Series[float]]]:
    """Return the name and the values of the cases, by their ids; nothing where they have none."""
    cases = pd.Index(frame["sample_id"])
    if (stated := Probabilities.of(frame)) is not None:
        right = np.where(stated.truth == 1, stated.scores, 1 - stated.scores)
        if stated.exclusive:
            return [(OF_CLASSES, pd.Series((stated.scores * stated.truth).sum(axis=1), cases))]
        right = np.where(np.isfinite(stated.truth), right, np.nan)
        return [(OF_LABELS, pd.DataFrame(right, cases).mean(axis=1))]
    # values of detection say how far an image pulls the metric, not how well it was judged
    if metric in frame and not has_boxes(frame):
        values = frame[metric].to_numpy(dtype=np.float64)
        return [(metric, pd.Series(np.where(np.isfinite(values), values, np.nan), cases))]
    return []


def _quantiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) <= MOST:
        return np.sort(values)
    return np.asarray(np.quantile(values, np.linspace(0, 1, MOST)))

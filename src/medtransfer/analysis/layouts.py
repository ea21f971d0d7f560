"""Which cases trials predicted, told apart once for all trials that predicted the same ones."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

    from numpy.typing import NDArray

_CASE = {"sample_id", "group_id", "exam_id"}


@dataclass(frozen=True, eq=False)
class Layout:
    """The cases of all trials that list the same ones.

    Args:
        index: Id and target of each case, sorted, so that the order of rows changes no digit.
        groups: Number of each case's patient, shape (cases,).
        rare: Classes with few cases, see `cases.rare_classes`.
    """

    index: pd.Index
    groups: NDArray[np.intp]
    rare: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class Common:
    """The cases that some layouts share.

    Args:
        places: Where each of them stands in a layout.
        groups: As in a layout.
        total: How many cases there are in any of the layouts.
    """

    places: Mapping[Layout, NDArray[np.intp]]
    groups: NDArray[np.intp]
    total: int


class Layouts:
    """The layouts of a study's trials.

    Args:
        rare: From predictions, each case once, to the classes with few cases.
    """

    def __init__(self, rare: Callable[[pd.DataFrame], Mapping[str, int]]) -> None:
        self._rare = rare
        self._layouts: dict[Hashable, Layout] = {}
        self._orders: dict[Hashable, tuple[Layout, NDArray[np.intp]]] = {}
        self._common: dict[frozenset[Layout], Common] = {}

    def of(self, frame: pd.DataFrame) -> tuple[Layout, NDArray[np.intp]]:
        """Return the frame's cases, and in which row each of them stands."""
        told = [n for n in frame if n in _CASE or str(n).startswith("target")]
        names = tuple(map(str, frame.columns))
        order = (names, _content(frame[told]))
        if order not in self._orders:
            cases = identified(frame[told].assign(row=np.arange(len(frame)))).sort_index()
            rows = cases.pop("row").to_numpy(dtype=np.intp)
            key = (names, _content(cases))
            if key not in self._layouts:
                groups = np.unique(cases["group_id"].to_numpy(dtype=str), return_inverse=True)[1]
                rare = self._rare(frame.iloc[rows])
                self._layouts[key] = Layout(cases.index, groups, rare)
            self._orders[order] = self._layouts[key], rows
        return self._orders[order]

    def common(self, layouts: Sequence[Layout]) -> Common:
        """Return the cases that all of these have."""
        key = frozenset(layouts)
        if key not in self._common:
            indices = [layout.index for layout in layouts]
            index = functools.reduce(lambda a, b: a.intersection(b), indices).sort_values()
            places = {layout: layout.index.get_indexer(index) for layout in layouts}
            self._common[key] = Common(
                places=places,
                groups=layouts[0].groups[places[layouts[0]]],
                total=len(functools.reduce(lambda a, b: a.union(b), indices)),
            )
        return self._common[key]


def identified(frame: pd.DataFrame) -> pd.DataFrame:
    """Return predictions indexed by id and target, each case once, an exam by its own id."""
    case = frame["sample_id"]
    if "exam_id" in frame:
        case = case.fillna(frame["exam_id"])
    group = frame["group_id"].fillna(case) if "group_id" in frame else case
    frame = frame.assign(sample_id=case.astype(str), group_id=group.astype(str))
    keys = ["sample_id", *(name for name in frame if str(name).startswith("target"))]
    return frame.drop_duplicates("sample_id").set_index(keys, drop=False)


def _content(frame: pd.DataFrame) -> bytes:
    """Return what two tables share only if they have the same rows in the same order."""
    return pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes()

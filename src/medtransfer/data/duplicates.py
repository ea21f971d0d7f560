"""Which images of a dataset are one: identical, or copies that were changed on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medtransfer.data.alignment import (
    align,
    blurred,
    correlation,
    cut,
    detail,
    partial_correlation,
)
from medtransfer.data.lookalikes import MANY, Candidates, lookalikes
from medtransfer.data.squares import Floats, squares, turned

FORMAT = 1  # changes when what is found changes

ROUGH_SIDE = 24  # of the squares that are laid over each other at first, pixels
SIDE = 48  # and in the end
COARSE_STEPS, FINE_STEPS = 4, 3
# measured on phantoms, breast ultrasound, blood cells and radiographs (see tests/unit)
ROUGH = 0.45  # the least correlation of copies as they are found is 0.48
SIMILAR = 0.75  # in the end: of copies 0.76 and more, of two views of one patient up to 0.7
SURE = 0.9  # no dataset asks for more, or crops would be missed
SPREADS = 8.0  # standard deviations above what chance gives: one in more pairs than there are
SAMPLE = 1024
CHUNK = 128  # pairs that are held at once


class Pair(NamedTuple):
    """Two images of which one is a copy of the other.

    Attributes:
        first: Index of the one that stands first.
        second: Index of the other.
        kind: `exact` where all pixels are equal.
        similarity: Correlation of their fine structure, 1 where they are exact.
    """

    first: int
    second: int
    kind: Literal["exact", "near"]
    similarity: float


def find(
    facts: NDArray[Any],
    contents: Sequence[str],
    images: NDArray[np.uint8] | NDArray[np.uint16],
) -> tuple[Pair, ...]:
    """Return which images are copies of which.

    Args:
        facts: (n,) of `facts.DTYPE`.
        contents: (n,) hashes of the images as they were read.
        images: (n, C, S, S), letterboxed.

    Returns:
        Sorted. Of several identical images each is paired with the first of them only, and only
        that first one with what is near.
    """
    first: dict[str, int] = {}
    pairs = []
    for index, content in enumerate(contents):
        earlier = first.setdefault(content, index)
        if earlier != index:
            pairs.append(Pair(earlier, index, "exact", 1.0))
    pairs += _near(facts, images, np.fromiter(first.values(), np.intp))
    return tuple(sorted(pairs))


def _near(
    facts: NDArray[Any],
    images: NDArray[np.uint8] | NDArray[np.uint16],
    indices: NDArray[np.intp],
) -> Iterator[Pair]:
    if len(indices) < 2:
        return
    laid = _Laid.over(images, facts, indices)
    least = _least(laid, indices)
    for chunk in _chunks(lookalikes(images, facts, indices)):
        score = laid.similarity(chunk, ROUGH)
        for i, j, value in zip(
            chunk.whole.tolist(), chunk.copy.tolist(), score.tolist(), strict=True
        ):
            if value >= least:
                yield Pair(min(i, j), max(i, j), "near", round(value, 4))


@dataclass(frozen=True)
class _Laid:
    """Images that are laid over each other.

    Attributes:
        images: (n, C, S, S), letterboxed.
        facts: (n,) of `facts.DTYPE`.
        shared: (SIDE, SIDE), the mean detail of all images; zero where they are few, and the mean
            would be made of the very ones that are compared.
    """

    images: NDArray[np.uint8] | NDArray[np.uint16]
    facts: NDArray[Any]
    shared: Floats

    @classmethod
    def over(
        cls,
        images: NDArray[np.uint8] | NDArray[np.uint16],
        facts: NDArray[Any],
        indices: NDArray[np.intp],
    ) -> _Laid:
        """Return the images with what they share."""
        if len(indices) < MANY:
            return cls(images, facts, np.zeros((SIDE, SIDE), np.float32))
        steps = np.linspace(0, len(indices) - 1, min(SAMPLE, len(indices))).astype(np.intp)
        sample = detail(squares(images, facts, indices[steps], SIDE))
        return cls(images, facts, sample.mean(axis=0))

    def similarity(self, pairs: Candidates, rough: float) -> Floats:
        """Return how alike pairs are in their details once one is laid over the other.

        Args:
            pairs: (m,) of them.
            rough: Those below this correlation, where they lie and at a small size, are not moved.

        Returns:
            (m,), from -1 to 1; -1 for those that are not moved.
        """
        score = np.full(len(pairs.whole), -1, np.float32)
        whole, copy = self._details(pairs, ROUGH_SIDE)
        windows = pairs.windows
        (kept,) = np.nonzero(correlation(cut(whole, windows), copy) >= rough)
        if not len(kept):
            return score
        windows = align(blurred(whole[kept]), blurred(copy[kept]), windows[kept], COARSE_STEPS)
        pairs = Candidates(*(column[kept] for column in pairs))
        whole, copy = self._details(pairs, SIDE)
        windows = align(whole, copy, windows, FINE_STEPS)
        shared = np.broadcast_to(self.shared, whole.shape)
        seen = cut(shared, windows), np.stack([turned(self.shared, t) for t in pairs.turn.tolist()])
        score[kept] = partial_correlation(cut(whole, windows), copy, seen)
        return score

    def _details(self, pairs: Candidates, side: int) -> tuple[Floats, Floats]:
        wholes = squares(self.images, self.facts, pairs.whole, side)
        copies = squares(self.images, self.facts, pairs.copy, side)
        for turn in np.unique(pairs.turn).tolist():
            copies[pairs.turn == turn] = turned(copies[pairs.turn == turn], turn)
        return detail(wholes), detail(copies)


def _least(laid: _Laid, indices: NDArray[np.intp]) -> float:
    """Return what similarity copies have, given that of images which were paired by chance.

    Small radiographs of one kind are so alike that some pairs of patients reach 0.85; images of
    other kinds hardly ever 0.6.
    """
    if len(indices) < MANY:
        return SIMILAR
    rng = np.random.default_rng(0)
    first = rng.integers(len(indices), size=SAMPLE)
    second = (first + rng.integers(1, len(indices), size=SAMPLE)) % len(indices)
    none = np.zeros(SAMPLE, np.int64)
    drawn = Candidates(indices[first], none, indices[second], none)
    chance = np.concatenate([laid.similarity(chunk, -1) for chunk in _chunks(drawn)])
    ratios = np.arctanh(np.clip(chance, -0.99, 0.99))  # close to normal, unlike correlations
    low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))  # a few copies may be among them
    spread = (high - low) / 2.563  # standard deviation of a normal distribution
    return float(np.clip(np.tanh(middle + SPREADS * spread), SIMILAR, SURE))


def _chunks(pairs: Candidates) -> Iterator[Candidates]:
    for start in range(0, len(pairs.whole), CHUNK):
        yield Candidates(*(column[start : start + CHUNK] for column in pairs))

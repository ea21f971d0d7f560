"""Probabilities against what came true: Brier score, calibration error, temperature scaling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from medtransfer.analysis.details.parts import Calibration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

BINS = 15
"""Bins of equal width in which the calibration error is summed up; torchmetrics' number."""

TEMPERATURES = (0.05, 20.0)
"""Where a temperature is looked for."""

_SCORE, _TARGET = "score_", "target_"
# What a score was before single precision rounded it to nothing, or to one, nobody knows any more.
_LEAST = float(np.finfo(np.float32).tiny)
_NEAREST = float(np.finfo(np.float32).eps) / 4


@dataclass(frozen=True)
class Probabilities:
    """What a trial says of its cases, and what is true of them.

    Attributes:
        names: The classes, or the labels.
        scores: Their probabilities, shape (n, K).
        truth: One where it holds, zero where not, NaN where nobody knows; shape (n, K).
        exclusive: Whether exactly one holds; labels stand each for itself.
    """

    names: tuple[str, ...]
    scores: Floats
    truth: Floats
    exclusive: bool

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Probabilities | None:
        """Read a table of predictions; None where it has no cases, or no probabilities."""
        names = tuple(str(n).removeprefix(_SCORE) for n in frame if str(n).startswith(_SCORE))
        scores = frame[[_SCORE + name for name in names]].to_numpy(dtype=np.float64)
        exclusive = "target" in frame
        if exclusive:
            target = frame["target"].to_numpy(dtype=np.int64)
            truth = (target[:, None] == np.arange(len(names))).astype(np.float64)
        elif all(_TARGET + name in frame for name in names):
            truth = frame[[_TARGET + name for name in names]].to_numpy(dtype=np.float64)
            truth = np.where(truth >= 0, truth, np.nan)
        else:
            return None
        return cls(names, scores, truth, exclusive) if np.isfinite(truth).any() else None

    @property
    def binary(self) -> bool:
        """Whether there are two classes, of which the last one is positive."""
        return self.exclusive and len(self.names) == 2

    def questions(self) -> Iterator[tuple[Flags, Floats]]:
        """Yield for each class or label the truth and the probability of the cases that know it.

        Two classes are one question. Where all cases give one answer there is no question.
        """
        for k in range(1, 2) if self.binary else range(len(self.names)):
            known = np.isfinite(self.truth[:, k])
            truth = self.truth[known, k] == 1
            if truth.any() and not truth.all():
                yield truth, self.scores[known, k]

    def stated(self) -> tuple[Flags, Floats]:
        """Return what came true, and with which probability it was said to.

        That is the positive one of two classes, the likeliest one of more, and of labels every one
        that is known.
        """
        if self.binary:
            return self.truth[:, 1] == 1, self.scores[:, 1]
        if self.exclusive:
            rows, top = np.arange(len(self.scores)), self.scores.argmax(axis=1)
            return self.truth[rows, top] == 1, self.scores[rows, top]
        known = np.isfinite(self.truth)
        return self.truth[known] == 1, self.scores[known]

    def brier(self) -> float:
        """Return the Brier score, in [0, 2] for three classes or more and else in [0, 1]."""
        squares = (self.scores - self.truth) ** 2
        if self.exclusive and not self.binary:
            squares = squares.sum(axis=1)
        return float(np.nanmean(squares[:, 1] if self.binary else squares))

    def nll(self, temperature: float = 1.0) -> float:
        """Return the mean negative log-likelihood, of labels over all that are known."""
        logits = self._logits() / temperature
        if self.exclusive:
            return -float((self.truth * special.log_softmax(logits, axis=1)).sum(axis=1).mean())
        likely = self.truth * special.log_expit(logits)
        return -float(np.nanmean(likely + (1 - self.truth) * special.log_expit(-logits)))

    def scaled(self, temperature: float) -> Probabilities:
        """Return them with logits divided by the temperature."""
        logits = self._logits() / temperature
        scores = special.softmax(logits, axis=1) if self.exclusive else special.expit(logits)
        return replace(self, scores=scores)

    def _logits(self) -> Floats:
        likely = np.log(np.maximum(self.scores, _LEAST))
        if self.exclusive:
            return np.asarray(likely)
        return np.asarray(likely - np.log(np.maximum(1 - self.scores, _NEAREST)))


def temperature_of(validation: Probabilities) -> float:
    """Return the temperature with the least negative log-likelihood, within `TEMPERATURES`.

    One number for all classes or labels (Guo et al. 2017, arXiv 1706.04599). It changes no order
    of classes, and is fitted on validation data: test data have no say in a model.
    """
    found = optimize.minimize_scalar(
        lambda power: validation.nll(float(np.exp(power))),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def calibration_error(truth: Flags, scores: Floats, bins: int = BINS) -> float:
    """Return the expected calibration error (Naeini et al. 2015), in [0, 1].

    The distance of a bin's mean probability from its share of what came true, averaged over bins
    of equal width by their cases. Bins hold their lower end; one is a bin by itself.
    """
    place = np.searchsorted(np.linspace(0, 1, bins + 1), scores, side="right") - 1
    gaps = np.bincount(place, weights=scores - truth, minlength=bins + 1)
    return float(np.abs(gaps).sum() / len(scores))


def calibration_row(
    arm: str, tests: Sequence[Probabilities], temperatures: Sequence[float] | None
) -> Calibration:
    """Return the means over an arm's trials, before and after scaling.

    Args:
        arm: Its name.
        tests: Test predictions of its trials, one or more.
        temperatures: Of each trial; None where one of them has no validation predictions.
    """
    plain = Calibration(arm, *_means(tests, [p.nll() for p in tests]))
    if temperatures is None:
        return plain
    pairs = list(zip(tests, temperatures, strict=True))
    # from the logits: of a scaled probability of almost one its distance from it is rounded
    ece, brier, nll = _means([p.scaled(t) for p, t in pairs], [p.nll(t) for p, t in pairs])
    return replace(
        plain,
        temperature=float(np.mean(temperatures)),
        ece_scaled=ece,
        brier_scaled=brier,
        nll_scaled=nll,
    )


def _means(said: Sequence[Probabilities], nlls: Sequence[float]) -> tuple[float, float, float]:
    errors = [(calibration_error(*p.stated()), p.brier()) for p in said]
    ece, brier = np.mean(errors, axis=0).tolist()
    return ece, brier, float(np.mean(nlls))

"""What is tried for each cell of a study before its final trials."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medtransfer.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

Settings = dict[str, Any]
"""Values by key."""

AHEAD = frozenset({"random", "qmc"})
"""Samplers that do not look at what came out: all draws are known beforehand."""

RANGE = frozenset({"low", "high", "log"})


class Tuner:
    """Draws settings from the search space of one cell, and tells which was best.

    The first draw is what the YAML says, so that tuning can only gain on validation data. The
    others come from Optuna (Akiba et al. 2019), seeded by the study's seed alone: cells with one
    search space try the same settings, and it does not matter in which order trials end.

    Args:
        space: Keys with `{low, high, log}` or `{choices}`, as strategies declare them.
        trials: How many settings are tried; one where nothing can be tuned.
        sampler: `random`, `qmc`, `tpe` or `gp`.
        seed: Of the study.
    """

    def __init__(
        self,
        space: Mapping[str, Mapping[str, Any]],
        *,
        trials: int,
        sampler: str,
        seed: int,
    ) -> None:
        self.space = {key: _distribution(key, dict(told)) for key, told in space.items()}
        self.trials = trials if space else 0
        self.asked: list[tuple[Settings, Trial | None]] = []
        self.scores: list[float] = []
        self._study = _study(sampler, seed) if self.trials else None

    def ask(self) -> Settings | None:
        """Return the next settings, or None when the budget is spent."""
        if len(self.asked) >= self.trials or self._study is None:
            return None
        if not self.asked:
            self.asked.append(({}, None))
            return {}
        trial = self._study.ask(self.space)
        settings = {key: _plain(trial.params[key], self.space[key]) for key in self.space}
        self.asked.append((settings, trial))
        return settings

    def tell(self, draw: int, score: float | None) -> None:
        """Take the score of a draw, more being better; None where the trial failed.

        Told draw by draw in their order: what an adaptive sampler draws next depends on it.
        """
        assert self._study is not None
        assert draw == len(self.scores)
        failed = score is None or math.isnan(score)
        self.scores.append(-math.inf if failed or score is None else score)
        trial = self.asked[draw][1]
        if trial is not None:
            from optuna.trial import TrialState

            state = TrialState.FAIL if failed else TrialState.COMPLETE
            self._study.tell(trial, None if failed else score, state=state)

    @property
    def best(self) -> Settings:
        """The settings with the best score, of equals the first; the YAML's own if all failed."""
        if not self.scores or max(self.scores) == -math.inf:
            return {}
        return self.asked[self.scores.index(max(self.scores))][0]


def _study(sampler: str, seed: int) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    makers = {
        "random": optuna.samplers.RandomSampler,
        "qmc": optuna.samplers.QMCSampler,
        "tpe": optuna.samplers.TPESampler,
        "gp": optuna.samplers.GPSampler,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        made = makers[sampler](seed=seed)
    return optuna.create_study(sampler=made, direction="maximize")


def _distribution(key: str, told: Settings) -> BaseDistribution:
    """Return Optuna's form of one dimension of a search space.

    Raises:
        ConfigError: If it cannot be read.
    """
    from optuna import distributions

    choices = told.get("choices")
    if set(told) == {"choices"} and isinstance(choices, Sequence) and choices:
        # as text: Optuna's choices are numbers and texts, and a choice may be a list
        return distributions.CategoricalDistribution([json.dumps(each) for each in choices])
    try:
        if not {"low", "high"} <= set(told) <= RANGE:
            raise ValueError
        low, high, log = told["low"], told["high"], bool(told.get("log", False))
        if isinstance(low, int) and isinstance(high, int):
            return distributions.IntDistribution(low, high, log=log)
        return distributions.FloatDistribution(float(low), float(high), log=log)
    except (TypeError, ValueError) as error:
        why = f": {error}" if str(error) else ""
        raise ConfigError(
            f"strategy.search_space.{key}={told} is no range and no list{why}",
            remedy="{low: 1.0e-5, high: 1.0e-2, log: true} or {choices: [1, 2, 3]}",
        ) from None


def _plain(value: Any, distribution: BaseDistribution) -> Any:
    from optuna.distributions import CategoricalDistribution

    return json.loads(value) if isinstance(distribution, CategoricalDistribution) else value

"""What a study tried before its final trials, and what each arm took."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from medtransfer.analysis.grid import natural
from medtransfer.analysis.results import Draw, Spent, Tuning
from medtransfer.analysis.statistics.case_values import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medtransfer.analysis.load import Study, Trial

_OPENINGS = "medtransfer.test_openings"
_TUNED = "medtransfer.tuned"


def tuning(study: Study) -> tuple[Tuning, ...]:
    """Return the draws of each arm and setting of the data axes, and which was chosen."""
    cells: dict[tuple[str, tuple[tuple[str, str], ...]], list[Trial]] = {}
    for trial in study.tuning:
        cells.setdefault((trial.arm, tuple(trial.axes.items())), []).append(trial)
    finals: dict[tuple[str, tuple[tuple[str, str], ...]], list[Trial]] = {}
    for trial in study.trials:
        finals.setdefault((trial.arm, tuple(trial.axes.items())), []).append(trial)
    ordered = sorted(cells, key=lambda cell: (natural(cell[1]), cell[0]))
    return tuple(
        Tuning(
            arm=arm,
            axes=dict(setting),
            draws=tuple(_draw(trial, study.metric) for trial in cells[arm, setting]),
            chosen=_chosen(cells[arm, setting], finals.get((arm, setting), ()), study.metric),
        )
        for arm, setting in ordered
    )


def spent(study: Study) -> tuple[Spent, ...]:
    """Return what each arm took; attempts that were replaced by a retry have cost as well."""
    arms = sorted({trial.arm for trial in (*study.trials, *study.tuning)})
    found = []
    for arm in arms:
        final = [trial for trial in study.trials if trial.arm == arm]
        tuned = [trial for trial in study.tuning if trial.arm == arm]
        every = [*final, *tuned, *(trial for trial in study.replaced if trial.arm == arm)]
        found.append(
            Spent(
                arm=arm,
                tuning_trials=len(tuned),
                final_trials=len(final),
                failed=sum(_failed(trial) for trial in (*final, *tuned)),
                steps=_total(every, "steps"),
                seconds=_total(every, "train_seconds"),
                validations=_total(every, "validations"),
                test_openings=sum(int(trial.tags.get(_OPENINGS) or 0) for trial in every),
            )
        )
    return tuple(found)


def splits(study: Study) -> dict[str, int]:
    """Return how many final trials ran on each split, by its hash."""
    hashes = sorted(trial.split_hash for trial in study.trials if trial.split_hash)
    return {key: len(list(same)) for key, same in itertools.groupby(hashes)}


def _draw(trial: Trial, metric: str) -> Draw:
    return Draw(
        number=-1 if trial.draw is None else trial.draw,
        settings=trial.settings,
        score=trial.best.get(metric),
        status=trial.status,
        steps=trial.cost.get("steps", 0.0),
        seconds=trial.cost.get("train_seconds", 0.0),
        validations=trial.cost.get("validations", 0.0),
    )


def _chosen(draws: Sequence[Trial], finals: Sequence[Trial], metric: str) -> int | None:
    """Return the draw whose settings the final trials ran with; of equal ones the best."""
    told = [trial for trial in finals if trial.tags.get(_TUNED) == "yes"]
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    fitting = [
        draw
        for draw in draws
        if told and draw.settings == told[-1].settings and metric in draw.best
    ]
    best = max(fitting, key=lambda draw: sign * draw.best[metric], default=None)
    return None if best is None else best.draw


def _failed(trial: Trial) -> bool:
    return trial.status in {"FAILED", "KILLED"}


def _total(trials: Sequence[Trial], cost: str) -> float:
    return float(sum(trial.cost.get(cost, 0.0) for trial in trials))

"""What every study keeps: it can be planned, and each of its trials could start."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from medtransfer.app import App, Plan
from medtransfer.config import TrainConfig
from medtransfer.run import check
from medtransfer.testing.composing import own, trust
from medtransfer.testing.requiring import require

SWEEPER = "study"


def check_study(
    name: str,
    *overrides: str,
    config_dir: Path | str | None = None,
    trusted: Sequence[str] = (),
) -> Plan:
    """Check a choice of the group `study` without running any trial.

    It declares two arms or more, under the sweeper that runs them; its primary contrast is one of
    its settings; every arm and every value of an axis composes to a trial whose parts fit together.
    Images are not read.

    Args:
        name: The choice.
        *overrides: As on the command line, such as `dataset=busi`.
        config_dir: The folder that you give as --config-dir.
        trusted: The modules that you trust on the command line; they must be importable.

    Returns:
        What it would run, for tests that count its trials.

    Raises:
        AssertionError: If it declares nothing that can be compared.
        ConfigError: If a trial could not start.
    """
    given = [f"study={name}", *overrides, *trust(trusted)]
    with App.open("train", own(config_dir)) as app:
        composed = app.compose(given)
        sweeper = composed.choices["hydra/sweeper"]
        require(
            sweeper == SWEEPER,
            f"study '{name}' runs under hydra/sweeper={sweeper}: write 'override /hydra/sweeper:"
            f" {SWEEPER}' into its defaults",
        )
        study = composed.typed(TrainConfig).study
        require(len(study.arms) > 1, f"study '{name}' has {len(study.arms)} arms to compare")
        distinct = {tuple(sorted(told)) for told in study.arms.values()}
        require(len(distinct) == len(study.arms), f"two arms of study '{name}' are the same")
        for key, value in (study.primary.at if study.primary else {}).items():
            values = [str(each) for each in study.axes.get(key, ())]
            there = str(value) in values
            require(there, f"primary is at {key}={value}, and the axis has {', '.join(values)}")
        plan = app.plan(given)
        for job in covering([*plan.jobs, *plan.tuning]):
            check(app.compose(job).typed(TrainConfig))
    return plan


def covering(jobs: Iterable[Sequence[str]]) -> list[Sequence[str]]:
    """Return jobs in which every override stands once at least, seeds and draws aside.

    `train -m` checks every combination before it starts; here each arm and each value are enough.
    """
    seen: set[str] = set()
    kept = []
    for job in jobs:
        new = {each for each in job if not each.startswith(("seed=", "study.draw="))} - seen
        if new:
            kept.append(job)
            seen |= new
    return kept

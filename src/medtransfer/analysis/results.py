"""What a report states, and its form as `results.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medtransfer.analysis.statistics.intervals import Over
    from medtransfer.analysis.statistics.verdicts import Verdict

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Arm:
    """One row of the answer: an arm under one setting of the data axes.

    Args:
        mean: The metric's mean over cases and finished seeds; None where no seed has one.
        lo: Lower end of its 95 % interval; None where there is no interval.
        over: What the interval covers, see `intervals.Interval`.
        n_groups: Patients among the cases; equal to `n_cases` where each is its own.
        cost: Mean over the finished seeds of each `cost/` metric.
        failed: Trials that failed or were killed.
    """

    arm: str
    axes: Mapping[str, str]
    n_seeds: int
    n_cases: int
    n_groups: int
    mean: float | None
    lo: float | None
    hi: float | None
    over: Over
    cost: Mapping[str, float]
    failed: int


@dataclass(frozen=True)
class Contrast:
    """The paired difference `a` - `b` on the cases and seeds that both have.

    Args:
        diff: In units of the metric; the verdict knows whether more is better.
        p_adj: Corrected by Holm over all contrasts of the study.
        verdict: Of `a` against `b`.
        provisional: Fewer than five seeds.
    """

    a: str
    b: str
    axes: Mapping[str, str]
    diff: float | None
    lo: float | None
    hi: float | None
    p_adj: float | None
    verdict: Verdict
    provisional: bool
    n_cases: int
    n_groups: int
    n_seeds: int
    over: Over


@dataclass(frozen=True)
class Failure:
    """A trial without a result, and why."""

    run_id: str
    arm: str
    axes: Mapping[str, str]
    seed: int | None
    reason: str


@dataclass(frozen=True)
class Results:
    """Everything that a report states; `results.json` holds the same fields.

    Args:
        study: The study's name.
        headline: The answer in one sentence.
        budget: `trials`, `finished`, `failed` and `train_seconds`, summed over the trials.
        notes: What is missing or unusual: seeds that failed, arms that could not be paired.
    """

    study: str
    study_id: str
    metric: str
    rope: float
    headline: str
    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]
    failures: tuple[Failure, ...]
    budget: Mapping[str, float]
    waivers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `results.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Results:
        """Read what `as_dict` wrote."""
        parts = {
            "arms": tuple(Arm(**each) for each in content["arms"]),
            "contrasts": tuple(Contrast(**each) for each in content["contrasts"]),
            "failures": tuple(Failure(**each) for each in content["failures"]),
            "waivers": tuple(content["waivers"]),
            "notes": tuple(content["notes"]),
        }
        return cls(**{**content, **parts})

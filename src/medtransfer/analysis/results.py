"""What a report states, and its form as `results.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from medtransfer.analysis.details.parts import Details

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
        by_seed: The metric of each finished seed.
        incomplete: Whether it lacks a seed that other arms of the study have.
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
    by_seed: Mapping[str, float] = field(default_factory=dict)
    incomplete: bool = False


@dataclass(frozen=True)
class Contrast:
    """The paired difference `a` - `b` on the cases and seeds that both have.

    Args:
        diff: In units of the metric; the verdict knows whether more is better.
        p_adj: Corrected by Holm over all contrasts but the primary one, whose p stays as it is.
        verdict: Of `a` against `b`.
        provisional: Fewer than five seeds.
        p: As it was before the correction.
        primary: Whether the study declared it beforehand as its question.
        more_cases: Cases that it would take besides to decide an undecided contrast with the same
            seeds, if the difference is what was observed; None where no number would do.
        more_seeds: Seeds, with the same cases.
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
    p: float | None = None
    primary: bool = False
    more_cases: int | None = None
    more_seeds: int | None = None


@dataclass(frozen=True)
class Crossing:
    """Where the learning curve of `b` rises above that of `a`.

    Args:
        axis: What the curves run over, such as `dataset.fraction`.
        at: Training cases there; None where the curves do not cross between the ends.
        lo: Lower end of its 95 % interval; None where it lies outside of what was measured.
        hi: Upper end.
        unit: What `at` counts.
        text: The same in words.
        axes: The values of the other data axes.
    """

    a: str
    b: str
    axis: str
    at: float | None
    lo: float | None
    hi: float | None
    unit: str
    text: str
    axes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Draw:
    """One setting that was tried before the final trials, and its score on validation data."""

    number: int
    settings: Mapping[str, Any]
    score: float | None
    status: str
    steps: float
    seconds: float
    validations: float


@dataclass(frozen=True)
class Tuning:
    """What was tried for an arm under one setting of the data axes.

    Args:
        chosen: The number of the draw that the final trials ran with; None: the defaults.
    """

    arm: str
    axes: Mapping[str, str]
    draws: tuple[Draw, ...]
    chosen: int | None


@dataclass(frozen=True)
class Spent:
    """What an arm took, over all settings, tuning included."""

    arm: str
    tuning_trials: int
    final_trials: int
    failed: int
    steps: float
    seconds: float
    validations: float
    test_openings: int


@dataclass(frozen=True)
class Check:
    """What another method says of the headline's contrast; it decides nothing."""

    name: str
    told: str


@dataclass(frozen=True)
class External:
    """The same trials on the data of another site."""

    arms: tuple[Arm, ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True)
class Rank:
    """An arm over several datasets.

    Args:
        rank: Mean over datasets, 1 for the best.
        p_adj: Of Wilcoxon's signed-rank test against the baseline, corrected by Holm; None for the
            baseline itself.
        iqm: Interquartile mean of its values over datasets and seeds.
        iqm_lo: Lower end of its interval over seeds.
        iqm_hi: Upper end.
        improvement: How likely one of its seeds is ahead of one of the baseline.
        shares: Posterior probabilities that a further dataset has it behind the baseline, within
            the region of practical equivalence, and ahead.
    """

    arm: str
    rank: float
    mean_diff: float | None
    p_adj: float | None
    iqm: float | None = None
    iqm_lo: float | None = None
    iqm_hi: float | None = None
    improvement: float | None = None
    shares: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Across:
    """Arms over datasets, each dataset one value an arm.

    Args:
        p: Of Friedman's test that all arms rank alike.
        critical_difference: Nemenyi's: mean ranks that lie closer cannot be told apart.
    """

    datasets: tuple[str, ...]
    baseline: str
    p: float | None
    critical_difference: float | None
    ranks: tuple[Rank, ...]


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
        primary: The contrast that the study declared beforehand as its question.
        external: The same trials on another site's data.
        crossings: Where learning curves cross.
        tuning: What was tried for each arm before its final trials.
        spent: What each arm took.
        protocol: What the study declared: arms, axes, seeds, budget, search, primary contrast.
        environment: Versions and machine of the first finished trial.
        splits: How many final trials ran on each split, by its hash.
        details: Curves, calibration, subgroups and worst cases under the setting of the headline.
        across: Arms over datasets, where a study has three or more of them.
        checks: What other methods say of the headline's contrast.
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
    primary: Contrast | None = None
    external: External | None = None
    crossings: tuple[Crossing, ...] = ()
    tuning: tuple[Tuning, ...] = ()
    spent: tuple[Spent, ...] = ()
    protocol: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)
    details: Details = field(default_factory=Details)
    across: Across | None = None
    checks: tuple[Check, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def as_dict(self) -> dict[str, Any]:
        """Return the content of `results.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Results:
        """Read what `as_dict` wrote."""
        external, across = content["external"], content["across"]
        parts = {
            "arms": tuple(Arm(**each) for each in content["arms"]),
            "contrasts": tuple(Contrast(**each) for each in content["contrasts"]),
            "failures": tuple(Failure(**each) for each in content["failures"]),
            "waivers": tuple(content["waivers"]),
            "notes": tuple(content["notes"]),
            "primary": content["primary"] and Contrast(**content["primary"]),
            "external": external
            and External(
                tuple(Arm(**each) for each in external["arms"]),
                tuple(Contrast(**each) for each in external["contrasts"]),
            ),
            "crossings": tuple(Crossing(**each) for each in content["crossings"]),
            "tuning": tuple(
                Tuning(**{**each, "draws": tuple(Draw(**draw) for draw in each["draws"])})
                for each in content["tuning"]
            ),
            "spent": tuple(Spent(**each) for each in content["spent"]),
            "checks": tuple(Check(**each) for each in content["checks"]),
            "details": Details.from_dict(content["details"]),
            "across": across
            and Across(
                **{
                    **across,
                    "datasets": tuple(across["datasets"]),
                    "ranks": tuple(
                        Rank(**{**each, "shares": each["shares"] and tuple(each["shares"])})
                        for each in across["ranks"]
                    ),
                }
            ),
        }
        return cls(**{**content, **parts})

"""A made-up study in which every section of a report has something to show."""

from dataclasses import replace
from functools import cache

import numpy as np

from medtransfer.analysis.details.parts import (
    Calibration,
    Chart,
    Details,
    Line,
    Spread,
    Subgroup,
    Worst,
)
from medtransfer.analysis.report.sections import sections
from medtransfer.analysis.results import (
    Across,
    Arm,
    Contrast,
    Crossing,
    Draw,
    External,
    Failure,
    Rank,
    Results,
    Spent,
    Tuning,
)

FE = "feature_extraction/resnet50.a1_in1k/imagenet/standardised features, L2 by cross-validation"
FT = "fine_tuning/resnet50.a1_in1k/imagenet"
LPFT = "probe_then_fine_tune/resnet50.a1_in1k/imagenet/layer-wise decay 0.75"
ARMS = (FE, FT, LPFT)
FRACTIONS = ("0.1", "0.3", "1.0")
SEEDS = range(5)
AT = {"dataset.fraction": "1.0"}
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}$x^2$&amp;|`z`\x1b[31m"

_MEANS = {FE: (0.812, 0.846, 0.861), FT: (0.771, 0.858, 0.902), LPFT: (0.806, 0.861, 0.899)}
_COSTS = {FE: (12.4, 0.9, 2050), FT: (148.0, 2.8, 23_512_130), LPFT: (160.3, 2.8, 23_512_130)}
_RAW = {FE: 0.861, FT: 0.902, LPFT: 0.899}


def _arm(arm, i, *, shift=0.0, seeds=SEEDS, failed=0):
    mean = _MEANS[arm][i] + shift
    half = 0.045 - 0.008 * i
    rng = np.random.default_rng([ARMS.index(arm), i])
    seconds, gigabytes, learned = _COSTS[arm]
    return Arm(
        arm=arm,
        axes={"dataset.fraction": FRACTIONS[i]},
        n_seeds=len(seeds),
        n_cases=156,
        n_groups=117,
        mean=mean,
        lo=mean - half,
        hi=mean + 0.9 * half,
        over="cases and seeds",
        cost={
            "train_seconds": seconds * (0.4, 0.6, 1.0)[i],
            "peak_memory_mb": 1000 * gigabytes,
            "trainable_parameters": learned,
            "parameters": 23_512_130,
            "latency_ms": 41.2 + ARMS.index(arm),
        },
        failed=failed,
        by_seed={f"{seed}": round(mean + 0.012 * rng.normal(), 6) for seed in seeds},
        incomplete=len(seeds) < len(SEEDS),
    )


def _contrast(a, b, i, verdict, half=0.028, *, shift=0.0, **given):
    diff = _MEANS[a][i] - _MEANS[b][i] + shift
    return Contrast(
        a=a,
        b=b,
        axes={"dataset.fraction": FRACTIONS[i]},
        diff=diff,
        lo=diff - half,
        hi=diff + half,
        p=0.0061,
        p_adj=given.pop("p_adj", 0.034),
        verdict=verdict,
        provisional=False,
        n_cases=156,
        n_groups=117,
        n_seeds=5,
        over="cases and seeds",
        **given,
    )


def _chart(name, title, x_label, y_label, curve, **given):
    x = np.linspace(0, 1, 51)
    lines = []
    for k, arm in enumerate(ARMS):
        y = np.clip(curve(x, 1 + 0.25 * k), -1, 1)
        lines.append(Line(arm, tuple(x), tuple(y), tuple(np.clip(y - 0.03, 0, 1)), tuple(y + 0.02)))
    return Chart(name, title, x_label, y_label, tuple(lines), **given)


def _details():
    rng = np.random.default_rng(0)
    chance = Line("chance", (0.0, 1.0), (0.0, 1.0))
    unit = {"x_range": (0.0, 1.0), "y_range": (0.0, 1.05), "references": (chance,)}
    charts = (
        _chart(
            "roc",
            "ROC curve",
            "1 - specificity",
            "sensitivity",
            lambda x, k: x ** (0.35 / k),
            **unit,
            note="malignant against the rest",
        ),
        _chart("pr", "Precision and recall", "sensitivity", "precision", lambda x, k: 1 - x**6 / k),
        _chart(
            "decision",
            "Decision curve",
            "threshold",
            "net benefit",
            lambda x, k: 0.3 * (1 - x) ** (1 / k),
        ),
        _chart(
            "reliability", "Reliability", "stated", "observed", lambda x, k: x ** (1.5 / k), **unit
        ),
        _chart(
            "reliability_scaled",
            "Reliability after temperature scaling",
            "stated",
            "observed",
            lambda x, k: x ** (1 + 0.1 * k),
            **unit,
        ),
    )
    of = "probability of the true class"
    return Details(
        setting=AT,
        charts=charts,
        calibration=tuple(
            Calibration(arm, 0.08 + 0.02 * k, 0.11, 0.38 + 0.1 * k, 1.4, 0.03, 0.1, 0.33)
            for k, arm in enumerate(ARMS)
        ),
        subgroups=tuple(
            Subgroup(column, value, arm, n, 0.8 + 0.03 * k - 0.02 * v, 0.7, 0.95)
            for column, values in {
                "sex": {"female": 131, "male": 25},
                "site": {"Leipzig, St. Georg": 88, "Graz": 68},
            }.items()
            for v, (value, n) in enumerate(values.items())
            for k, arm in enumerate(ARMS)
        ),
        spread=(
            *(Spread(arm, "seeds", "AUROC", tuple(_arm(arm, 2).by_seed.values())) for arm in ARMS),
            *(
                Spread(arm, "cases", of, tuple(np.sort(rng.beta(3 + k, 1.2, 156)).tolist()))
                for k, arm in enumerate(ARMS)
            ),
        ),
        worst=tuple(
            Worst(f"busi/malignant ({k})", "malignant", dict.fromkeys(ARMS, 0.01 * k + 0.02))
            for k in range(1, 9)
        ),
    )


def _tuning(arm, i):
    rng = np.random.default_rng([7, ARMS.index(arm), i])
    scores = [_MEANS[arm][i] + 0.03 * rng.normal() for _ in range(8)]
    draws = tuple(
        Draw(
            number=n,
            settings={"optimizer.lr": round(10 ** rng.uniform(-5, -2), 7), "strategy.drop": 0.1}
            if n
            else {},
            score=None if n == 5 and arm == LPFT else score,
            status="FAILED" if n == 5 and arm == LPFT else "FINISHED",
            steps=150,
            seconds=12.0,
            validations=10,
        )
        for n, score in enumerate(scores)
    )
    best = max((d for d in draws if d.score is not None), key=lambda d: d.score)
    return Tuning(arm, {"dataset.fraction": FRACTIONS[i]}, draws, best.number)


def results():
    """Return three arms under three fractions with five seeds; one trial failed."""
    arms = tuple(
        _arm(arm, i) if (arm, i) != (LPFT, 0) else _arm(arm, i, seeds=[0, 1, 2, 4], failed=1)
        for i in (0, 1, 2)
        for arm in sorted(ARMS, key=lambda a: -_MEANS[a][i])
    )
    primary = _contrast(FT, FE, 2, "better", 0.029, primary=True, p_adj=0.0061)
    contrasts = (
        _contrast(FE, LPFT, 0, "undecided", 0.03, p_adj=0.9, more_cases=812, more_seeds=11),
        _contrast(FE, FT, 0, "better", 0.033),
        _contrast(LPFT, FT, 0, "better", 0.03),
        _contrast(LPFT, FT, 1, "equivalent", 0.006, p_adj=0.8),
        _contrast(LPFT, FE, 1, "undecided", 0.025, p_adj=0.44),
        _contrast(FT, FE, 1, "undecided", 0.031, p_adj=0.62, more_cases=300),
        primary,
        _contrast(FT, LPFT, 2, "equivalent", 0.006, p_adj=0.7),
        _contrast(LPFT, FE, 2, "better", 0.027),
    )
    return Results(
        study="feature_extraction_vs_fine_tuning on BUSI",
        study_id="4f1c2b7a9e",
        metric="auroc",
        rope=0.01,
        headline=(
            f"With dataset.fraction=1.0: {FT} is better than {FE} by 0.041 AUROC (95 % CI 0.012 to "
            "0.070, 5 seeds, 156 cases of 117 groups) at 12 times the training time. "
            f"{FT} in 2 other settings: worse in 1, undecided in 1."
        ),
        arms=arms,
        contrasts=contrasts,
        failures=(
            Failure(
                "0123456789abcdef0123456789abcdef",
                LPFT,
                {"dataset.fraction": "0.1"},
                3,
                "CUDA out of memory: tried to allocate 512 MiB",
            ),
        ),
        budget={"trials": 45, "finished": 44, "failed": 1, "train_seconds": 3301.0},
        waivers=("near-duplicates: 14 pairs of images with a hash distance below 4",),
        notes=(f"{LPFT} @ dataset.fraction=0.1: seed 3 failed",),
        primary=primary,
        external=External(
            arms=tuple(_arm(arm, 2, shift=-0.06) for arm in (LPFT, FT, FE)),
            contrasts=(
                _contrast(LPFT, FT, 2, "undecided", 0.03, shift=0.01, p_adj=0.5),
                _contrast(FT, FE, 2, "undecided", 0.05, shift=-0.01, p_adj=0.4),
            ),
        ),
        crossings=(
            Crossing(
                FE,
                FT,
                "dataset.fraction",
                112.0,
                61.0,
                187.0,
                "training cases",
                f"{FT} overtakes {FE} at 112 training cases (95 % CI 61 to 187).",
            ),
        ),
        tuning=tuple(_tuning(arm, i) for i in range(3) for arm in ARMS),
        spent=tuple(
            Spent(arm, 24, 15, failed, 150 * (39 - failed), seconds, 390 - 10 * failed, 15 - failed)
            for arm, failed, seconds in ((FE, 0, 310.0), (FT, 0, 3700.0), (LPFT, 1, 4010.0))
        ),
        protocol={
            "arms": {arm: [f"strategy={arm.split('/')[0]}"] for arm in ARMS},
            "axes": {"dataset.fraction": [0.1, 0.3, 1.0]},
            "seeds": [*SEEDS],
            "seed": 0,
            "budget": {"trials": 8, "max_steps": 150, "seconds": None},
            "search": {"sampler": "random", "pruner": None},
            "primary": {"a": FT, "b": FE, "at": {"dataset.fraction": 1.0}},
            "version": "0.1.0",
            "command": ["study=feature_extraction_vs_fine_tuning", "dataset=busi"],
        },
        environment={
            "python": "3.11.9",
            "platform": "Linux-6.1-x86_64",
            "processor": "AMD EPYC 7R13",
            "packages": {"torch": "2.8.0", "timm": "1.0.20", "medtransfer": "0.1.0"},
            "git_commit": None,
        },
        splits={"9b1d0c77aa": 44},
        details=_details(),
        across=Across(
            datasets=("busi", "bloodmnist", "dermamnist", "pneumoniamnist"),
            baseline=FE,
            p=0.018,
            critical_difference=1.66,
            ranks=(
                Rank(FT, 1.25, 0.031, 0.12),
                Rank(LPFT, 1.75, 0.027, 0.12),
                Rank(FE, 3.0, None, None),
            ),
        ),
    )


@cache
def drawn():
    """Return the study with its sections; drawing is what costs."""
    return results(), sections(results())


@cache
def attacked():
    """Return the hostile study with its sections."""
    return hostile(), sections(hostile())


def bare():
    """Return what an older store gives: arms and contrasts, and nothing else."""
    full = results()
    return Results(
        study=full.study,
        study_id=full.study_id,
        metric=full.metric,
        rope=full.rope,
        headline=full.headline,
        arms=tuple(replace(row, by_seed={}, incomplete=False) for row in full.arms),
        contrasts=tuple(replace(each, primary=False) for each in full.contrasts),
        failures=(),
        budget=full.budget,
    )


def hostile():
    """Return the study with every name that comes from outside made into an attack."""

    def spoil(content):
        if isinstance(content, dict):
            return {_named(key): spoil(value) for key, value in content.items()}
        if isinstance(content, (list, tuple)):
            return [spoil(each) for each in content]
        return _named(content)

    def _named(text):
        if not isinstance(text, str):
            return text
        for arm, name in zip(ARMS, "abc", strict=True):
            text = text.replace(arm, f"{HOSTILE} {name}")
        for name in (
            "busi",
            "Graz",
            "site",
            "malignant",
            "torch",
            "near-dup",
            "CUDA",
            "9b1d",
            "0.1.0",
        ):
            text = text.replace(name, HOSTILE)
        return text

    return replace(Results.from_dict(spoil(results().as_dict())), study=HOSTILE)


def large(settings=20, arms=22, seeds=5):
    """Return a study of many arms under many settings, all contrasts told."""
    rows, contrasts = [], []
    for s in range(settings):
        axes = {"dataset": f"set {s:02d}"}
        own = [
            replace(_arm(FT, 2), arm=f"arm {a:03d}", axes=axes, mean=0.9 - 0.002 * a)
            for a in range(arms)
        ]
        rows += own
        contrasts += [
            replace(_contrast(FT, LPFT, 2, "undecided"), a=a.arm, b=b.arm, axes=axes)
            for i, a in enumerate(own)
            for b in own[i + 1 :]
        ]
    return replace(bare(), arms=tuple(rows), contrasts=tuple(contrasts), headline="Nothing.")

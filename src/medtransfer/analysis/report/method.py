"""How a study was run and computed, as paragraphs for a paper, true to its own numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medtransfer.analysis.report.facts import names, settings
from medtransfer.analysis.report.words import (
    counted,
    listed,
    probability,
    seconds,
    title,
    whole,
)
from medtransfer.analysis.statistics.case_values import BOUNDS, LOWER_IS_BETTER
from medtransfer.analysis.statistics.intervals import ALPHA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from medtransfer.analysis.results import Results

_SAMPLERS = {
    "random": "drawn at random ahead of all trials (Bergstra & Bengio 2012)",
    "qmc": "drawn ahead of all trials from a low-discrepancy sequence",
    "tpe": "proposed by a tree-structured Parzen estimator in view of the scores before",
    "gp": "proposed by a Gaussian process in view of the scores before",
}
# Each with the words of the method that call for it.
REFERENCES = {
    "Satterthwaite": "Satterthwaite FE. An approximate distribution of estimates of variance "
    "components. Biometrics Bulletin 1946;2(6):110-114.",
    "Hillis": "Hillis SL. A comparison of denominator degrees of freedom methods for multiple "
    "observer ROC analysis. Statistics in Medicine 2007;26(3):596-619.",
    "Pepe": "Pepe MS. The statistical evaluation of medical tests for classification and "
    "prediction. Oxford University Press 2003.",
    "DeLong": "DeLong ER, DeLong DM, Clarke-Pearson DL. Comparing the areas under two or more "
    "correlated receiver operating characteristic curves. Biometrics 1988;44(3):837-845.",
    "Obuchowski": "Obuchowski NA. Nonparametric analysis of clustered ROC curve data. Biometrics "
    "1997;53(2):567-578.",
    "Holm": "Holm S. A simple sequentially rejective multiple test procedure. Scandinavian Journal "
    "of Statistics 1979;6(2):65-70.",
    "Lakens": "Lakens D. Equivalence tests. Social Psychological and Personality Science "
    "2017;8(4):355-362.",
    "Bergstra": "Bergstra J, Bengio Y. Random search for hyper-parameter optimization. Journal of "
    "Machine Learning Research 2012;13:281-305.",
    "Akiba": "Akiba T, Sano S, Yanase T, Ohta T, Koyama M. Optuna: a next-generation "
    "hyperparameter optimization framework. KDD 2019:2623-2631.",
    "Guo": "Guo C, Pleiss G, Sun Y, Weinberger KQ. On calibration of modern neural networks. ICML "
    "2017:1321-1330.",
    "Vickers": "Vickers AJ, Elkin EB. Decision curve analysis: a novel method for evaluating "
    "prediction models. Medical Decision Making 2006;26(6):565-574.",
    "Friedman": "Friedman M. The use of ranks to avoid the assumption of normality implicit in the "
    "analysis of variance. Journal of the American Statistical Association 1937;32(200):675-701.",
    "Wilcoxon": "Wilcoxon F. Individual comparisons by ranking methods. Biometrics Bulletin "
    "1945;1(6):80-83.",
    "Nemenyi": "Nemenyi PB. Distribution-free multiple comparisons. Princeton University 1963.",
    "Demsar": "Demsar J. Statistical comparisons of classifiers over multiple data sets. Journal "
    "of Machine Learning Research 2006;7:1-30.",
}


def method(results: Results) -> tuple[str, ...]:
    """Return the paragraphs: what was compared, how it was tuned, how it was computed."""
    paragraphs = (_design(results), _tuning(results), _statistics(results), _shown(results))
    return tuple(text for text in (" ".join(each) for each in paragraphs) if text)


def references(results: Results) -> tuple[str, ...]:
    """Return the literature that the paragraphs name, in their order."""
    text = " ".join(method(results))
    found = [(text.index(f"({name}"), whole) for name, whole in REFERENCES.items() if name in text]
    return tuple(reference for _, reference in sorted(found))


def _design(results: Results) -> Iterator[str]:
    protocol, arms = results.protocol, names(results)
    if arms:
        version = f" {protocol['version']}" if protocol.get("version") else ""
        axes = [
            f"{key} in {{{', '.join(map(str, values))}}}"
            for key, values in protocol.get("axes", {}).items()
        ]
        crossed = f" under {listed(axes)}" if axes else ""
        if not axes and (n := len(settings(results))) > 1:
            crossed = f" under {counted(n, 'setting')} of the data"
        shown = f" ({listed(arms)})" if len(arms) <= 8 else ""
        yield (
            f"medtransfer{version} compared {counted(len(arms), 'arm')}{shown}{crossed}, with "
            f"{_seeds(results)}."
        )
    if primary := _declared(protocol):
        yield primary
    if len(results.splits) == 1:
        yield "All final trials used one split of the data, told by its hash."
    elif results.splits:
        yield f"Final trials used {counted(len(results.splits), 'split')} of the data."
    yield (
        f"{results.budget['finished']:.0f} of {counted(results.budget['trials'], 'trial')} "
        f"finished, with {seconds(results.budget['train_seconds'])} of training in all."
    )
    if results.external is not None:
        yield "Each final trial was also tested, unchanged, on external data."


def _seeds(results: Results) -> str:
    declared = results.protocol.get("seeds")
    most = len(declared) if declared else max((r.n_seeds for r in results.arms), default=0)
    return f"{counted(most, 'seed')} each"


def _declared(protocol: Mapping[str, Any]) -> str:
    primary = protocol.get("primary")
    if not primary:
        return ""
    at = ", ".join(f"{key}={value}" for key, value in (primary.get("at") or {}).items())
    setting = f" at {at}" if at else ""
    return (
        f"The primary contrast, declared beforehand, was {primary['a']} against {primary['b']}"
        f"{setting}."
    )


def _tuning(results: Results) -> Iterator[str]:
    budget, search = (results.protocol.get(key) or {} for key in ("budget", "search"))
    trials = budget.get("trials")
    limits = [
        *([f"{whole(budget['max_steps'])} optimiser steps"] if budget.get("max_steps") else []),
        *([f"{budget['seconds']:g} seconds"] if budget.get("seconds") else []),
    ]
    if trials:
        sampler = search.get("sampler") or "random"
        how = _SAMPLERS.get(sampler, f"proposed by the sampler {sampler}")
        pruner = search.get("pruner")
        yield (
            "Each arm was tuned in its strategy's own search space with "
            f"{counted(trials, 'trial')} in each setting of the data, first the strategy's "
            f"defaults, then values {how}, with Optuna (Akiba et al. 2019), "
            + (f"pruned by the pruner {pruner}" if pruner else "without pruning")
            + ", on validation data alone; the setting with the best validation score ran for "
            "every seed. Arms with nothing to tune were not tuned."
        )
    elif trials == 0:
        yield "No arm was tuned: all ran with the defaults of their strategy."
    if limits:
        yield f"A trial of tuning was limited to {listed(limits)}."
    if any(each.test_openings for each in results.spent):
        yield "Test data were read in final trials alone, after all choices had been made."


def _statistics(results: Results) -> Iterator[str]:
    rows, contrasts = results.arms, results.contrasts
    over = {row.over for row in rows} | {row.over for row in contrasts}
    lower = ", of which less is better," * (results.metric in LOWER_IS_BETTER)
    yield (
        f"An arm's value is its mean {title(results.metric)}{lower} on the test set over its "
        "finished seeds; its costs are means over the same seeds."
    )
    if "cases and seeds" in over:
        yield (
            "Intervals treat cases and seeds as crossed random effects: the variance of the "
            "two-way layout, as in studies of several readers (Hillis 2007), with approximate "
            "degrees of freedom (Satterthwaite 1946)."
        )
    if results.metric in BOUNDS:
        yield "Those of arms are built on the logit scale, within the metric's range (Pepe 2003)."
    if "cases" in over:
        yield "With a single seed an interval covers the choice of cases alone."
    if "seeds" in over:
        yield "Without values per case an interval covers seeds alone."
    if results.metric == "auroc" and over & {"cases", "cases and seeds"}:
        yield "AUROC enters through placement values (DeLong et al. 1988)."
    if any(row.n_groups < row.n_cases for row in rows):
        yield "Cases of one patient count together, as one independent unit (Obuchowski 1997)."
    if contrasts:
        yield from _verdicts(results)


def _verdicts(results: Results) -> Iterator[str]:
    secondary = sum(not each.primary for each in results.contrasts)
    yield "Contrasts are paired: same split, same cases, same seeds."
    if results.primary is not None:
        yield "The p-value of the primary contrast is not corrected."
    if secondary:
        which = "secondary contrast" if results.primary is not None else "contrast"
        yield (
            f"P-values are corrected for {counted(secondary, which)} by Holm's method (Holm 1979); "
            "intervals are not."
        )
    yield (
        "A is better or worse than B where the interval excludes 0 and the adjusted p is below "
        f"{ALPHA:g}, equivalent where the interval lies within \N{PLUS-MINUS SIGN}{results.rope:g} "
        "(Lakens 2017), and otherwise undecided, which is not the same as equal. With fewer than "
        "five seeds a verdict is provisional."
    )


def _shown(results: Results) -> Iterator[str]:
    details, charts = results.details, {chart.name for chart in results.details.charts}
    if any(each.at is not None for each in results.crossings):
        yield (
            "Learning curves cross where their difference, linear in the logarithm of the number "
            "of training cases between two measured sizes, turns positive for good; their "
            "intervals are bootstraps over patients and seeds."
        )
    if any(each.temperature is not None for each in details.calibration):
        yield (
            "Calibration is shown before and after temperature scaling, fitted for each trial on "
            "its validation data (Guo et al. 2017)."
        )
    if "decision" in charts:
        yield "Decision curves show the net benefit over thresholds (Vickers & Elkin 2006)."
    if results.across is not None:
        across = results.across
        yield (
            f"Over {counted(len(across.datasets), 'dataset')} arms were ranked (Demsar 2006) and "
            f"compared by Friedman's test (Friedman 1937; p {probability(across.p)}), each with "
            f"the baseline {across.baseline} by the signed-rank test (Wilcoxon 1945), corrected by "
            "Holm's method (Holm 1979); the critical difference is Nemenyi's (Nemenyi 1963)."
        )

"""From the trials of a study to everything that its report states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtransfer.analysis.cases import Cases
from medtransfer.analysis.compare import Comparison, compare
from medtransfer.analysis.datasets import across
from medtransfer.analysis.details.build import details
from medtransfer.analysis.learning import crossings
from medtransfer.analysis.report.checks import checks
from medtransfer.analysis.report.headline import central, headline
from medtransfer.analysis.results import External, Failure, Results
from medtransfer.analysis.spending import spent, splits, tuning

if TYPE_CHECKING:
    from medtransfer.analysis.details.parts import Details
    from medtransfer.analysis.load import Study

_DETAILED = 8  # arms whose curves one chart can bear


def build(study: Study) -> Results:
    """Return everything that a report states about the study."""
    cases = Cases.of(study)
    comparison = compare(study, cases=cases)
    curves = crossings(study, cases)
    external, notes = _external(study)
    contrast = central(comparison)
    failures = tuple(
        Failure(trial.run_id, trial.arm, trial.axes, trial.seed, trial.failure)
        for trial in study.trials
        if trial.status in {"FAILED", "KILLED"}
    )
    return Results(
        study=study.name,
        study_id=study.study_id,
        metric=study.metric,
        rope=study.rope,
        headline=headline(comparison, study.metric, study.rope, curves),
        arms=comparison.arms,
        contrasts=comparison.contrasts,
        failures=failures,
        budget={
            "trials": len(study.trials),
            "finished": sum(trial.status == "FINISHED" for trial in study.trials),
            "failed": len(failures),
            "train_seconds": sum(t.cost.get("train_seconds", 0.0) for t in study.trials),
        },
        waivers=study.waivers,
        notes=(*comparison.notes, *(note for note in notes if note not in comparison.notes)),
        primary=comparison.primary,
        external=external,
        crossings=curves,
        tuning=tuning(study),
        spent=spent(study),
        protocol=study.protocol,
        environment=study.environment,
        splits=splits(study),
        details=_details(study, comparison),
        across=across(study, comparison.arms),
        checks=checks(study, contrast, cases) if contrast and contrast.diff is not None else (),
    )


def _external(study: Study) -> tuple[External | None, list[str]]:
    """Return the comparison on another site's data, and what to know of it."""
    if not any(trial.external for trial in study.trials):
        return None, []
    found = compare(study, "external")
    known = {*study.notes}
    notes = [f"external data: {note}" for note in found.notes if note not in known]
    return External(found.arms, found.contrasts), notes


def _details(study: Study, comparison: Comparison) -> Details:
    """Return the details of the headline's arms and the best ones under its setting."""
    contrast = central(comparison)
    if contrast is None and not comparison.arms:
        return details(study, {}, ())
    setting = (contrast or comparison.arms[-1]).axes
    best = [row.arm for row in comparison.arms if row.axes == setting]
    first = [contrast.a, contrast.b] if contrast else []
    chosen = {*best[:_DETAILED], *first}
    return details(study, setting, [arm for arm in best if arm in chosen])

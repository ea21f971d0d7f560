"""From the trials of a study to everything that its report states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medtransfer.analysis.compare import compare
from medtransfer.analysis.report.headline import headline
from medtransfer.analysis.results import Failure, Results

if TYPE_CHECKING:
    from medtransfer.analysis.load import Study


def build(study: Study) -> Results:
    """Return everything that a report states about the study."""
    comparison = compare(study)
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
        headline=headline(comparison, study.metric, study.rope),
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
        notes=comparison.notes,
    )

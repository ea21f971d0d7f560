"""One run for each arm of a study, for MLflow's own tables and charts."""

from __future__ import annotations

from medtransfer.analysis.grid import where
from medtransfer.analysis.results import Arm, Results
from medtransfer.tracking import records
from medtransfer.tracking.runs import PARENT, TAG, Earlier, Run, open_run
from medtransfer.tracking.spool import KEY
from medtransfer.tracking.store import Store

CHOICES = ("task", "dataset", "backbone", "weights", "strategy", "fraction")


def summarise(store: Store, parent: str, results: Results) -> None:
    """Write a run for each arm under each setting: its mean, its interval and what it took.

    The names of metrics and parameters are those of trials, so that MLflow compares the one with
    the other. A study that goes on gets its summaries anew, under the same runs.

    Args:
        store: Where the study lies.
        parent: Its parent run.
        results: What its report states.
    """
    query = f"tags.`{PARENT}` = '{parent}' and tags.`{TAG}phase` = "
    found = records.search(store.client, query + "'summary'")
    known = {
        run.data.tags[f"{TAG}cell"]: Earlier(run.info.run_id, run.data.tags[KEY]) for run in found
    }
    first: dict[str, dict[str, str]] = {}
    for run in records.search(store.client, query + "'final'"):
        first.setdefault(run.data.tags[f"{TAG}cell"], run.data.tags)
    for row in results.arms:
        cell = f"{row.arm} @ {where(row.axes)}" if row.axes else row.arm
        trial = first.get(cell, {})
        choices = {name: trial[TAG + name] for name in CHOICES if TAG + name in trial}
        tags = {"phase": "summary", "study_id": results.study_id, "arm": row.arm, "cell": cell}
        with open_run(store, cell, tags | choices, parent=parent, again=known.get(cell)) as opened:
            _log(opened, row, results.metric)
            if cell not in known:
                opened.params(choices)


def _log(run: Run, row: Arm, metric: str) -> None:
    values = {
        f"test/{metric}": row.mean,
        f"test/{metric}_lo": row.lo,
        f"test/{metric}_hi": row.hi,
        "seeds": float(row.n_seeds),
        **{f"cost/{name}": value for name, value in row.cost.items()},
    }
    run.metrics({name: value for name, value in values.items() if value is not None})

"""The answer of a study, from the store alone."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from medtransfer import console
from medtransfer.analysis.load import Trial, load_study, parents_of
from medtransfer.analysis.report.build import build
from medtransfer.analysis.report.console import tables
from medtransfer.analysis.report.write import write
from medtransfer.tracking.ledger import Ledger

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from medtransfer.analysis.results import Results

PICTURE = "pictures/test.png"


def answer(
    client: MlflowClient, study: str, out: Path, ledger: Callable[[str], Path] | None = None
) -> Results:
    """Write the report of a study, show it, and return what it states.

    Args:
        client: Of the store that holds the study.
        study: What names it: an id, a name, or the id of a run.
        out: The folder to write to.
        ledger: From a study's id to the folder of its ledger, which is read where it is complete.

    Raises:
        StoreError: If there is no such study, or the folder cannot be written.
    """
    found = load_study(client, study, ledger)
    results = build(found)
    write(results, out, partial(_pictures, client, found.trials))
    for table in tables(results):
        console.out.print(table)
    for waiver in results.waivers:
        console.out.print(f"waived: {waiver}", markup=False, highlight=False)
    for note in results.notes:
        console.out.print(f"note: {note}", markup=False, highlight=False)
    console.out.print(f"\n{results.headline}\n", markup=False, highlight=False)
    console.say(f"report: {out / 'report.html'}")
    return results


def rebuild(client: MlflowClient, study: str, ledger: Callable[[str], Path]) -> None:
    """Make the ledger of a study anew from the store.

    Raises:
        StoreError: If there is no such study.
    """
    found = load_study(client, study).study_id
    if parents := parents_of(client, found):  # a trial by itself has no ledger
        Ledger(ledger(found)).rebuild(client, parents)


def _pictures(client: MlflowClient, trials: Sequence[Trial], folder: Path) -> dict[str, str]:
    """Copy the pictures of each arm's first trial into a folder; return what each file shows."""
    told: dict[str, str] = {}
    arms: set[str] = set()
    for trial in trials:
        if trial.arm in arms or trial.status != "FINISHED":
            continue
        there = {each.path for each in client.list_artifacts(trial.run_id, "pictures")}
        if PICTURE not in there:
            continue
        arms.add(trial.arm)
        name = f"pictures/{len(arms)}-{re.sub('[^a-z0-9]+', '-', trial.arm.lower()).strip('-')}.png"
        (folder / "pictures").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            shutil.copy(client.download_artifacts(trial.run_id, PICTURE, scratch), folder / name)
        told[name] = f"{trial.arm}, seed {trial.seed}"
    return told

"""The answer of a study, from the store alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medtransfer import console
from medtransfer.analysis.console import tables
from medtransfer.analysis.load import load_study
from medtransfer.analysis.report import build, write

if TYPE_CHECKING:
    from mlflow import MlflowClient


def answer(client: MlflowClient, study: str, out: Path) -> None:
    """Write the report of a study, and show it.

    Args:
        client: Of the store that holds the study.
        study: What names it: an id, a name, or the id of a run.
        out: The folder to write to.

    Raises:
        StoreError: If there is no such study, or the folder cannot be written.
    """
    results = build(load_study(client, study))
    write(results, out)
    for table in tables(results):
        console.out.print(table)
    for waiver in results.waivers:
        console.out.print(f"waived: {waiver}", markup=False, highlight=False)
    for note in results.notes:
        console.out.print(f"note: {note}", markup=False, highlight=False)
    console.out.print(f"\n{results.headline}\n", markup=False, highlight=False)
    console.say(f"report: {out / 'report.md'}")

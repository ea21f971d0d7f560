"""The report of a study, written as JSON, CSV and Markdown."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pandas as pd

from medtransfer.analysis.report.markdown import markdown
from medtransfer.analysis.results import Results
from medtransfer.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def write(
    results: Results, folder: Path, pictures: Callable[[Path], Mapping[str, str]] | None = None
) -> list[Path]:
    """Write `results.json`, `results.csv` and `report.md`, each whole or not at all.

    Args:
        results: What they state.
        folder: Where to.
        pictures: Puts pictures of test cases into the folder, and returns what each file shows.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            "results.json": json.dumps(results.as_dict(), indent=2, allow_nan=False) + "\n",
            "results.csv": _csv(results),
            "report.md": markdown(results, {} if pictures is None else pictures(folder)),
        }
        return [_replace(folder / name, text) for name, text in contents.items()]
    except OSError as error:
        raise StoreError(
            f"the report cannot be written to '{folder}': {error}",
            remedy="name a folder that can be written with --out DIR",
        ) from error


def read(path: Path) -> Results:
    """Read a `results.json`."""
    return Results.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _csv(results: Results) -> str:
    """Return one row an arm and setting; axes and costs are columns of their own."""
    rows = [
        {
            "arm": row.arm,
            **row.axes,
            "n_seeds": row.n_seeds,
            "n_cases": row.n_cases,
            "n_groups": row.n_groups,
            "mean": row.mean,
            "lo": row.lo,
            "hi": row.hi,
            "over": row.over,
            "failed": row.failed,
            **{f"cost/{name}": value for name, value in row.cost.items()},
        }
        for row in results.arms
    ]
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def _replace(path: Path, text: str) -> Path:
    # A reader, or a crash, never sees half a file.
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8", newline="\n")
        return scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)

"""The report of a study, written as HTML, Markdown, JSON, CSV and figures."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pandas as pd

from medtransfer.analysis.report.blocks import figures_of
from medtransfer.analysis.report.html import page
from medtransfer.analysis.report.markdown import markdown
from medtransfer.analysis.report.pictures import embedded
from medtransfer.analysis.report.sections import sections
from medtransfer.analysis.results import Results
from medtransfer.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from medtransfer.analysis.results import Arm, Contrast

_FIGURES = "figures"


def write(
    results: Results, folder: Path, pictures: Callable[[Path], Mapping[str, str]] | None = None
) -> list[Path]:
    """Write the report, each file whole or not at all; return the paths.

    These are `report.html`, which needs none of the others, `report.md`, `results.json`,
    `results.csv` with the arms, `contrasts.csv`, and `figures/` with each figure as SVG and PNG.

    Args:
        results: What they state.
        folder: Where to.
        pictures: Puts pictures of test cases into the folder, and returns what each file shows.
    """
    try:
        (folder / _FIGURES).mkdir(parents=True, exist_ok=True)
        beside = {} if pictures is None else pictures(folder)
        found = sections(results, embedded(folder, beside))
        contents: dict[str, str | bytes] = {
            "results.json": json.dumps(results.as_dict(), indent=2, allow_nan=False) + "\n",
            "results.csv": _csv([_arm(row) for row in results.arms], "arm"),
            "contrasts.csv": _csv([_contrast(row) for row in results.contrasts], "a"),
            "report.md": markdown(results, found),
            "report.html": page(results, found),
        }
        for figure in figures_of(found):
            contents[f"{_FIGURES}/{figure.name}.svg"] = figure.svg
            contents[f"{_FIGURES}/{figure.name}.png"] = figure.png
        return [_replace(folder / name, content) for name, content in contents.items()]
    except OSError as error:
        raise StoreError(
            f"the report cannot be written to '{folder}': {error}",
            remedy="name a folder that can be written with --out DIR",
        ) from error


def read(path: Path) -> Results:
    """Read a `results.json`."""
    return Results.from_dict(json.loads(path.read_text(encoding="utf-8")))


def _arm(row: Arm) -> dict[str, object]:
    """Return one row an arm and setting; axes and costs are columns of their own."""
    return {
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
        "incomplete": row.incomplete,
        **{f"cost/{name}": value for name, value in row.cost.items()},
        **{f"seed/{seed}": value for seed, value in row.by_seed.items()},
    }


def _contrast(row: Contrast) -> dict[str, object]:
    """Return one row a contrast; axes are columns of their own."""
    return {
        "a": row.a,
        "b": row.b,
        **row.axes,
        "primary": row.primary,
        "verdict": row.verdict,
        "provisional": row.provisional,
        "diff": row.diff,
        "lo": row.lo,
        "hi": row.hi,
        "over": row.over,
        "p": row.p,
        "p_adj": row.p_adj,
        "n_seeds": row.n_seeds,
        "n_cases": row.n_cases,
        "n_groups": row.n_groups,
        "more_cases": row.more_cases,
        "more_seeds": row.more_seeds,
    }


def _csv(rows: Sequence[Mapping[str, object]], first: str) -> str:
    rows = [{_cell(name): _cell(value) for name, value in row.items()} for row in rows]
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=[first])
    return frame.to_csv(index=False, lineterminator="\n")


def _cell(value: Any) -> Any:
    """Return a text that no spreadsheet takes for a formula; other values stay."""
    return f"'{value}" if isinstance(value, str) and value[:1] in {*"=+-@\t\r"} else value


def _replace(path: Path, content: str | bytes) -> Path:
    # A reader, or a crash, never sees half a file.
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)

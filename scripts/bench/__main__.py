"""How fast the program is: ratios of what is measured side by side.

    python scripts/bench [NAME...] [--quick] [--keep]

NAME is one of the modules beside this file; without any all are run, each in a process of its own.
`--quick` measures less, in less than three minutes, and compares with the figures that are stored;
`--keep` stores what was found, for docs/performance.md, where a page of all figures is written.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import performance
from measure import ROOT, Figure, machine

NAMES = (
    *("sweeps", "overhead", "precision", "loader", "tracking", "cache"),
    *("growth", "eva", "scripts_of_others"),
)
LONG = ("growth", "eva", "scripts_of_others", "cache")  # which say nothing when they are short


def main() -> int:
    """Run what is asked for.

    Returns:
        0, whatever was found: a busy machine is no mistake.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # a part of a whole run
    asked = parser.parse_args()
    if asked.into is not None:
        (name,) = asked.names
        _part(name, asked.quick, asked.into)
        return 0
    about = machine()
    print(performance.described(about), flush=True)
    names = asked.names or [each for each in NAMES if not (asked.quick and each in LONG)]
    found = [figure for name in names for figure in _measured(name, asked.quick)]
    if asked.keep:
        performance.keep(about, found, quick=asked.quick, version=_version())
    return 0


def _measured(name: str, quick: bool) -> list[Figure]:
    """Run one module in a process of its own, and show what it finds."""
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch, "figures.json")
        command = [sys.executable, Path(__file__).parent, name, "--into", into]
        started = time.perf_counter()
        done = subprocess.run([*command, *(["--quick"] if quick else [])], check=False)
        seconds = time.perf_counter() - started
        if done.returncode:
            print(f"{name} failed", flush=True)
        found = []
        if into.exists():
            found = [Figure(**each) for each in json.loads(into.read_text(encoding="utf-8"))]
    before = performance.stored(quick=quick)
    for figure in found:
        print(performance.line(figure, before.get(figure.name)), flush=True)
    print(f"  ({name}: {seconds:.0f} s)", flush=True)
    return found


def _part(name: str, quick: bool, into: Path) -> None:
    from medtransfer.quiet import quiet_libraries

    quiet_libraries()
    found: list[dict[str, Any]] = []
    for figure in importlib.import_module(name).run(quick):
        found.append(figure.plain())
        into.write_text(json.dumps(found), encoding="utf-8")
    into.write_text(json.dumps(found), encoding="utf-8")


def _version() -> str:
    asked = ["git", "-C", ROOT, "describe", "--always", "--dirty"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    return f"{datetime.now(UTC):%Y-%m-%d} {commit}".strip()


if __name__ == "__main__":
    sys.exit(main())

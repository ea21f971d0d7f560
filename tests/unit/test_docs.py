"""What pages say that the program can be asked."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_strategies_is_what_the_program_says():
    script = runpy.run_path(str(ROOT / "scripts" / "strategy_table.py"))
    page = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    shown = page.split(script["BEGIN"])[1].split(script["END"])[0].strip()
    assert shown == script["table"]()

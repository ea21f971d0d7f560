"""Write the table of strategies and tasks into docs/strategies.md."""

from __future__ import annotations

from pathlib import Path

from medtransfer.app import App
from medtransfer.config import TrainConfig
from medtransfer.errors import ConfigError
from medtransfer.quiet import quiet_libraries
from medtransfer.run import check

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "strategies.md"
BEGIN, END = "<!-- begin table -->", "<!-- end table -->"


def main() -> None:
    """Write the table into the page, between its marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")


def table() -> str:
    """Return one row for each strategy, one column for each task, asked of the program itself."""
    tasks, strategies = names("task"), names("strategy")
    rows = [["strategy", "what it does", *tasks, "features once"]]
    with App.open("train", None) as app:
        for strategy in strategies:
            text = (ROOT / "conf" / "strategy" / f"{strategy}.yaml").read_text(encoding="utf-8")
            said = text.splitlines()[0].removeprefix("# ").rstrip(".")
            cells, once = [], ""
            for task in tasks:
                config = app.compose([f"task={task}", f"strategy={strategy}"]).typed(TrainConfig)
                try:
                    once = "yes" if check(config).strategy.cacheable else ""
                    cells.append("yes")
                except ConfigError:
                    cells.append("no")
            rows.append([f"`{strategy}`", said, *cells, once])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def names(group: str) -> list[str]:
    """Return the choices of a group."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


if __name__ == "__main__":
    quiet_libraries()
    main()

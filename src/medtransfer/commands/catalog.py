"""The choices of every config group, with the line that describes each."""

from __future__ import annotations

import json
from pathlib import Path

from hydra.core.object_type import ObjectType
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medtransfer import console
from medtransfer.app import App
from medtransfer.errors import ConfigError

HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")


def choices(app: App) -> dict[str, dict[str, str]]:
    """Return each group's choices and their descriptions, the user's own included."""
    loader = app.hydra.config_loader
    names = [name for name in loader.list_groups("") if name not in {"hydra", "common"}]
    found = {}
    for group in [*sorted(names), *HYDRA_GROUPS]:
        options = loader.get_group_options(group, ObjectType.CONFIG)
        found[group] = {option: _description(app, group, option) for option in sorted(options)}
    return {group: options for group, options in found.items() if options}


def show(app: App, group: str | None, *, as_json: bool) -> None:
    """Print the choices of one group, or of all.

    Raises:
        ConfigError: If there is no such group.
    """
    found = choices(app)
    if group is not None and group not in found:
        raise ConfigError(f"there is no config group '{group}'", value=group, choices=found)
    shown = found if group is None else {group: found[group]}
    if as_json:
        print(json.dumps(shown, indent=2))  # noqa: T201
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("group")
    table.add_column("choice", no_wrap=True)
    table.add_column("what it is")
    for name, options in shown.items():
        for i, (option, text) in enumerate(options.items()):
            last = i == len(options) - 1
            table.add_row("" if i else name, escape(option), escape(text), end_section=last)
    console.out.print(table)


def _description(app: App, group: str, option: str) -> str:
    """Return the first comment line of a choice's YAML that is not Hydra's own header."""
    for element in app.hydra.config_loader.get_search_path().get_path():
        scheme, _, folder = str(element.path).rpartition("://")
        path = Path(folder, group, f"{option}.yaml")
        if scheme in {"", "file", "user"} and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            comments = (line.lstrip("# ") for line in lines if line.startswith("#"))
            return next((comment for comment in comments if comment[:1] != "@"), "")
    return ""

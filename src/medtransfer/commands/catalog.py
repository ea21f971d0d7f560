"""The choices of every config group, with the line that describes each."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from hydra.core.object_type import ObjectType
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medtransfer import console
from medtransfer.app import App
from medtransfer.errors import ConfigError

HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper")
ASIDE = frozenset({"hydra", "common"})  # of Hydra itself, and of no choice
SHOWN = 20  # of timm's models; there are more than a thousand
NEAR = 5

Choices = dict[str, dict[str, str]]
"""What each choice is, by its group and its name."""


def groups(app: App) -> list[str]:
    """Return the names of the config groups, the user's own included."""
    names = [name for name in app.hydra.config_loader.list_groups("") if name not in ASIDE]
    return [*sorted(names), *HYDRA_GROUPS]


def choices(app: App) -> Choices:
    """Return each group's choices and their descriptions, the user's own included."""
    loader = app.hydra.config_loader
    found = {}
    for group in groups(app):
        options = loader.get_group_options(group, ObjectType.CONFIG)
        found[group] = {option: _description(app, group, option) for option in sorted(options)}
    return {group: options for group, options in found.items() if options}


def show(app: App, group: str | None, *, search: str | None = None, as_json: bool) -> None:
    """Print the choices of one group, or of all, or those of them that a search finds.

    Args:
        app: The program.
        group: The group; None for all.
        search: Words that name or line of a choice must hold; None for all choices. Models of
            timm's are choices of the backbone too.
        as_json: For programs.

    Raises:
        ConfigError: If there is no such group.
    """
    found = choices(app)
    if group is not None and group not in found:
        raise ConfigError(f"there is no config group '{group}'", value=group, choices=found)
    shown = found if group is None else {group: found[group]}
    models: list[str] = []
    known: list[str] = []
    if search is not None:
        known = [name for options in shown.values() for name in options]
        shown = _having(search, shown)
        if group in {None, "backbone"}:
            every = _models()
            known += every
            models = [name for name in every if _holds(search, name)]
    if as_json:
        timm = {"timm": {name: _spelled(name) for name in models}} if models else {}
        print(json.dumps(shown | timm, indent=2))  # noqa: T201
        return
    if search is not None and not shown and not models:
        console.say(_nothing(search, group, known))
        return
    if shown:
        console.out.print(_table(shown))
    if models:
        console.say(f"timm has {len(models)} {'model' if len(models) == 1 else 'models'} more:")
    for name in models[:SHOWN]:
        console.say(f"  {_spelled(name)}")
    if len(models) > SHOWN:
        console.say(f"  and {len(models) - SHOWN} others: search for more words")


def _table(shown: Mapping[str, Mapping[str, str]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("group")
    table.add_column("choice", no_wrap=True)
    table.add_column("what it is")
    for name, options in shown.items():
        for i, (option, text) in enumerate(options.items()):
            last = i == len(options) - 1
            table.add_row("" if i else name, escape(option), escape(text), end_section=last)
    return table


def _having(search: str, shown: Choices) -> Choices:
    """Return the choices whose name and line hold all words of a search."""
    found = {
        group: {name: line for name, line in options.items() if _holds(search, f"{name} {line}")}
        for group, options in shown.items()
    }
    return {group: options for group, options in found.items() if options}


def _holds(search: str, text: str) -> bool:
    lower = text.lower()
    return all(word in lower for word in search.lower().split())


def _models() -> list[str]:
    """Return the names of timm's models."""
    import timm  # takes seconds

    return list(timm.list_models())


def _spelled(name: str) -> str:
    """Return how a model of timm's is chosen."""
    return f"backbone=timm backbone.name={name}"


def _nothing(search: str, group: str | None, known: Iterable[str]) -> str:
    where = "nothing" if group is None else f"no {group}"
    near = difflib.get_close_matches(search.lower(), dict.fromkeys(known), n=NEAR, cutoff=0.6)
    hint = f"; near: {', '.join(near)}" if near else ""
    return f"{where} has '{search}' in its name or line{hint}"


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

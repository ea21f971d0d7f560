"""A choice of one's own begins as a stub that works: its files, and a test that passes."""

from __future__ import annotations

import re
import shlex
from contextlib import suppress
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from typing import Literal

from hydra.core.object_type import ObjectType

from medtransfer import console
from medtransfer.app import App
from medtransfer.errors import ConfigError, StoreError

Kind = Literal["strategy", "dataset", "study"]

STUBS = Path(__file__).parents[1] / "testing" / "stubs"
NAME = re.compile("[A-Za-z][A-Za-z0-9_]*")
WORDS = frozenset({"true", "false", "null", "nan", "inf"})  # values, where a choice is written


def new(app: App, kind: Kind, name: str, folder: Path) -> None:
    """Write the files of a new choice, all or none, and say what to try next.

    Args:
        app: The program, with the choices that there are.
        kind: The config group.
        name: Of the choice; a strategy and a dataset are modules of this name too.
        folder: The user's own, made where it is missing.

    Raises:
        ConfigError: If the name cannot be a choice or a module, or is one already.
        StoreError: If a file is there already, or cannot be written.
    """
    _require_free(app, kind, name)
    texts = stub(kind, name)
    _write({folder / path: text for path, text in texts.items()}, folder)
    for path in texts:
        console.say(f"wrote: {folder / path}")
    console.say("try:")
    for line in _next(kind, name, folder):
        console.say(f"  {line}")


def stub(kind: Kind, name: str) -> dict[str, str]:
    """Return the files of a new choice, by their paths from the user's folder."""
    files = {
        f"{name}.py": f"{kind}.py",
        f"conf/{kind}/{name}.yaml": f"{kind}.yaml",
        f"tests/test_{name}.py": f"{kind}_test.py",
    }
    texts = {
        path: (STUBS / source).read_text(encoding="utf-8")
        for path, source in files.items()
        if (STUBS / source).is_file()  # a study is no module
    }
    title = f"My{kind.title()}"
    cls = "".join(part[:1].upper() + part[1:] for part in name.split("_"))
    used = set(re.findall(r"\w+", "\n".join(texts.values()))) - {title}
    while cls in used or iskeyword(cls):  # such as Strategy, which it derives from
        cls = f"My{cls}"
    names = {f"my_{kind}": name, title: cls}
    return {path: _renamed(text, names) for path, text in texts.items()}


def _renamed(text: str, names: dict[str, str]) -> str:
    # a name may itself hold another one: all at once
    return re.sub("|".join(names), lambda found: names[found[0]], text)


def _require_free(app: App, kind: Kind, name: str) -> None:
    if not NAME.fullmatch(name) or iskeyword(name) or name in WORDS:
        raise ConfigError(
            f"'{name}' cannot name a {kind}",
            remedy="use letters, digits and _, with a letter first, as in my_own",
        )
    if name in app.hydra.config_loader.get_group_options(kind, ObjectType.CONFIG):
        raise ConfigError(
            f"there is a {kind} '{name}' already",
            remedy=f"choose another name; {console.program()} list {kind} shows those that there"
            " are",
        )
    if kind != "study" and find_spec(name) is not None:
        raise ConfigError(
            f"there is a module '{name}' already, and '{name}.py' would take its place",
            remedy=f"choose another name, such as my_{name}",
        )


def _write(texts: dict[Path, str], folder: Path) -> None:
    """Write files, and take back what was written if one of them cannot be."""
    for path in texts:
        if path.exists() or path.is_symlink():
            raise StoreError(f"'{path}' is there already", remedy="choose another name or --dir")
    made: list[Path] = []
    try:
        for path, text in texts.items():
            for parent in reversed(path.parents):
                if not parent.exists():
                    parent.mkdir()
                    made.append(parent)
            with path.open("x", encoding="utf-8") as file:
                made.append(path)
                file.write(text)
    except OSError as error:
        for path in reversed(made):
            with suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        raise StoreError(
            f"'{folder}' cannot be written: {error.strerror or error}",
            remedy="make it writable, free some space, or --dir ANOTHER",
        ) from None


def _next(kind: Kind, name: str, folder: Path) -> list[str]:
    """Return commands that show the choice, use it and test it."""
    program = console.program()
    here, conf, tests = (shlex.quote(str(folder / each)) for each in ("", "conf", "tests"))
    own = f"--config-dir {conf}"
    lines = [f"{program} list {kind} {own}"]
    if kind == "study":
        lines.append(f"{program} train -m {own} study={name} study.dry_run=true")
    else:
        needs = " dataset.root=FOLDER" if kind == "dataset" else ""
        trusted = f"'trusted_modules=[{name}]'"
        lines.append(f"PYTHONPATH={here} {program} train {own} {kind}={name}{needs} {trusted}")
    return [*lines, f"pytest {tests}"]

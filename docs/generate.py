"""The pages of the configuration reference, made from the YAML files of `conf/` and their classes.

Each file says by its comments what its keys are, so the pages cannot say anything else.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate

from choices import SHARED, Choice, Key, groups_of, read_choice

COMMANDS = ("train", "pretrain", "extract", "rank", "audit")
SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields):")
ENTRY = re.compile(r" {4}([\w*.]+)(?: \(.*?\))?: (.*)")


def generate(conf: Path, out: Path) -> None:
    """Write a page for each config group, one for the keys of the commands, and their index.

    Args:
        conf: The folder of all groups.
        out: The folder of the pages; pages of groups that are gone are removed.
    """
    groups = groups_of(conf)
    pages = {f"{group.replace('/', '-')}.md": group_page(conf, group) for group in groups}
    pages["keys.md"] = commands_page(conf)
    pages["index.md"] = index_page(groups)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        path = out / name
        # a page that stays as it is keeps its time, and is not built again
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def group_page(conf: Path, group: str) -> str:
    """Return the page of one group: its choices, their keys, and the classes that they name."""
    names = groups_of(conf)[group]
    choices = {name: read_choice(conf, f"{group}/{name}") for name in names}
    lines = [
        f"# `{group}`",
        "",
        f"Chosen by `{group}=NAME`.",
        "",
        "| choice | what it is |",
        "| --- | --- |",
    ]
    lines += [f"| {_link(group, n)} | {_cell(c.title)} |" for n, c in choices.items()]
    shared = list(dict.fromkeys(file for c in choices.values() for file in c.starts_from))
    for name, choice in choices.items():
        lines += ["", f"({_anchor(group, name)})=", "", f"## `{group}={name}`", "", choice.title]
        lines += ["", choice.more] if choice.more else []
        if choice.chosen:
            made = (f"`{key}={value}`" for key, value in choice.chosen.items())
            lines += ["", f"Chooses {', '.join(made)}."]
        if choice.target:
            lines += ["", f"Class: {_class_link(choice.target)}"]
        own = {key: k for key, k in choice.keys.items() if not k.origin.startswith(f"{SHARED}/")}
        lines += _table(own)
        if choice.starts_from:
            links = (
                f"[{_shared_title(file)}](#{_anchor(group, file)})" for file in choice.starts_from
            )
            lines += ["", f"And the keys {', '.join(links)}."]
    for file in shared:
        place = _place_of_shared(choices, file)
        base = read_choice(conf, file, place)
        own = {key: k for key, k in base.keys.items() if k.origin == file}
        lines += [
            "",
            f"({_anchor(group, file)})=",
            "",
            f"## Keys {_shared_title(file)}",
            "",
            base.title,
        ]
        lines += _table(own)
    lines += _classes(c.target for c in choices.values())
    return "\n".join(lines) + "\n"


def _place_of_shared(choices: dict[str, Choice], file: str) -> str:
    """Return where the keys of a shared file lie, from one that came from it."""
    for choice in choices.values():
        for name, key in choice.keys.items():
            if key.origin == file:
                return name.rpartition(".")[0]
    return ""


def commands_page(conf: Path) -> str:
    """Return the page of the keys that belong to no group, by command."""
    lines = [
        "# Keys of the commands",
        "",
        "What each command takes besides the keys of its groups, and what it starts from.",
    ]
    for command in COMMANDS:
        base = read_choice(conf, command)
        lines += ["", f"## `medtransfer {command}`", "", base.title, ""]
        made = (f"`{group}={chosen}`" for group, chosen in base.chosen.items())
        lines += [f"Starts from {', '.join(made)}."]
        lines += _table({key: k for key, k in base.keys.items() if not key.startswith("hydra.")})
    return "\n".join(lines) + "\n"


def index_page(groups: dict[str, list[str]]) -> str:
    """Return the page that leads to all others."""
    lines = [
        "# Configuration",
        "",
        "Everything is a group or a key, written `group=choice key=value`.",
        "With `-m`, `a,b,c` sweeps.",
        "These pages are made from the files themselves, so they show what this version has.",
        "`medtransfer list` shows the same choices, your own (`--config-dir DIR`) among them.",
        "",
        "| group | choices |",
        "| --- | --- |",
        "| [keys of the commands](keys.md) | `seed`, `test`, `features`, `paths` and others |",
    ]
    for group, names in groups.items():
        links = ", ".join(_link(group, name) for name in names)
        lines.append(f"| [`{group}`]({group.replace('/', '-')}.md) | {links} |")
    pages = "\n".join(["keys", *(group.replace("/", "-") for group in groups)])
    lines += ["", "```{toctree}", ":hidden:", "", pages, "```"]
    return "\n".join(lines) + "\n"


def _classes(targets: Iterator[str | None]) -> list[str]:
    """Return a section for each class of this program's own, with its docstring."""
    lines: list[str] = []
    for target in dict.fromkeys(targets):
        if target is None or not _is_ours(target):
            continue
        found = locate(target)
        if found is None:
            raise LookupError(target)
        doc = inspect.getdoc(found) or ""
        lines += ["", f"({_anchor('class', target)})=", "", f"### `{target}`", "", as_markdown(doc)]
    return ["", "## Classes", *lines] if lines else []


def as_markdown(doc: str) -> str:
    """Return a Google-style docstring as Markdown: entries of its sections become lists."""
    lines: list[str] = []
    section = False
    for line in doc.splitlines():
        if SECTION.fullmatch(line):
            section = True
            lines += [f"**{line[:-1]}**", ""]
        elif section and (entry := ENTRY.fullmatch(line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif section and line.strip():
            lines.append(f"  {line.strip()}")
        else:
            section = section and not line
            lines.append(line)
    return "\n".join(lines).strip()


def _table(keys: dict[str, Key]) -> list[str]:
    if not keys:
        return []
    rows = ["", "| key | default | what it is |", "| --- | --- | --- |"]
    for name, key in keys.items():
        default = f"`{_cell(key.default)}`" if key.default else ""
        rows.append(f"| `{_cell(name)}` | {default} | {_cell(key.comment)} |")
    return rows


def _cell(text: str) -> str:
    """Return text that is safe in a cell of a table."""
    return text.replace("|", "\\|")


def _link(group: str, name: str) -> str:
    return f"[`{name}`](#{_anchor(group, name)})"


def _class_link(target: str) -> str:
    return f"[`{target}`](#{_anchor('class', target)})" if _is_ours(target) else f"`{target}`"


def _is_ours(target: str) -> bool:
    return target.startswith(("medtransfer.", "hydra_plugins.medtransfer"))


def _anchor(*parts: str) -> str:
    return "-".join(re.sub(r"[^A-Za-z0-9]+", "-", part) for part in ("of", *parts)).lower()


def _shared_title(file: str) -> str:
    """Return words for a shared file, in a sentence that begins with 'the keys'."""
    return {
        "common/dataset": "of all datasets",
        "common/split": "of the split",
        "common/files": "of datasets that read files",
        "common/reading": "of reading files",
    }.get(file, f"of {file.rpartition('/')[2]}")

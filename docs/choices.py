"""What a YAML file of `conf/` says: its keys, their defaults, and the comments beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

SHARED = "common"  # the group whose files others start from
GLOBAL = "# @package _global_"


@dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        default: Its value, as YAML has it.
        comment: What the file says of it.
        origin: The file that says so last, from the folder of all groups.
    """

    default: str
    comment: str
    origin: str


@dataclass
class Choice:
    """What one YAML file comes to, with all that it starts from.

    Attributes:
        title: Its first line of comment.
        more: Further comment at its top.
        target: The class that it names, if any.
        chosen: The choices that it makes in groups, its own one aside.
        keys: By their names on the command line.
        starts_from: Shared files among those it takes keys over from.
    """

    title: str = ""
    more: str = ""
    target: str | None = None
    chosen: dict[str, str] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    starts_from: list[str] = field(default_factory=list)


def groups_of(conf: Path) -> dict[str, list[str]]:
    """Return the choices of each group, by its path from `conf`."""
    found: dict[str, list[str]] = {}
    for path in sorted(conf.rglob("*.yaml")):
        group = path.parent.relative_to(conf).as_posix()
        if group not in {".", SHARED}:
            found.setdefault(group, []).append(path.stem)
    return found


def read_choice(conf: Path, file: str, package: str | None = None) -> Choice:
    """Return what a file says.

    Args:
        conf: The folder of all groups.
        file: Its path from there, without suffix.
        package: Where its keys lie; None: where the file itself says, or its group.
    """
    text = (conf / f"{file}.yaml").read_text(encoding="utf-8")
    group = file.rpartition("/")[0]
    if package is None:
        package = "" if text.startswith(GLOBAL) else group.replace("/", ".")
    header = list(_header(text))
    choice = Choice(title=next(iter(header), ""), more=" ".join(header[1:]))
    for entry in (yaml.safe_load(text) or {}).get("defaults", []):
        if isinstance(entry, dict):
            for name, chosen in entry.items():
                if chosen is not None and not name.endswith("_logging"):
                    choice.chosen[name.removeprefix("override ").lstrip("/")] = str(chosen)
        elif entry != "_self_":
            _start_from(choice, conf, entry, group, package)
    _add_own(choice, text, package, file)
    return choice


def _start_from(choice: Choice, conf: Path, entry: str, group: str, package: str) -> None:
    """Take over what another file says, as an entry of `defaults` names it."""
    name, _, at = entry.partition("@")
    file = name.lstrip("/") if name.startswith("/") else f"{group}/{name}".lstrip("/")
    place = package if at in {"", "_here_"} else ".".join(filter(None, (package, at)))
    base = read_choice(conf, file, place)
    choice.keys |= base.keys
    choice.chosen |= base.chosen
    choice.target = base.target
    own = [file] if file.startswith(f"{SHARED}/") else []
    choice.starts_from += [*base.starts_from, *own]


def _header(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("#"):
            return
        if line != GLOBAL:
            yield line.lstrip("# ")


def _add_own(choice: Choice, text: str, package: str, file: str) -> None:
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        return
    lines = text.splitlines()
    header = len(list(_header(text))) + text.startswith(GLOBAL)

    def walk(node: yaml.MappingNode, prefix: str) -> None:
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            if key.value == "_target_":
                choice.target = value.value
                continue
            if node is root and key.value == "defaults":
                continue
            known = choice.keys.get(name)
            comment = _comment(lines, key, value, header) or (known.comment if known else "")
            inner = isinstance(value, yaml.MappingNode) and value.value
            if inner and (not value.flow_style or _has_below(choice, name)):
                choice.keys.pop(name, None)
                if comment:
                    choice.keys[name] = Key("", comment, file)
                walk(value, f"{name}.")
            else:
                choice.keys[name] = Key(_as_text(text, value), comment, file)

    walk(root, f"{package}." if package else "")


def _has_below(choice: Choice, name: str) -> bool:
    return any(key.startswith(f"{name}.") for key in choice.keys)


def _comment(lines: list[str], key: yaml.Node, value: yaml.Node, header: int) -> str:
    """Return the comment on the line of a key, behind its value, or else above it."""
    block = isinstance(value, yaml.CollectionNode) and not value.flow_style
    folded = isinstance(value, yaml.ScalarNode) and value.style in {"|", ">"}
    mark = key.end_mark if block or folded else value.end_mark
    if found := re.match(r"[:\s]*#\s*(.*)", lines[mark.line][mark.column :]):
        return found[1]
    above: list[str] = []
    row = key.start_mark.line - 1
    while row >= header and lines[row].lstrip().startswith("#"):
        above.insert(0, lines[row].strip("# "))
        row -= 1
    return " ".join(above)


def _as_text(text: str, value: yaml.Node) -> str:
    """Return a value as its file writes it, on one line."""
    plain = isinstance(value, yaml.CollectionNode) and value.flow_style
    plain |= isinstance(value, yaml.ScalarNode) and value.style is None
    if not plain and isinstance(value, yaml.ScalarNode):
        return str(value.value).strip()
    if not plain:
        loaded = yaml.safe_load(yaml.serialize(value))
        return yaml.safe_dump(loaded, default_flow_style=True, width=1000).strip()
    return " ".join(text[value.start_mark.index : value.end_mark.index].split())

"""What a shell offers when TAB is pressed."""

from __future__ import annotations

import re
import shlex
from argparse import SUPPRESS, ArgumentParser, _SubParsersAction
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from medtransfer.app import App

HYDRA_FLAGS: dict[str, tuple[str, ...] | None] = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--package": (),
    "--resolve": None,
}
"""Hydra's own, with the values that they take; None for those that take none."""

PLAIN = re.compile(r"[\w.:/@%+-]+")  # what no shell makes anything else of

# Each asks with the line up to the cursor, and gets whole words, one in each line. Where nothing is
# found it completes names of files, which is what --out and dataset.root= want.
SCRIPTS = {
    "bash": r"""_medtransfer() {
    local line="${COMP_LINE:0:COMP_POINT}" each cut open=
    local word="${line##*[[:space:]]}"
    # bash begins a new word after = and the like: what lies before that stays
    cut="${word%"${word##*["$COMP_WORDBREAKS"]}"}"
    COMPREPLY=()
    while IFS= read -r each; do
        [[ $each == *[=./] ]] && open=1
        COMPREPLY+=("${each#"$cut"}")
    done < <("${1/#\~/$HOME}" completion --query "$line" 2>/dev/null)
    [[ -n $open ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o bashdefault -o default -F _medtransfer medtransfer
""",
    "zsh": r"""_medtransfer() {
    local -a found open
    local program=${words[1]/#\~/$HOME}
    local line="${(j: :)words[1,CURRENT-1]} $PREFIX"
    found=("${(@f)$("$program" completion --query "$line" 2>/dev/null)}")
    found=(${found:#})
    if (( ! $#found )); then
        compset -P '*='
        _files
        return
    fi
    open=(${(M)found:#*[=./]})
    found=(${found:#*[=./]})
    (( $#open )) && compadd -Q -S '' -- $open
    (( $#found )) && compadd -Q -- $found
    return 0
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i }
compdef _medtransfer medtransfer
""",
    "fish": r"""function __medtransfer
    # values of variables may stand before the program
    set -l program (string match -v -- '*=*' (commandline -opc))[1]
    set program (string replace -r '^~' "$HOME" -- $program)
    set -l line (commandline -cp)
    set -l found ($program completion --query "$line" 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c medtransfer -f -a '(__medtransfer)'
""",
}


def answer(parser: ArgumentParser, line: str) -> list[str]:
    """Return what could stand in place of the last word of a command line.

    Args:
        parser: Of the program.
        line: What is typed up to the cursor, the program's name included.

    Returns:
        Whole words, sorted; none where names of files are wanted, or nothing is known.
    """
    words = _words(line)
    while words and "=" in words[0]:  # values of variables may stand before the program
        words = words[1:]
    *before, word = words[1:] or [""]
    commands = _commands(parser)
    if not before:
        return _fitting([*commands, *_flags(parser)] if word[:1] == "-" else commands, word)
    command = commands.get(before[0])
    return [] if command is None else _fitting(_offered(command, before, word), word)


def _offered(command: ArgumentParser, before: Sequence[str], word: str) -> Iterable[str]:
    """Return what a command takes after some words, of which it is the first."""
    app = command.get_default("app")  # the configuration that overrides are of
    own = {} if app is None else HYDRA_FLAGS
    values = _value_of_flag(command, before[-1], own)
    if values is not None:
        return values
    if word[:1] == "-":
        return [*_flags(command), *(own if before[0] == app else ())]
    rest, folder = _positional(command, before[1:])
    place = len([each for each in rest if "=" not in each])
    expected = [each for each in command._actions if not each.option_strings]
    if place < len(expected):
        action = expected[place]
        return _groups(folder) if action.dest == "group" else map(str, action.choices or ())
    if app is None or (expected and expected[-1].nargs == "+"):
        return ()
    return _overrides(app, folder, rest, word, many="-m" in before or "--multirun" in before)


def _words(line: str) -> list[str]:
    """Return the words of a line, the last one empty after a blank; a quote may still be open."""
    for end in ("", "'", '"'):
        try:
            words = shlex.split(line + end)
        except ValueError:
            continue
        blank = not end and line[-1:].isspace() and not line.endswith("\\ ")
        return [*words, ""] if blank or not words else words
    return [*line.split(" ")]


def _fitting(found: Iterable[str], word: str) -> list[str]:
    return sorted(each for each in found if each.startswith(word))


def _commands(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    (action,) = (each for each in parser._actions if isinstance(each, _SubParsersAction))
    return dict(action.choices)


def _flags(parser: ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.help != SUPPRESS:
            yield from action.option_strings


def _value_of_flag(
    parser: ArgumentParser, flag: str, own: Mapping[str, tuple[str, ...] | None]
) -> Iterable[str] | None:
    """Return the values that a flag before the cursor takes; None if it is none, or takes none."""
    action = parser._option_string_actions.get(flag)
    if action is not None:
        return None if action.nargs == 0 else map(str, action.choices or ())
    return own.get(flag)


def _positional(parser: ArgumentParser, words: Sequence[str]) -> tuple[list[str], Path | None]:
    """Return the words that are no flags and no values of flags, and the own config folder."""
    found, folder = [], None
    flag = ""
    for word in words:
        name, _, value = word.partition("=")
        if flag == "--config-dir" or name == "--config-dir" != word:
            folder = Path(word if flag else value).expanduser()
        elif not flag and word[:1] != "-":
            found.append(word)
        action = parser._option_string_actions.get(word)
        takes = HYDRA_FLAGS.get(word) is not None if action is None else action.nargs != 0
        flag = word if takes and not flag else ""
    return found, folder


def _groups(folder: Path | None) -> list[str]:
    from medtransfer.app import App
    from medtransfer.commands.catalog import groups

    with App.open("train", folder) as app:
        return groups(app)


def _overrides(
    name: str, folder: Path | None, before: Sequence[str], word: str, *, many: bool
) -> list[str]:
    """Return what an override could be: a group, a choice, a key, or the value that a key has.

    Args:
        name: Of the configuration.
        folder: With config groups of the user's own.
        before: Overrides that stand before it.
        word: What there is of it; what is returned need not fit its end.
        many: Whether they are of a sweep.
    """
    from medtransfer.app import App
    from medtransfer.study import spelled

    key = word.lstrip("+~")
    sign = word.removesuffix(key)
    key, equals, value = key.partition("=")
    with App.open(name, folder) as app:
        if not equals:
            config = _config(app, before, many=many)
            found = {*_chosen_in(config), *_keys(config, key)}
            return [f"{sign}{each}" for each in found]
        group = spelled(key).partition("@")[0]
        choices = _choices(app, group)
        if choices:
            first, comma, _ = value.rpartition(",")  # of a list
            taken = first.split(",")
            start = f"{sign}{key}={first}{comma}"
            return [f"{start}{each}" for each in choices if each not in taken]
        current = _value(_config(app, before, many=many), key)
        return [f"{sign}{key}={current}"] if PLAIN.fullmatch(current) else []


def _config(app: App, before: Sequence[str], *, many: bool) -> DictConfig:
    """Return the configuration of what stands before the cursor, or else the plain one."""
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    from medtransfer.study import spelled_override

    mode = RunMode.MULTIRUN if many else RunMode.RUN
    loader = app.hydra.config_loader
    given = [spelled_override(each) for each in before if "=" in each]
    try:
        return loader.load_configuration(app.name, given, run_mode=mode)
    except (HydraException, OmegaConfBaseException, ValueError):
        return loader.load_configuration(app.name, [], run_mode=mode)


def _choices(app: App, group: str) -> list[str]:
    from hydra.core.object_type import ObjectType

    return list(app.hydra.config_loader.get_group_options(group, ObjectType.CONFIG))


def _chosen_in(config: DictConfig) -> Iterator[str]:
    """Yield the groups of a configuration as they are written to choose in them."""
    from medtransfer.study import EXTERNAL

    for group in map(str, config.hydra.runtime.choices):
        written, _, package = group.partition("@")
        if package == EXTERNAL:
            yield f"{EXTERNAL}="
        elif not package and not written.startswith("common"):
            yield f"{written}="


def _keys(config: DictConfig, key: str) -> list[str]:
    """Return keys that begin so: with = where they hold a value, with . where they hold others."""
    from hydra.plugins.completion_plugin import CompletionPlugin
    from omegaconf.errors import OmegaConfBaseException

    try:
        found: list[str] = CompletionPlugin._get_matches(config, key)
    except OmegaConfBaseException:  # what is above it has no value
        return []
    return [each for each in found if not each.endswith("_target_=")]


def _value(config: DictConfig, key: str) -> str:
    """Return the value that a key has, as it is written; nothing if it holds others or none."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        found = OmegaConf.select(config, key)
    except OmegaConfBaseException:  # it points to what is not there
        return ""
    if found is None or OmegaConf.is_config(found):
        return ""
    return str(found).lower() if isinstance(found, bool) else str(found)

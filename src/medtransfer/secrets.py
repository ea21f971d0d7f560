"""What must not be shown: passwords of the places that are named, values of the environment."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

HIDDEN = "***"
SHORTEST = 4  # characters: shorter values are numbers and flags, and would be found everywhere
ALONE = 8  # below that, a value is hidden where it is a word of its own

PLACES = re.compile(
    "MEDTRANSFER_.*|HOME|USER|LOGNAME|HOSTNAME|PWD|TMPDIR|SCRATCH|SLURM_.*|XDG_.*|CUDA_.*|OMP_.*"
)
"""Variables that say where things lie and run: secrets have no business in them."""

_PORT = r"(?!\d{1,5}[/'\"])"
_USER = re.compile(rf"(\w://[^/\s:@]*):{_PORT}[^\s@\"]+@(?:[^/\s@'\"]*@)*")
_TOKEN = re.compile(r"(\w://)[^/\s:@'\"]+@")
_QUERY = re.compile(
    r"([?&;][\w.-]*(?:pass|pwd|secret|token|key|sig|credential|auth|odbc_connect)[\w.-]*=)"
    r"[^&;\s#'\"]+",
    re.IGNORECASE,
)
_LONG_USER = re.compile(r"(\w://)[^/\s:@]{20,}(:\*\*\*@)")  # a token in the place of the user

_remembered: set[str] = set()


def watch_environment() -> None:
    """Remember from now on what configurations take from the environment by `oc.env`.

    The resolver does what OmegaConf's own does. It must be there in each process that resolves a
    configuration, so a module that all of them import calls this.
    """
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def env(key: str, *default: Any) -> str | None:
        value = oc.env(key, *default)
        if key in os.environ and not PLACES.fullmatch(key) and not _is_place(os.environ[key]):
            remember(os.environ[key])
        return value

    OmegaConf.register_new_resolver("oc.env", env, replace=True)


def _is_place(value: str) -> bool:
    """Tell whether a value is the path of what is there, as of a folder of data."""
    try:
        return Path(value).is_absolute() and Path(value).exists()
    except (OSError, ValueError):  # too long for a path, say
        return False


def remember(value: str) -> None:
    """Hide a value from now on, and each long line of it."""
    found = {value, *(part.strip() for part in value.splitlines())}
    _remembered.update(part for part in found if len(part) >= SHORTEST)


def redact(text: str) -> str:
    """Return a text without passwords and tokens of URIs in it, and without remembered values."""
    if _remembered:
        text = _pattern(frozenset(_remembered)).sub(HIDDEN, text)
    if "://" in text:
        text = _TOKEN.sub(rf"\1{HIDDEN}@", _USER.sub(rf"\1:{HIDDEN}@", text))
        text = _LONG_USER.sub(rf"\1{HIDDEN}\2", _QUERY.sub(rf"\1{HIDDEN}", text))
    return text


def redacted(values: Any) -> Any:
    """Return plain containers with every text in them redacted, keys too.

    A text that is written as YAML can be folded over several lines, where no value is found any
    more: what is to be written is redacted before.
    """
    if isinstance(values, str):
        return redact(values)
    if isinstance(values, Mapping):
        return {redacted(key): redacted(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [redacted(value) for value in values]
    return values


def printable(text: str) -> str:
    """Return a text that cannot move the cursor, colour the screen or turn the order of letters.

    Names of files, classes and patients come from outside. Line ends and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(char) for char in text)


def _shown(char: str) -> str:
    if char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return char
    return char.encode("unicode_escape", "backslashreplace").decode()


@contextmanager
def redacted_output() -> Iterator[None]:
    """Redact what a library writes to standard output, and show it at the end."""
    written = io.StringIO()
    try:
        with redirect_stdout(written):
            yield
    finally:
        sys.stdout.write(printable(redact(written.getvalue())))


@cache
def _pattern(values: frozenset[str]) -> re.Pattern[str]:
    forms = {form for value in values for form in _forms(value)}
    ordered = sorted(forms, key=lambda form: (-len(form), form))  # one may begin with another
    return re.compile("|".join(map(_found, ordered)))


def _found(form: str) -> str:
    literal = re.escape(form)
    return literal if len(form) >= ALONE else rf"(?<!\w){literal}(?!\w)"


def _forms(value: str) -> Iterator[str]:
    """Yield a value as it is, and as JSON, Python, URIs and SQL write it."""
    yield value
    yield json.dumps(value)[1:-1]
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield repr(value)[1:-1]
    yield quote(value, safe="")
    yield quote(value)
    yield quote_plus(value)
    yield value.replace("'", "''")

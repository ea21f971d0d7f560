"""The fenced blocks of the Markdown pages, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
BUILT = (
    Path("docs/_build"),
    Path("docs/reference/config"),
)  # by programs, and not in the repository
SHELL = ("bash", "console", "")  # blocks without a language hold commands, too
MARK = "<!-- run -->"
FENCE = re.compile(r"^(```+)(\S*)[^\n]*\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`(\S+\.(?:py|yaml))`:")


class Block(NamedTuple):
    """One fenced block.

    Attributes:
        path: The page, from the root of the repository.
        line: Where the block begins.
        language: What stands behind the fence.
        text: What it holds.
        run: Whether the line before it says that it can be run as it is.
        file: The file that the block is the content of, as the line before it says.
    """

    path: str
    line: int
    language: str
    text: str
    run: bool = False
    file: str | None = None


def pages() -> list[Path]:
    """Return the pages, from the root of the repository."""
    found = [Path("README.md"), Path("CONTRIBUTING.md")]
    found += sorted(path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))
    return [path for path in found if not any(path.is_relative_to(folder) for folder in BUILT)]


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        before = text[: found.start()].rstrip("\n").rpartition("\n")[2]
        line = text.count("\n", 0, found.start()) + 1
        named = NAMED.fullmatch(before)
        yield Block(str(page), line, found[2], found[3], before == MARK, named and named[1])


def commands_of(block: Block) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block, without variables that are set before it.

    Where a block has prompts, lines without one are what commands print.
    """
    text = block.text.replace("\\\n", " ")
    lines = text.splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    elif block.language == "":
        lines = [line for line in lines if line.startswith("medtransfer ")]
    for line in lines:
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[;&|<>]+", word):
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if words:
                    yield words
                words = []
            else:
                words.append(word)

"""The report as Markdown, in short."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from medtransfer.analysis.report.blocks import Bullets, Cards, Figures, Pictures, Table, Text
from medtransfer.analysis.report.facts import central, price
from medtransfer.analysis.report.words import NONE, plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medtransfer.analysis.report.blocks import Block, Section
    from medtransfer.analysis.results import Results

# What could be read as Markdown, HTML, a table's cell or a formula; `_` only where it emphasises.
_SPECIAL = re.compile(r"[&<>|`*\[\]~$\\]|(?<!\w)_|_(?!\w)|^\s*#|^\s*[+-](?!\d)|^\s*\d+[.)](?!\d)")
# Columns from here on hold numbers.
_LEFT, _RIGHT = ":---", "---:"


def markdown(results: Results, sections: Sequence[Section]) -> str:
    """Return the report; names from outside cannot act as Markdown or HTML.

    Args:
        results: What it states.
        sections: What it shows below the headline; of these the short ones.
    """
    contrast = central(results)
    cost = price(results, contrast) if contrast else ""
    blocks = [f"# {escape(results.study)}", escape(results.headline)]
    blocks += [f"Price: {escape(cost)}"] if cost else []
    for section in sections:
        if section.short:
            told = [each for block in section.blocks for each in _block(block)]
            blocks += [f"## {escape(section.title)}", *told]
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, also in a table's cell."""
    # Character references are never structure, in any dialect; backslashes are, in some.
    return _SPECIAL.sub(lambda m: "".join(f"&#{ord(c)};" for c in m[0]), plain(text))


def _block(block: Block) -> Iterator[str]:
    match block:
        case Text(text=text):
            yield escape(text)
        case Bullets(items=items):
            yield "\n".join(f"- {escape(item)}" for item in items)
        case Cards(cards=cards):
            values = [f"{c.value}{f' ({c.note})' if c.note else ''}" for c in cards]
            yield _table(Table(tuple(c.name for c in cards), (), (tuple(values),)))
        case Table():
            yield _table(block)
            if block.note:
                yield escape(block.note)
        case Figures(figures=figures):
            for figure in figures:
                yield f"![{escape(figure.title)}](figures/{figure.name}.svg)"
        case Pictures(pictures=pictures):
            for picture in pictures:
                yield escape(picture.told)
                yield f"![{escape(picture.told)}]({picture.file})"


def _table(table: Table) -> str:
    heads = [escape(head) for head in (*table.names, *table.numbers)]
    sides = [_LEFT] * len(table.names) + [_RIGHT] * len(table.numbers)
    rows = [[cell if cell == NONE else escape(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, sides, *rows))

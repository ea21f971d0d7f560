"""The report as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medtransfer.analysis.report.facts import central, price, stands
from medtransfer.analysis.report.sheet import themed
from medtransfer.analysis.report.words import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medtransfer.analysis.report.blocks import Section
    from medtransfer.analysis.results import Results

# Where a name can be broken; and what has no such place for too long.
_JOINT = re.compile(r"(?<=[/_=@])(?=\S)|(?<=\.)(?=[^\d\s])")
_RUN = re.compile(r"\S{40}(?=\S)")
_BREAK = "\0"  # no text of a page has it
_HERE = Path(__file__).parent
_SIGNS = MappingProxyType(
    {
        "better": "\N{BLACK UP-POINTING TRIANGLE}",
        "worse": "\N{BLACK DOWN-POINTING TRIANGLE}",
        "equivalent": "\N{IDENTICAL TO}",
        "undecided": "?",
    }
)


def page(results: Results, sections: Sequence[Section]) -> str:
    """Return the page; names from outside cannot act as HTML.

    Args:
        results: What it states.
        sections: What it shows below the headline.
    """
    contrast = central(results)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            results=results,
            contrast=contrast,
            stands=stands(results, contrast) if contrast else "",
            price=price(results, contrast) if contrast else "",
            sections=sections,
            signs=_SIGNS,
            style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        )
    )


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Everything is text from outside, and may hold control characters.
        finalize=lambda value: plain(value) if type(value) is str else value,
    )
    found.filters["soft"] = _soft
    found.globals["themed"] = themed
    return found


def _soft(text: str) -> Markup:
    """Return text that may be broken where a name has a joint, but not within a number."""
    runs = _JOINT.sub(_BREAK, plain(text)).split(_BREAK)
    parts = [part for run in runs for part in _RUN.sub(rf"\g<0>{_BREAK}", run).split(_BREAK)]
    return Markup("<wbr>").join(parts)

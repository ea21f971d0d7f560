"""What a report is made of, whatever its form: sections of text, tables, figures and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        paste: Whether it is meant to be copied into a paper.
    """

    text: str
    paste: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Card:
    """One number that a reader looks for first, its name, and what it is to be read against."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cards:
    """Numbers side by side."""

    cards: tuple[Card, ...]
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True)
class Table:
    """Cells of text.

    Args:
        names: Heads of the columns that hold text.
        numbers: Heads of the columns that hold numbers; they follow the others.
        rows: Cells, as many a row as there are heads.
        note: What stands below it, such as where the rest is.
    """

    names: tuple[str, ...]
    numbers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]
    kind: ClassVar[str] = "bullets"


@dataclass(frozen=True)
class Key:
    """What an arm looks like in the figures."""

    name: str
    colour: str
    dash: str
    marker: str


@dataclass(frozen=True)
class Figure:
    """One drawing.

    Args:
        name: Of its files, without their ending.
        title: Its heading.
        alt: What it shows, for those who do not see it.
        inline: SVG for a page that has a legend of its own; text and axes in the page's colour.
        svg: The content of the file, legend included.
        png: The same as pixels.
        keys: What the legend tells.
    """

    name: str
    title: str
    alt: str
    inline: str
    svg: str
    png: bytes
    keys: tuple[Key, ...] = ()


@dataclass(frozen=True)
class Figures:
    """Drawings side by side, under one legend."""

    figures: tuple[Figure, ...]
    kind: ClassVar[str] = "figures"

    @property
    def keys(self) -> tuple[Key, ...]:
        """The legend of all of them."""
        return tuple(dict.fromkeys(key for figure in self.figures for key in figure.keys))


@dataclass(frozen=True)
class Picture:
    """A picture beside the report.

    Args:
        file: Its path, relative to the report.
        told: What it shows.
        data: It again, smaller, as a data URI; empty where it could not be read.
    """

    file: str
    told: str
    data: str


@dataclass(frozen=True)
class Pictures:
    """Pictures one below the other."""

    pictures: tuple[Picture, ...]
    kind: ClassVar[str] = "pictures"


Block = Text | Cards | Table | Bullets | Figures | Pictures


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Args:
        name: Its anchor.
        short: Whether it belongs into the short form, which is Markdown.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]
    short: bool = True


def figures_of(given: Iterable[Section]) -> Iterator[Figure]:
    """Yield the figures of all sections."""
    for section in given:
        for block in section.blocks:
            if isinstance(block, Figures):
                yield from block.figures

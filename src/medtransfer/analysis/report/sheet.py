"""Paper for the figures: narrow, measured in pixels, with colours that follow the page's theme."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from xml.etree import ElementTree as ET

import matplotlib as mpl
from matplotlib import figure as mpl_figure
from matplotlib import lines as mpl_lines
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from medtransfer.analysis.report.blocks import Figure, Key
from medtransfer.analysis.report.words import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes

WIDTH = 360  # pixels: what a telephone shows without making the text smaller
LEFT, RIGHT = 46, 14  # for the labels of the vertical axis, and half a label of the other
SIZE, SMALL = 11, 10
LINE = 15  # from one line of text to the next
_LINES = 6  # of one name; longer ones are no names
# Stands for the colour of the page's text; no palette has it.
INK = "#010203"
_ON_PAPER = "#1a1a1a"
_DPI = 72  # one point is one pixel
# Okabe & Ito (2008), less yellow, which white paper swallows, and with the text's colour for black.
_BLUE = "#0072b2"
_COLOURS = (_BLUE, "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("", "6 2", "2 2", "6 2 2 2")
_BREAK = re.compile(r"[^\s/_,;.=@+-]*[\s/_,;.=@+-]*")
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_LEGEND = "legend-of-the-sheet"
_STYLE: Mapping[str, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.labelsize": SIZE,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": SIZE,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "text.usetex": False,
    "xtick.color": INK,
    "xtick.labelsize": SIZE,
    "ytick.color": INK,
    "ytick.labelsize": SIZE,
}

ET.register_namespace("", _SVG)
ET.register_namespace("xlink", _XLINK)


def key(position: int, name: str) -> Key:
    """Return what the arm at a position looks like: colour, marker and dashes all differ."""
    colour, marker = (each[position % len(each)] for each in (_COLOURS, _MARKERS))
    return Key(plain(name), colour, _DASHES[position % len(_DASHES)], marker)


def dashes(each: Key) -> tuple[float, tuple[float, ...]] | Literal["-"]:
    """Return the dashes as matplotlib wants them."""
    return (0.0, tuple(float(x) for x in each.dash.split())) if each.dash else "-"


def wrapped(text: str, width: float, size: float = SIZE) -> list[str]:
    """Return lines that are at most `width` pixels long, broken where a name can be."""
    lines = [""]
    for part in filter(None, _BREAK.findall(plain(text))):
        if _length(lines[-1] + part.rstrip(), size) <= width:
            lines[-1] += part
            continue
        lines.append("")
        for char in part:
            if lines[-1] and _length(lines[-1] + char, size) > width:
                lines.append("")
            lines[-1] += char
    found = [line.strip() for line in lines if line.strip()]
    return found if len(found) <= _LINES else [*found[: _LINES - 1], f"{found[_LINES - 1]}…"]


def _length(text: str, size: float) -> float:
    # A font without a wide character measures a box in its place, which is half as wide.
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        width, _, _ = text_to_path.get_text_width_height_descent(
            text, FontProperties(family="DejaVu Sans", size=size), ismath=False
        )
    return float(width) + 0.5 * size * wide


@dataclass(frozen=True)
class Caption:
    """What a figure is called, see `Figure`."""

    name: str
    title: str
    alt: str


@contextmanager
def paper() -> Iterator[None]:
    """Draw in the manner of the report, whatever the machine's own settings of matplotlib are."""
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcdefaults()
        for name, value in _STYLE.items():
            mpl.rcParams[name] = value  # type: ignore[index]
        yield


class Sheet:
    """A drawing; places are in pixels from its upper left corner, below the legend.

    Args:
        height: Without the legend.
        keys: What the legend shows.
    """

    def __init__(self, height: float, keys: Sequence[Key] = ()) -> None:
        self._rows = [(each, wrapped(each.name, WIDTH - 36)) for each in keys]
        self._keys = tuple(keys)
        self._legend = sum(LINE * len(lines) + 3 for _, lines in self._rows)
        self._legend += 8 if self._rows else 0
        self.height = height + self._legend
        self.figure = mpl_figure.Figure(figsize=(WIDTH / _DPI, self.height / _DPI), dpi=_DPI)

    def axes(self, top: float, height: float, *, left: float = LEFT, right: float = RIGHT) -> Axes:
        """Return axes that fill the width between two margins."""
        bottom = self.height - self._legend - top - height
        box = (left / WIDTH, bottom / self.height, (WIDTH - left - right) / WIDTH)
        return self.figure.add_axes((*box, height / self.height))

    def text(self, x: float, y: float, text: str, **style: object) -> None:
        """Write one line; `y` is its middle."""
        place = x / WIDTH, 1 - (self._legend + y) / self.height
        options = {"va": "center", "fontsize": SIZE, **style}
        self.figure.text(*place, plain(text), **options)  # type: ignore[arg-type]

    def done(self, caption: Caption) -> Figure:
        """Return the drawing as SVG, for the page and as a file, and as pixels."""
        self._draw_legend()
        mpl.rcParams["svg.hashsalt"] = caption.name  # equal drawings have equal bytes
        vector, pixels = io.StringIO(), io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(vector, format="svg", metadata=nothing)
        self.figure.savefig(
            pixels, format="png", dpi=2 * _DPI, facecolor="white", metadata={"Software": None}
        )
        inline, file = _forms(vector.getvalue(), caption.name, self._legend, self.height)
        return Figure(
            name=caption.name,
            title=plain(caption.title),
            alt=plain(caption.alt),
            inline=inline,
            svg=file,
            png=pixels.getvalue(),
            keys=self._keys,
        )

    def _draw_legend(self) -> None:
        y = 0.0
        for each, lines in self._rows:
            middle = 1 - (y + LINE / 2) / self.height
            self.figure.add_artist(
                mpl_lines.Line2D(
                    [4 / WIDTH, 15 / WIDTH, 26 / WIDTH],
                    [middle] * 3,
                    color=each.colour,
                    linestyle=dashes(each),
                    marker=each.marker,
                    markevery=[1],
                    gid=_LEGEND,
                )
            )
            for line in lines:
                place = 34 / WIDTH, 1 - (y + LINE / 2) / self.height
                self.figure.text(*place, line, va="center", gid=_LEGEND)
                y += LINE
            y += 3


def _forms(svg: str, name: str, legend: float, height: float) -> tuple[str, str]:
    """Return the drawing for the page, and as a file."""
    root = ET.fromstring(svg)
    for child in list(root):
        if child.tag.endswith("}metadata"):
            root.remove(child)
    _rename(root, name)
    root.set("width", f"{WIDTH}")
    root.set("height", f"{height:g}")
    root.set("viewBox", f"0 0 {WIDTH} {height:g}")
    white = ET.Element(f"{{{_SVG}}}rect", {"width": "100%", "height": "100%", "fill": "white"})
    root.insert(0, white)
    file = ET.tostring(root, encoding="unicode").replace(INK, _ON_PAPER) + "\n"
    root.remove(white)
    for parent in list(root.iter()):
        for child in list(parent):
            # A page has a legend of its own, and styles that would hold for all of it.
            if child.get("class") == _LEGEND or child.tag.endswith("}style"):
                parent.remove(child)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("viewBox", f"0 {legend:g} {WIDTH} {height - legend:g}")
    inline = themed(ET.tostring(root, encoding="unicode"))
    # HTML knows the names of SVG by itself.
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", inline, count=2), file


def themed(text: str) -> str:
    """Return SVG or a colour of it as a page wants it, whose background may be light or dark."""
    return text.replace(INK, "currentColor").replace(_BLUE, f"var(--blue, {_BLUE})")


def _rename(root: ET.Element, name: str) -> None:
    """Keep only identifiers that something refers to, and make them unique among all figures."""
    used = set()
    for each in root.iter():
        for value in each.attrib.values():
            used.update(re.findall(r"url\(#([^)]+)\)", value))
        if (link := each.get(f"{{{_XLINK}}}href", "")).startswith("#"):
            used.add(link[1:])
    for each in root.iter():
        if (known := each.get("id")) is not None:
            if known in used:
                each.set("id", f"{name}-{known}")
            else:
                del each.attrib["id"]
            if known == _LEGEND:
                each.set("class", _LEGEND)
        for attribute, value in list(each.attrib.items()):
            changed = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", value)
            if attribute == f"{{{_XLINK}}}href" and value.startswith("#"):
                changed = f"#{name}-{value[1:]}"
            each.set(attribute, changed)

"""One page of pictures: the first cases of each finding, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from medtransfer.audit.findings import Audit, Finding
from medtransfer.data.base import Image, Record

if TYPE_CHECKING:
    from medtransfer.data.decoded import Decoded

SIDE = 150  # of an image; all sizes are pixels
WITHIN, BETWEEN, MARGIN = 4, 20, 16  # a case, cases, and the page
WIDTH = 1560
HEADING, TEXT = 15, 11  # sizes of the font
SHOWN = 6  # cases of a finding
MEMBERS = 3  # images of a case
LONGEST = 400  # characters that can fit in a line

INK = {"leak": "#B00020", "warning": "#9A5B00", "info": "#404040"}
PALE = "#606060"

Picture = PILImage.Image


def sheet(audit: Audit, decoded: Decoded, sides: Sequence[str]) -> Picture | None:
    """Return a page less than 1600 pixels wide, or None where no finding has a case.

    Args:
        audit: What was found.
        decoded: The images and what is known of them.
        sides: (n,) split of each sample.
    """
    place = {record.sample_id: index for index, record in enumerate(decoded.records)}
    strips: list[Picture] = []
    for finding in audit.findings:
        if not finding.cases:
            continue
        strips.append(_heading(finding))
        row: list[Picture] = []
        for case in finding.cases[:SHOWN]:
            indices = [place[sample_id] for sample_id in case[:MEMBERS]]
            drawn = [_member(decoded, index, sides[index]) for index in indices]
            picture = _row(drawn, WITHIN)
            if row and sum(p.width + BETWEEN for p in row) + picture.width > WIDTH:
                strips.append(_row(row, BETWEEN))
                row = []
            row.append(picture)
        strips.append(_row(row, BETWEEN))
    return _page(strips) if strips else None


def _heading(finding: Finding) -> Picture:
    more = f" ({SHOWN} of {finding.count} shown)" if len(finding.cases) > SHOWN else ""
    text = f"{finding.severity}: {finding.code}{more}: {finding.message}"
    return _line(text, WIDTH, HEADING, INK[finding.severity])


def _member(decoded: Decoded, index: int, side: str) -> Picture:
    """Return an image with its id, split and labels below."""
    record = decoded.records[index]
    told = ", ".join(filter(None, (side or "no split", _label(record, decoded.class_names))))
    size = (SIDE, SIDE + 2 * _height(TEXT) + WITHIN)
    picture = PILImage.new("RGB", size, "white")
    picture.paste(_picture(decoded.images[index]), (0, 0))
    picture.paste(_line(record.sample_id, SIDE, TEXT, "black"), (0, SIDE + WITHIN))
    picture.paste(_line(told, SIDE, TEXT, PALE), (0, SIDE + WITHIN + _height(TEXT)))
    return picture


def _label(record: Record, class_names: Sequence[str]) -> str:
    if record.labels:
        names = [n for n, holds in zip(class_names, record.labels, strict=True) if holds == 1]
        return ", ".join(names) or "no label"
    return class_names[record.target]


def _picture(pixels: Image) -> Picture:
    """Return an image (C, S, S) of 8 or 16 bits at the size of the page."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    channels = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    grey = PILImage.fromarray(np.ascontiguousarray(channels, dtype=np.uint8)).convert("RGB")
    return grey.resize((SIDE, SIDE), PILImage.Resampling.BICUBIC)


def _line(text: str, width: int, size: int, ink: str) -> Picture:
    picture = PILImage.new("RGB", (width, _height(size)), "white")
    ImageDraw.Draw(picture).text((0, size), fit(text, width, size), ink, _font(size), anchor="ls")
    return picture


def fit(text: str, width: int, size: int) -> str:
    """Return a text of at most `width` pixels; what is left out of its middle is `…`."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"
    # control characters, line ends and bytes that are no text have no glyph
    text = "".join(each if each.isprintable() else "?" for each in text)
    font, kept, cut = _font(size), len(text), text
    while kept and font.getlength(cut) > width:
        kept -= 1
        cut = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return cut


def _height(size: int) -> int:
    return size + size // 3


def _row(pictures: Sequence[Picture], gap: int) -> Picture:
    width = sum(each.width + gap for each in pictures) - gap
    row = PILImage.new("RGB", (width, max(each.height for each in pictures)), "white")
    x = 0
    for each in pictures:
        row.paste(each, (x, 0))
        x += each.width + gap
    return row


def _page(strips: Sequence[Picture]) -> Picture:
    gap = BETWEEN // 2
    width = max(each.width for each in strips) + 2 * MARGIN
    height = sum(each.height + gap for each in strips) - gap + 2 * MARGIN
    page, y = PILImage.new("RGB", (width, height), "white"), MARGIN
    for each in strips:
        page.paste(each, (MARGIN, y))
        y += each.height + gap
    return page


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Pillow's own font knows ASCII alone; this one Latin, Greek, Cyrillic and Arabic too
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)

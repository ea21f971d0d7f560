"""What pages of pictures are made of: images, lines of text, rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

LONGEST = 400  # characters that can fit in a line

INK, PALE = "#202020", "#606060"

Picture = PILImage.Image


def picture(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> Picture:
    """Return an image (C, H, W) of 8 or 16 bits in colours of 8 bits."""
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    channels = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    return PILImage.fromarray(np.ascontiguousarray(channels)).convert("RGB")


def fit(text: str, width: float, size: int) -> str:
    """Return a text that is at most `width` pixels long; what is left out of its middle is `…`."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"
    # control characters, line ends and bytes that are no text have no glyph
    text = "".join(each if each.isprintable() else "?" for each in text)
    length, middle = font(size).getlength, (len(text) + 1) // 2
    if length(text) <= width:
        return text
    head, tail = text[:middle], text[middle:]
    while head and length(f"{head}…{tail}") > width:
        head, tail = (head[:-1], tail) if len(head) > len(tail) else (head, tail[1:])
    return f"{head}…{tail}"


def line(text: str, width: int, size: int, ink: str = INK) -> Picture:
    """Return one line of text, as much of it as there is room for."""
    row = PILImage.new("RGB", (width, size + size // 3), "white")
    shown = fit(text, width, size)
    ImageDraw.Draw(row).text((0, size), shown, ink, font(size), anchor="ls")
    return row


def beside(pictures: Sequence[Picture], gap: int) -> Picture:
    """Return pictures in a row, their tops level."""
    size = (sum(each.width + gap for each in pictures) - gap, max(p.height for p in pictures))
    row, x = PILImage.new("RGB", size, "white"), 0
    for each in pictures:
        row.paste(each, (x, 0))
        x += each.width + gap
    return row


def below(pictures: Sequence[Picture], gap: int) -> Picture:
    """Return pictures in a column, their left edges level."""
    size = (max(p.width for p in pictures), sum(each.height + gap for each in pictures) - gap)
    column, y = PILImage.new("RGB", size, "white"), 0
    for each in pictures:
        column.paste(each, (0, y))
        y += each.height + gap
    return column


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font of all pages."""
    # Pillow's own font knows ASCII alone; this one Latin, Greek, Cyrillic and Arabic too
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)

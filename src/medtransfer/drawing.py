"""One page of cases: images with what is marked in them, captions and a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageColor, ImageDraw, ImageOps
from scipy.ndimage import binary_erosion

from medtransfer import canvas
from medtransfer.canvas import INK, PALE, Picture, below, beside, fit, font, line
from medtransfer.data.base import IGNORED, Boxes, Mask
from medtransfer.data.decoded import Decoded
from medtransfer.tasks.examples import Case, Examples, Panel

SIDE = 248  # of a panel; all sizes are pixels
ACROSS = 3  # cases side by side
ROW = 2  # panels of a case side by side
MARGIN = 16
BETWEEN = 24  # cases
WITHIN = 4  # a case, and lines of text
TITLE, HEADING, TEXT, LABEL = 20, 16, 13, 10  # sizes of the font

DARK = 120  # mean of red, green and blue up to which white is the easier ink to read
FILL = 0.3  # how much of a class's colour lies on its pixels
GLOW = 0.6  # how much of the colour of heat lies on the hottest pixels
HEAT = "inferno"  # matplotlib's name of its colours: brighter is hotter, for any eye
# Okabe and Ito's, which the colour-blind can tell apart; on a grey image, so without grey and black
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")

Corners = tuple[float, float, float, float]


def draw(examples: Examples, decoded: Decoded) -> Picture:
    """Return the page of some cases, less than 1600 pixels wide.

    Args:
        examples: What to show, at least one case.
        decoded: The images and their ids.
    """
    cases = [case for group in examples.groups.values() for case in group]
    panels = min(ROW, max(len(case.panels) for case in cases))
    column = panels * (SIDE + WITHIN) - WITHIN
    width = ACROSS * column + (ACROSS - 1) * BETWEEN
    title = line(examples.title, width, TITLE)
    note = [line(examples.note, width, TEXT, PALE)] if examples.note else []
    strips = [below([title, *note, *_legend(cases, examples, width)], 2 * WITHIN)]
    for heading, group in examples.groups.items():
        strips.append(line(heading, width, HEADING))
        for start in range(0, len(group), ACROSS):
            row = [_case(case, decoded, column) for case in group[start : start + ACROSS]]
            strips.append(beside(row, BETWEEN))
    return ImageOps.expand(below(strips, 3 * WITHIN), MARGIN, "white")


def colour(label: int) -> str:
    """Return the colour of a class, `#rrggbb`: no two of the first dozens are alike."""
    if label < len(COLOURS):
        return COLOURS[label]
    # hues at the golden angle never meet again
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.65, 0.95)
    return f"#{round(red * 255):02X}{round(green * 255):02X}{round(blue * 255):02X}"


def _case(case: Case, decoded: Decoded, width: int) -> Picture:
    shown, record = [], decoded.records[case.index]
    for panel in case.panels:
        own = case.index if panel.index is None else panel.index
        shown.append(draw_panel(panel, decoded.images[own]))
    rows = [beside(shown[k : k + ROW], WITHIN) for k in range(0, len(shown), ROW)]
    panels = below(rows, WITHIN)
    exam = any(panel.index is not None for panel in case.panels)
    name = line(record.exam_id if exam else record.sample_id, width, TEXT)
    words = [line(text, width, TEXT, PALE) for text in case.words]
    return below([panels, name, *words], WITHIN)


def draw_panel(
    panel: Panel, pixels: NDArray[np.uint8] | NDArray[np.uint16], side: int = SIDE
) -> Picture:
    """Return an image (C, H, W) at the size of a panel, with its marks, under its heading."""
    picture = canvas.picture(pixels).resize((side, side), PILImage.Resampling.LANCZOS)
    if panel.heat is not None:
        picture = _heated(picture, panel.heat)
    if panel.mask is not None:
        picture = _paint(picture, panel.mask)
    if panel.boxes is not None:
        _frame(picture, panel.boxes, panel.scores, side / pixels.shape[-1])
    heading = [line(panel.heading, side, TEXT, PALE)] if panel.heading else []
    return below([*heading, picture], WITHIN)


def _paint(picture: Picture, mask: Mask) -> Picture:
    """Return a picture with the areas of a mask tinted and outlined."""
    resized = PILImage.fromarray(mask).resize(picture.size, PILImage.Resampling.NEAREST)
    classes, values = np.asarray(resized), np.asarray(picture).astype(np.float32)
    for label in _labels(mask):
        tint = np.asarray(PILImage.new("RGB", (1, 1), colour(label)), dtype=np.float32)[0, 0]
        area = classes == label + 1
        values[area] += FILL * (tint - values[area])
        values[area & ~binary_erosion(area, border_value=1)] = tint
    return PILImage.fromarray(values.round().astype(np.uint8))


def _heated(picture: Picture, heat: NDArray[np.float32]) -> Picture:
    """Return a picture with heat (h, w) in [0, 1] over all of it; where there is none it stays."""
    resized = PILImage.fromarray(heat).resize(picture.size, PILImage.Resampling.BILINEAR)
    share = np.asarray(resized).clip(0, 1)
    values = np.asarray(picture).astype(np.float32)
    values += GLOW * share[..., None] * (255 * mpl.colormaps[HEAT](share)[..., :3] - values)
    return PILImage.fromarray(values.round().astype(np.uint8))


def _frame(
    picture: Picture, boxes: Boxes, scores: NDArray[np.float32] | None, scale: float
) -> None:
    """Draw boxes, and their scores where there is room for them, the highest first."""
    pen = ImageDraw.Draw(picture)
    corners = np.nan_to_num(boxes.boxes.astype(np.float64) * scale).clip(0, picture.width)
    order = list(range(len(corners)))
    if scores is not None:
        order = np.argsort(-scores, kind="stable").tolist()
    frames: list[Corners] = []
    for x0, y0, x1, y1 in corners:
        last = (max(x0, x1 - 1), max(y0, y1 - 1))  # ends are exclusive; pens draw the last pixel
        frames.append((x0, y0, *last))
    for row in reversed(order):
        pen.rectangle(frames[row], outline=colour(int(boxes.labels[row])), width=2)
    if scores is None:
        return
    length, taken = font(LABEL).getlength, list[Corners]()
    for row in order:
        text = f"{scores[row]:.2f}"
        place = room(frames[row], length(text) + 2, taken, picture.width)
        if place is not None:
            taken.append(place)
            fill = colour(int(boxes.labels[row]))
            ink = INK if np.mean(ImageColor.getrgb(fill)) > DARK else "white"
            pen.rectangle(place, fill=fill)
            pen.text((place[0] + 1, place[1] + LABEL), text, ink, font(LABEL), anchor="ls")


def room(
    frame: Corners, width: float, taken: Iterable[Corners], side: int = SIDE
) -> Corners | None:
    """Return where a label has room at a corner of a frame, outside or inside of it, if anywhere.

    Args:
        frame: Of a box in a panel: x0, y0, x1, y1 in pixels.
        width: Of the label.
        taken: Places of other labels.
        side: Of the panel.
    """
    x0, y0, x1, y1 = frame
    height = LABEL + 2
    for y in (y0 - height, y0, y1, y1 - height):  # outside first: a small object stays in sight
        for x in (x0, x1 - width):
            place = (x, y, x + width, y + height)
            inside = min(x, y) >= 0 and max(place[2:]) < side
            if inside and not any(_meet(place, other) for other in taken):
                return place
    return None


def _meet(a: Corners, b: Corners) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _legend(cases: Sequence[Case], examples: Examples, width: int) -> list[Picture]:
    """Return lines with the classes that are marked anywhere, and what heat means."""
    seen: set[int] = set()
    panels = [panel for case in cases for panel in case.panels]
    for panel in panels:
        seen |= set() if panel.mask is None else set(_labels(panel.mask))
        seen |= set() if panel.boxes is None else set(panel.boxes.labels.tolist())
    entries = [
        _entry(PILImage.new("RGB", (TEXT, TEXT), colour(label)), examples.names[label], SIDE)
        for label in sorted(seen)
    ]
    if any(panel.heat is not None for panel in panels):
        grey = PILImage.new("RGB", (4 * TEXT, TEXT), "#808080")
        swatch = _heated(grey, np.linspace(0, 1, 4 * TEXT, dtype=np.float32)[None])
        entries.append(_entry(swatch, examples.heat, width - 6 * TEXT))
    lines: list[list[Picture]] = [[]]
    for entry in entries:
        if sum(each.width + MARGIN for each in lines[-1]) + entry.width > width:
            lines.append([])
        lines[-1].append(entry)
    return [beside(line, MARGIN) for line in lines if line]


def _entry(swatch: Picture, text: str, width: int) -> Picture:
    """Return a line of the legend, its text at most so wide."""
    text = fit(text, width, TEXT)
    words = line(text, int(font(TEXT).getlength(text)) + 1, TEXT)
    return beside([ImageOps.expand(swatch, (0, 2, 2, 0), "white"), words], WITHIN)


def _labels(mask: Mask) -> list[int]:
    """Return the foreground classes that a mask shows."""
    shown = np.unique(mask).tolist()
    return [value - 1 for value in shown if value not in {0, IGNORED}]

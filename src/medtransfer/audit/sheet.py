"""One page of pictures: the first cases of each finding, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image as PILImage
from PIL import ImageOps

from medtransfer.audit.findings import Audit, Finding
from medtransfer.canvas import PALE, Picture, below, beside, line, picture
from medtransfer.data.base import Record

if TYPE_CHECKING:
    from medtransfer.data.decoded import Decoded

SIDE = 150  # of an image; all sizes are pixels
WITHIN, BETWEEN, MARGIN = 4, 20, 16  # a case, cases, and the page
WIDTH = 1560
HEADING, TEXT = 15, 11  # sizes of the font
SHOWN = 6  # cases of a finding
MEMBERS = 3  # images of a case

INK = {"leak": "#B00020", "warning": "#9A5B00", "info": "#404040"}


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
            shown = beside(drawn, WITHIN)
            if row and sum(p.width + BETWEEN for p in row) + shown.width > WIDTH:
                strips.append(beside(row, BETWEEN))
                row = []
            row.append(shown)
        strips.append(beside(row, BETWEEN))
    if not strips:
        return None
    return ImageOps.expand(below(strips, BETWEEN // 2), MARGIN, "white")


def _heading(finding: Finding) -> Picture:
    more = f" ({SHOWN} of {finding.count} shown)" if len(finding.cases) > SHOWN else ""
    text = f"{finding.severity}: {finding.code}{more}: {finding.message}"
    return line(text, WIDTH, HEADING, INK[finding.severity])


def _member(decoded: Decoded, index: int, side: str) -> Picture:
    """Return an image with its id, split and labels below."""
    record = decoded.records[index]
    told = ", ".join(filter(None, (side or "no split", _label(record, decoded.class_names))))
    shown = picture(decoded.images[index]).resize((SIDE, SIDE), PILImage.Resampling.BICUBIC)
    words = [line(record.sample_id, SIDE, TEXT, "black"), line(told, SIDE, TEXT, PALE)]
    return below([shown, below(words, 0)], WITHIN)


def _label(record: Record, class_names: Sequence[str]) -> str:
    if record.labels:
        names = [n for n, holds in zip(class_names, record.labels, strict=True) if holds == 1]
        return ", ".join(names) or "no label"
    return class_names[record.target]

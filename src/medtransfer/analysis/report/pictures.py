"""Pictures of test cases inside the page: smaller, and as text."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from medtransfer.analysis.report.blocks import Picture

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

WIDTH = 1000  # pixels at most
BYTES = 200_000  # of a picture at most
MOST = 12  # pictures in a page
_QUALITIES = (85, 75, 60, 45, 30)


def embedded(folder: Path, pictures: Mapping[str, str]) -> tuple[Picture, ...]:
    """Return the pictures that lie in a folder, to be shown by a page.

    Args:
        folder: Of the report.
        pictures: What each file shows, by its path in the folder.
    """
    return tuple(
        Picture(file, told, _data(folder / file) if i < MOST else "")
        for i, (file, told) in enumerate(pictures.items())
    )


def _data(path: Path) -> str:
    """Return a data URI; empty where the file is no picture."""
    try:
        with Image.open(path) as found:
            image = found.convert("RGB")
    except (OSError, UnidentifiedImageError):
        return ""
    while True:
        width = min(image.width, WIDTH)
        image = image.resize((width, max(1, round(image.height * width / image.width))))
        for quality in _QUALITIES:
            content = io.BytesIO()
            image.save(content, "JPEG", quality=quality, optimize=True)
            if content.tell() <= BYTES:
                encoded = base64.b64encode(content.getvalue()).decode("ascii")
                return f"data:image/jpeg;base64,{encoded}"
        image = image.reduce(2)

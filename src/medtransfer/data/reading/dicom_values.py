"""What the grey values that a DICOM file stores mean, and which of them are black and white."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from medtransfer.data.base import Image
from medtransfer.data.reading.base import Window, ends_of, stretch

GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")


def windowed(
    data: Dataset,
    pixels: NDArray[Any],
    number: int,
    window: Window,
    ends: Callable[[], tuple[float, float]],
) -> Image | None:
    """Return the grey values of a frame from black to white.

    Args:
        data: The file.
        pixels: Of the frame as they are stored, (H, W).
        number: Of the frame.
        window: See `Reading`.
        ends: Gives the least and the greatest value of all frames, in the units of the modality.

    Returns:
        (H, W), or None if nothing says what is black and white.
    """
    bits = stored_bits(data)
    deep = bits > 8
    values = in_units(data, pixels, number)
    if window != "auto":
        return stretch(values, *(ends() if window == "full" else window), deep=deep)
    shown = item_of(data, number, "FrameVOILUTSequence")
    if shown.get("VOILUTSequence"):
        seen, depth = _looked_up(np.rint(values), shown.VOILUTSequence[0], data)
        return stretch(seen, 0, 2**depth - 1, deep=deep)
    # pydicom scales what it windows to the range of the stored values: one of our own choice
    voi = Dataset()
    voi.PhotometricInterpretation = "MONOCHROME2"
    voi.BitsStored, voi.PixelRepresentation = 16, 0
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        if shown.get(keyword) not in (None, ""):
            voi.add(shown[keyword])
    if "WindowCenter" in voi and "WindowWidth" in voi:
        try:
            return stretch(apply_windowing(values, voi), 0, 2**16 - 1, deep=deep)
        except ValueError:
            pass  # some scanners write a window without a width
    if bits > 16:
        return None
    return stretch(values, *_range(data, number, bits), deep=deep)


def in_units(data: Dataset, pixels: NDArray[Any], number: int) -> NDArray[Any]:
    """Return stored values in the units of the modality."""
    if data.get("ModalityLUTSequence"):
        return _looked_up(pixels, data.ModalityLUTSequence[0], data)[0]
    item = item_of(data, number, "PixelValueTransformationSequence")
    if item.get("RescaleSlope") is None or item.get("RescaleIntercept") is None:
        return pixels
    return apply_modality_lut(pixels, item)


def _range(data: Dataset, number: int, bits: int) -> tuple[float, float]:
    """Return the least and the greatest value that there can be, in the units of the modality."""
    if data.get("ModalityLUTSequence"):
        return 0, 2 ** int(data.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    least = -(2 ** (bits - 1)) if data.get("PixelRepresentation") else 0
    return ends_of(in_units(data, np.asarray([least, least + 2**bits - 1]), number))


def _looked_up(values: NDArray[Any], item: Dataset, data: Dataset) -> tuple[NDArray[Any], int]:
    """Return what a table has for values, and how many bits its entries use.

    pydicom does the same for tables of 8 and 16 bits only, and not for negative first values.
    """
    count, first, depth = (int(number) for number in item.LUTDescriptor)
    entries = item.LUTData
    if isinstance(entries, bytes):
        order = "<" if data.file_meta.TransferSyntaxUID.is_little_endian else ">"
        wide = len(entries) >= 2 * (count or 2**16)
        entries = np.frombuffer(entries, f"{order}u2" if wide else "u1")
    table = np.asarray(entries)
    places = values.astype(np.int64) - first
    return table[places.clip(0, len(table) - 1)], depth


def item_of(data: Dataset, number: int, sequence: str) -> Dataset:
    """Return what holds for one frame: of the frame, or of all, or of the file."""
    own, shared = (data.get(keyword) or () for keyword in GROUPS)
    for groups in (*own[number : number + 1], *shared):
        if found := groups.get(sequence):
            item: Dataset = found[0]
            return item
    return data


def stored_bits(data: Dataset) -> int:
    """Return how many bits of each value are used."""
    return int(data.get("BitsStored") or data.BitsAllocated)

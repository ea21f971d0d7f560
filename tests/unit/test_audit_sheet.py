from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as PILImage

from medtransfer.audit.findings import Audit, Finding
from medtransfer.audit.sheet import SHOWN, SIDE, sheet
from medtransfer.canvas import fit


def corpus(count=20, channels=1, dtype=np.uint8, labels=(), name="i{}"):
    """Return images, each of one grey value of its own."""
    scale = np.iinfo(dtype).max / 255
    images = np.zeros((count, channels, 16, 16), dtype)
    images[:] = (np.arange(count)[:, None, None, None] * 10 + 20) * scale
    records = [
        SimpleNamespace(sample_id=name.format(i), target=i % 2, labels=labels) for i in range(count)
    ]
    data = SimpleNamespace(records=records, images=images, class_names=("well", "ill"))
    return data, ["train", "test"] * (count // 2)


def found(*cases, severity="leak"):
    return Audit((Finding("near_duplicates", severity, "2 pairs", len(cases), cases),), {})


def colours(page: PILImage.Image) -> set[tuple[int, ...]]:
    return {colour for count, colour in page.getcolors(1 << 24) if count >= 0.9 * SIDE**2}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_the_images_of_a_case_are_shown(channels, dtype):
    data, sides = corpus(channels=channels, dtype=dtype)
    page = sheet(found(("i3", "i7")), data, sides)
    assert colours(page) == {(255,) * 3, (50,) * 3, (90,) * 3}
    assert page.width < 1600


def test_only_the_first_cases_are_shown():
    data, sides = corpus()
    page = sheet(found(*((f"i{i}", f"i{i + 1}") for i in range(15))), data, sides)
    greys = {colour[0] for colour in colours(page)} - {255}
    assert greys == {20 + 10 * i for i in range(SHOWN + 1)}


def test_there_is_no_page_without_a_case():
    data, sides = corpus()
    assert sheet(Audit((), {}), data, sides) is None
    assert sheet(found(), data, sides) is None


def test_long_and_strange_ids_fit():
    data, sides = corpus(name="folder/" * 60 + "\n\udce9 {}")
    ids = [record.sample_id for record in data.records]
    assert sheet(found((ids[0], ids[1])), data, sides).width < 1600


@pytest.mark.parametrize("text", ["", "a", "patient_00017/left_cc.png", "x" * 5000, "a\nb\x00"])
def test_a_text_keeps_its_ends_where_it_is_cut(text):
    shown = fit(text, 150, 11)
    assert len(shown) <= 150
    assert shown.isprintable()
    if len(text) > 300:
        assert shown.startswith("x")
        assert shown.endswith("x")
        assert "…" in shown


def test_several_labels_and_none_are_told():
    data, sides = corpus(labels=(1, 0))
    assert sheet(found(("i0", "i1")), data, sides) is not None
    data, _ = corpus(labels=(0, 0))
    assert sheet(found(("i0",)), data, [""] * 20) is not None

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from medtransfer.data.facts import CORNERS, DTYPE, SIDES, describe


def flat(height, width, value=100, dtype=np.uint8):
    return np.full((height, width), value, dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@given(data=st.data())
def test_moments_are_those_of_the_image_in_parts_of_the_range(dtype, data):
    shape = data.draw(st.sampled_from([(1, 1), (1, 9), (7, 5), (8, 8, 3), (40, 3)]))
    image = data.draw(arrays.arrays(dtype, shape))
    facts = describe(image, None)
    scaled = image / np.iinfo(dtype).max
    assert facts.dtype == DTYPE
    assert facts.shape == ()
    assert (facts["height"], facts["width"]) == shape[:2]
    assert facts["mean"] == pytest.approx(scaled.mean(), abs=1e-6)
    assert facts["std"] == pytest.approx(scaled.std(), abs=1e-6)
    assert facts["low"] == pytest.approx(scaled.min())
    assert facts["high"] == pytest.approx(scaled.max())
    assert facts["bits"] == 8 * np.dtype(dtype).itemsize


def test_a_grey_image_may_be_stored_as_colour():
    grey = np.random.default_rng(0).integers(0, 256, (9, 9), np.uint8)
    stored = np.stack([grey] * 3, axis=-1)
    tinted = stored.copy()
    tinted[4, 4, 2] ^= 1
    found = [describe(image, None) for image in (grey, stored, tinted)]
    assert [int(each["channels"]) for each in found] == [1, 3, 3]
    assert [bool(each["colour"]) for each in found] == [False, False, True]


def test_borders_are_counted_on_each_side():
    image = np.random.default_rng(0).integers(1, 255, (20, 30), np.uint8)
    image[:3], image[-4:], image[:, :1], image[:, -5:] = 0, 255, 7, 9
    image[:3], image[-4:] = 0, 255  # rows over columns: the corners are theirs
    facts = describe(image, None)
    assert dict(zip(SIDES, facts["border"].tolist(), strict=True)) == {
        "top": 3,
        "bottom": 4,
        "left": 0,
        "right": 0,
    }
    assert describe(image.T, None)["border"].tolist() == [0, 0, 3, 4]


def test_an_image_of_one_value_is_all_border():
    assert describe(flat(6, 8), None)["border"].tolist() == [6, 6, 8, 8]
    assert describe(np.stack([flat(6, 8)] * 3, -1), None)["border"].tolist() == [6, 6, 8, 8]


@pytest.mark.parametrize(("corner", "place"), list(enumerate([(0, 0), (0, -1), (-1, 0), (-1, -1)])))
def test_sharp_edges_are_found_in_the_corner_that_has_them(corner, place):
    image = np.random.default_rng(0).integers(90, 110, (64, 64), np.uint8)
    rows, columns = (slice(2, 7) if side == 0 else slice(-7, -2) for side in place)
    image[rows, columns][::2] = 255
    facts = describe(image, None)
    assert len(CORNERS) == 4
    assert facts["corner_jumps"].argmax() == corner
    assert np.delete(facts["corner_jumps"], corner).max() == 0
    assert facts["corner_std"].argmax() == corner


def test_a_jump_is_the_same_in_eight_and_in_sixteen_bits():
    image = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    a, b = describe(image, None), describe(image.astype(np.uint16) * 257, None)
    for name in ("mean", "std", "corner_mean", "corner_std", "corner_jumps", "border"):
        assert a[name] == pytest.approx(b[name], abs=1e-6)


def test_spacing_is_kept_and_nan_where_unknown():
    assert describe(flat(4, 4), (0.5, 0.25))["spacing"].tolist() == [0.5, 0.25]
    assert np.isnan(describe(flat(4, 4), None)["spacing"]).all()

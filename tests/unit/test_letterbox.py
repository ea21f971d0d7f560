import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from medtransfer.data.annotations import Fit
from medtransfer.data.letterbox import letterbox

SIDES = st.integers(1, 120)
SIZES = st.integers(8, 64)
CHANNELS = st.sampled_from([1, 3])
SEEDS = st.integers(0, 2**32 - 1)


def noise(seed, height, width, colour, kind):
    shape = (height, width, 3) if colour else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max + 1, shape, dtype=kind)


@given(seed=SEEDS, height=SIDES, width=SIDES, colour=st.booleans(), size=SIZES, channels=CHANNELS)
def test_8_bits_are_scaled_by_pillow_alone(*, seed, height, width, colour, size, channels):
    image = noise(seed, height, width, colour, np.uint8)
    fit = Fit.of(height, width, size)
    picture = PILImage.fromarray(image).convert("L" if channels == 1 else "RGB")
    if picture.size != (fit.width, fit.height):
        target = (fit.width, fit.height)
        picture = picture.resize(target, PILImage.Resampling.BICUBIC, reducing_gap=3.0)
    expected = np.zeros((size, size, channels), np.uint8)
    expected[fit.place] = np.asarray(picture).reshape(fit.height, fit.width, channels)
    boxed = letterbox(image, size, channels)
    assert boxed.dtype == np.uint8
    assert np.array_equal(boxed, expected.transpose(2, 0, 1))


@given(seed=SEEDS, height=SIDES, width=SIDES, colour=st.booleans(), size=SIZES, channels=CHANNELS)
def test_16_bits_look_like_8_with_more_in_between(*, seed, height, width, colour, size, channels):
    # greys of the middle: Pillow cuts off between its two passes what swings over the ends
    image = 64 + noise(seed, height, width, colour, np.uint8) // 2
    deep = letterbox(image.astype(np.uint16) * 257, size, channels)
    assert deep.shape == (channels, size, size)
    assert deep.dtype == np.uint16
    expected = letterbox(image, size, channels).astype(np.float64)
    # Pillow rounds 8 bits after reducing, after filtering rows and after columns
    assert np.abs(deep / 257 - expected).max() <= 2.5


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@given(height=SIDES, width=SIDES, colour=st.booleans(), size=SIZES, channels=CHANNELS)
def test_white_stays_white_between_black_bars(kind, *, height, width, colour, size, channels):
    top = np.iinfo(kind).max
    boxed = letterbox(
        np.full((height, width, 3) if colour else (height, width), top, kind), size, channels
    )
    expected = np.zeros((size, size), kind)
    expected[Fit.of(height, width, size).place] = top
    assert all(np.array_equal(plane, expected) for plane in boxed)


def test_16_bits_of_the_right_size_change_no_pixel():
    colours = noise(0, 16, 16, True, np.uint16)
    assert np.array_equal(letterbox(colours, 16, 3), colours.transpose(2, 0, 1))
    grey = colours[..., 0]
    assert np.array_equal(letterbox(grey, 16, 1)[0], grey)
    assert np.array_equal(letterbox(grey, 16, 3), np.stack([grey] * 3))


def test_colours_become_grey_by_the_weights_that_8_bits_have():
    colours = np.repeat(np.eye(3, dtype=np.uint16)[None] * 65535, 3, axis=0)
    expected = [round(65535 * share) for share in (0.299, 0.587, 0.114)]
    assert np.abs(letterbox(colours, 3, 1)[0].astype(int) - expected).max() <= 1
    grey = noise(1, 8, 8, False, np.uint16)
    assert np.array_equal(letterbox(np.stack([grey] * 3, axis=2), 8, 1)[0], grey)


def test_levels_between_two_of_8_bits_survive():
    ramp = np.tile(np.arange(256, dtype=np.uint16), (256, 1))
    assert len(np.unique(letterbox(ramp, 128, 1))) > 100  # 8 bits would see one


def test_sharp_edges_swing_over_neither_end():
    edge = np.zeros((64, 64), np.uint16)
    edge[:, 32:] = 65535
    boxed = letterbox(edge, 48, 1)[0]
    assert (np.diff(boxed.astype(int), axis=1) >= 0).all()

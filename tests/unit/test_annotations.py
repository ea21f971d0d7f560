import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtransfer.data.annotations import Fit, check_boxes, check_mask
from medtransfer.data.base import IGNORED, Boxes
from medtransfer.data.decoded import letterbox
from medtransfer.errors import DataError

SIDES = st.integers(1, 90)
NAMES = ("a", "b")


def boxes(*rows, size=None):
    return Boxes.of(rows, size)


@given(height=SIDES, width=SIDES, size=st.integers(8, 64))
def test_a_mask_lies_where_its_image_lies_and_is_ignored_around_it(height, width, size):
    fit = Fit.of(height, width, size)
    white = np.full((height, width), 255, np.uint8)
    image = letterbox(white, size, 1)[0]
    mask = fit.mask(np.ones((height, width), np.uint8))
    assert np.array_equal(mask == 1, image > 0)
    assert np.array_equal(mask == IGNORED, image == 0)


@given(seed=st.integers(0, 2**32 - 1), height=SIDES, width=SIDES, size=st.integers(8, 64))
def test_scaling_a_mask_invents_no_class(seed, height, width, size):
    values = np.array([0, 1, 7, IGNORED], np.uint8)
    mask = np.random.default_rng(seed).choice(values[:3], (height, width))
    assert set(np.unique(Fit.of(height, width, size).mask(mask))) <= set(values)


def test_a_mask_of_the_right_size_changes_in_no_pixel():
    mask = np.random.default_rng(0).integers(0, 3, (16, 16), dtype=np.uint8)
    assert np.array_equal(Fit.of(16, 16, 16).mask(mask), mask)


def test_the_nearest_pixel_is_the_one_under_its_middle():
    mask = np.arange(16, dtype=np.uint8).reshape(4, 4)
    enlarged = Fit.of(4, 4, 12).mask(mask)
    assert np.array_equal(enlarged, mask.repeat(3, 0).repeat(3, 1))
    assert np.array_equal(Fit.of(12, 12, 4).mask(enlarged), mask)


@given(data=st.data(), height=st.integers(2, 90), width=st.integers(2, 90), size=st.integers(8, 64))
def test_boxes_frame_in_the_square_what_they_framed_in_the_image(data, height, width, size):
    x0, x1 = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    y0, y1 = sorted(
        data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True))
    )
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 1
    fit = Fit.of(height, width, size)
    (moved,) = fit.boxes(boxes((x0, y0, x1, y1, 0)), height, width).boxes
    rows, columns = np.nonzero(fit.mask(mask) == 1)
    if len(rows):  # the nearest pixels may all lie beside a thin thing
        seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(moved - seen).max() <= 0.5 + 1e-4


def test_boxes_of_a_wide_image_move_down_and_shrink():
    fit = Fit.of(240, 480, 48)  # a tenth of the size, 12 rows of padding above
    moved = fit.boxes(boxes((10, 20, 480, 240, 1)), 240, 480)
    assert moved.boxes.tolist() == [[1, 14, 48, 36]]
    assert moved.labels.tolist() == [1]
    assert moved.boxes.dtype == np.float32


@pytest.mark.parametrize(
    ("box", "wrong"),
    [
        ((-1, 0, 5, 5), "reaches outside of its image of 20 x 10 pixels"),
        ((0, -0.5, 5, 5), "reaches outside"),
        ((0, 0, 21, 5), "reaches outside"),
        ((0, 0, 5, 11), "reaches outside"),
        ((5, 0, 5, 5), "is empty or inverted"),
        ((0, 7, 5, 5), "is empty or inverted"),
        ((float("nan"), 0, 5, 5), "is empty or inverted"),
        ((0, 0, float("inf"), 5), "reaches outside"),
    ],
)
def test_a_box_that_cannot_be_is_parted_from_the_others_and_named(box, wrong):
    found = boxes((0, 0, 20, 10, 0), (*box, 1), (1, 1, 2, 2, 1))
    sound, (error,) = check_boxes(found, (10, 20), NAMES, "x.xml")
    assert sound.boxes.tolist() == [[0, 0, 20, 10], [1, 1, 2, 2]]
    assert sound.labels.tolist() == [0, 1]
    assert error.problem.startswith("box 2 (b: ")
    assert f"of 'x.xml' {wrong}" in error.problem
    assert "dataset.on_error=skip" in error.remedy


def test_boxes_of_an_image_of_another_size_are_refused():
    with pytest.raises(DataError, match=r"'x.xml' annotates has 5 x 4 pixels.* image 20 x 10"):
        check_boxes(boxes((0, 0, 2, 2, 0), size=(4, 5)), (10, 20), NAMES, "x.xml")


@pytest.mark.parametrize("classes", [1, 3])
def test_a_mask_may_hold_its_classes_and_what_is_ignored(classes):
    good = np.array([[0, classes, IGNORED]], np.uint8)
    check_mask(good, (1, 3), classes, "m.png")
    with pytest.raises(DataError, match=f"'m.png' has the value {classes + 1}, and there are"):
        check_mask(np.array([[0, 1, classes + 1]], np.uint8), (1, 3), classes, "m.png")


def test_a_mask_of_another_size_than_its_image_is_refused():
    with pytest.raises(DataError, match=r"mask 'm.png' has 3 x 2 pixels, and its image 2 x 3"):
        check_mask(np.zeros((2, 3), np.uint8), (3, 2), 1, "m.png")

"""Metrics of segmentation against loops over pixels and cases drawn by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchmetrics.functional.segmentation import dice_score

from medtransfer.errors import ConfigError, DataError
from medtransfer.tasks.mask_metrics import mean_foreground, overlap_metrics, surface_metrics

NAN = math.nan
maps = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda size: st.tuples(*[arrays(np.int64, (2, *size), elements=st.integers(0, 2))] * 2)
)


def square(top, left, side, size=32, label=1):
    mask = torch.zeros(size, size, dtype=torch.long)
    mask[top : top + side, left : left + side] = label
    return mask


def boundary(mask):
    height, width = len(mask), len(mask[0])

    def inside(y, x):
        return 0 <= y < height and 0 <= x < width and mask[y][x]

    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if mask[y][x]
        and not all(inside(y + a, x + b) for a, b in [(0, 1), (1, 0), (0, -1), (-1, 0)])
    ]


def directed(a, b, spacing):
    return [min(math.hypot((y - v) * spacing[0], (x - u) * spacing[1]) for v, u in b) for y, x in a]


def by_loop(ours, theirs, tolerance, spacing):
    """Dice, Jaccard, NSD and HD95 of two masks as lists of lists."""
    p, t = sum(map(sum, ours)), sum(map(sum, theirs))
    rows = zip(ours, theirs, strict=True)
    both = sum(x and y for a, b in rows for x, y in zip(a, b, strict=True))
    if not p and not t:
        return [NAN] * 4
    overlap = [2 * both / (p + t), both / (p + t - both)]
    if not p or not t:
        return [*overlap, 0.0, math.hypot(len(ours) * spacing[0], len(ours[0]) * spacing[1])]
    a, b = boundary(ours), boundary(theirs)
    there, back = directed(a, b, spacing), directed(b, a, spacing)
    near = sum(d <= tolerance + 1e-9 for d in there + back) / len(there + back)
    return [*overlap, near, max(np.percentile(there, 95), np.percentile(back, 95))]


def measured(predicted, target, classes, tolerance=1.0, **options):
    spacing = options.pop("spacing", (1.0, 1.0))
    found = overlap_metrics(predicted, target, classes, **options) | surface_metrics(
        predicted, target, classes, tolerance=tolerance, spacing=spacing, **options
    )
    return torch.stack([found[name] for name in ("dice", "jaccard", "nsd", "hd95")], dim=2)


@settings(max_examples=60, deadline=None)
@given(
    both=maps,
    tolerance=st.sampled_from([0.0, 0.5, 1.0, 2.3]),
    spacing=st.sampled_from([(1.0, 1.0), (0.5, 2.0)]),
)
def test_every_metric_is_the_loop_over_pixels(both, tolerance, spacing):
    predicted, target = map(torch.from_numpy, both)
    got = measured(predicted, target, 2, tolerance, spacing=spacing)
    expected = [
        [by_loop((p == k).tolist(), (t == k).tolist(), tolerance, spacing) for k in (1, 2)]
        for p, t in zip(predicted, target, strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(expected).float(), equal_nan=True)


def test_dice_is_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randint(0, 4, (2, 5, 16, 16), generator=generator)
    expected = dice_score(
        predicted, target, 4, include_background=False, average="none", input_format="index"
    )
    torch.testing.assert_close(overlap_metrics(predicted, target, 3)["dice"], expected)


@pytest.mark.parametrize(("tolerance", "near"), [(0.0, 16), (1.0, 20), (2.0, 36)])
def test_a_square_that_is_shifted(tolerance, near):
    # 10 x 10 moved by 2 to the right: 80 pixels shared. Of a boundary of 36, 8 pixels above and 8
    # below lie on the other; the 10 of the outer side lie 2 px off, as do 6 of the inner side,
    # whose ends are 1 px from the other's top and bottom; so are the 2 next to the outer corners.
    values = measured(square(8, 8, 10), square(8, 10, 10), 1, tolerance)[0, 0]
    torch.testing.assert_close(values, torch.tensor([0.8, 80 / 120, near / 36, 2.0]))


def test_the_larger_direction_counts():
    # a speck far away is in the prediction alone: no pixel of the truth is far from the prediction
    target = square(2, 2, 4, size=40)
    predicted = target + square(30, 30, 6, size=40)
    for a, b in [(predicted, target), (target, predicted)]:
        assert surface_metrics(a, b, 1, tolerance=1.0)["hd95"].item() > 35


def test_equal_maps_are_perfect():
    target = torch.stack([square(4, 4, 9), square(0, 0, 32), square(31, 31, 1)])
    for tolerance in (0.0, 3.0):
        found = measured(target, target, 1, tolerance)
        torch.testing.assert_close(found[:, 0], torch.tensor([[1.0, 1.0, 1.0, 0.0]] * 3))


def test_a_class_absent_from_both_has_no_say_and_from_one_is_missed():
    there, absent = square(4, 4, 9), square(0, 0, 0)
    predicted = torch.stack([absent, there, absent])
    target = torch.stack([absent, absent, there])
    found = measured(predicted, target, 1, spacing=(3.0, 4.0))[:, 0]
    missed = [0.0, 0.0, 0.0, 32 * 5.0]
    expected = torch.tensor([[NAN] * 4, missed, missed])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_another_class_is_not_foreground():
    found = measured(square(4, 4, 9, label=2), square(4, 4, 9, label=1), 3)[0]
    assert found[:, 0].tolist() == [0, 0, pytest.approx(NAN, nan_ok=True)]


def test_ignored_pixels_are_taken_out_of_both():
    target = square(4, 4, 8)
    target[:, 16:] = 255
    target[6, 6] = 255
    predicted = square(4, 4, 8) + square(4, 20, 8)
    found = measured(predicted, target, 1, ignore_index=255)[0, 0]
    assert found.tolist() == [1, 1, 1, 0]
    # with nothing else to see, the class has no say
    alone = measured(square(4, 20, 8), target * (target == 255), 1, ignore_index=255)
    assert alone.isnan().all()


def test_each_image_may_have_its_own_spacing():
    predicted, target = square(8, 8, 10).repeat(2, 1, 1), square(8, 11, 10).repeat(2, 1, 1)
    spacing = torch.tensor([[1.0, 1.0], [1.0, 0.1]])
    found = surface_metrics(predicted, target, 1, tolerance=0.3, spacing=spacing)
    torch.testing.assert_close(found["hd95"], torch.tensor([[3.0], [0.3]]))
    # 3 x 0.1 is within 0.3, whatever floats make of it
    assert found["nsd"][1].item() == 1
    assert found["nsd"][0].item() < 0.6


def test_one_image_is_a_batch_of_one_and_any_integer_type_will_do():
    predicted, target = square(8, 8, 10), square(8, 10, 10)
    expected = measured(predicted[None], target[None], 1)
    for dtype in (torch.uint8, torch.int32, torch.bool):
        torch.testing.assert_close(measured(predicted.to(dtype), target.to(dtype), 1), expected)


def test_the_mean_is_over_images_then_classes():
    values = torch.tensor([[1.0, 0.2, NAN], [0.5, NAN, NAN], [0.0, NAN, NAN]])
    assert mean_foreground(values) == pytest.approx((0.5 + 0.2) / 2)
    assert math.isnan(mean_foreground(torch.full((2, 2), NAN)))


@pytest.mark.parametrize(
    ("predicted", "target", "match"),
    [
        (square(1, 1, 4), square(1, 1, 4)[None], "shape"),
        (torch.zeros(1, 2, 8, 8).long(), torch.zeros(1, 2, 8, 8).long(), "shape"),
        (torch.rand(8, 8), torch.zeros(8, 8).long(), "argmax"),
        (square(1, 1, 4, label=3), square(1, 1, 4), "prediction holds classes from 0 to 3"),
        (square(1, 1, 4), square(1, 1, 4, label=255), "ignore_index"),
        (square(1, 1, 4), square(1, 1, 4, label=-1), "truth holds classes from -1 to 0"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(predicted, target, match):
    with pytest.raises(DataError, match=match):
        overlap_metrics(predicted, target, 2)
    with pytest.raises(DataError, match=match):
        surface_metrics(predicted, target, 2, tolerance=1.0)


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (1.0, NAN), (1.0, 1.0, 1.0), [[1.0, 1.0]] * 3])
def test_a_spacing_that_is_none_is_refused(spacing):
    with pytest.raises(DataError, match="spacing"):
        surface_metrics(square(1, 1, 4), square(1, 1, 4), 1, tolerance=1.0, spacing=spacing)


@pytest.mark.parametrize("tolerance", [-1.0, NAN])
def test_a_tolerance_below_zero_is_refused(tolerance):
    with pytest.raises(ConfigError, match="tolerance"):
        surface_metrics(square(1, 1, 4), square(1, 1, 4), 1, tolerance=tolerance)

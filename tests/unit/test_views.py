"""Random views: what each strength changes, by how much, and nothing else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medtransfer.pretrain.views import Views

NONE = {
    "crop": 0.0,
    "flip": False,
    "rotation": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "blur": 0.0,
    "noise": 0.0,
}
ALL = {
    "crop": 0.5,
    "flip": True,
    "rotation": 30.0,
    "brightness": 0.4,
    "contrast": 0.4,
    "blur": 1.0,
    "noise": 0.1,
}


def images(n: int = 8, channels: int = 3, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def ramp(n: int = 64, size: int = 32) -> torch.Tensor:
    """Return images whose pixels tell the place: from 0 at the left to 1 at the right."""
    places = (torch.arange(size) + 0.5) / size
    return places.expand(n, 1, size, size).clone()


def slopes(views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the slope across and down in the middle of each view, 1 being the ramp's own."""
    size = views.shape[-1]
    middle = views[:, 0, size // 2 - 3 : size // 2 + 3, size // 2 - 3 : size // 2 + 3]
    across, down = middle.diff(dim=2).mean((1, 2)), middle.diff(dim=1).mean((1, 2))
    return across * size, down * size


def view(given: torch.Tensor, seed: int = 0, **strengths: float) -> torch.Tensor:
    torch.manual_seed(seed)
    return Views(**{**NONE, **strengths})(given)


@settings(max_examples=25)
@given(
    n=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    size=st.sampled_from([16, 33, 64]),
    share=st.floats(0, 1),
)
def test_every_view_has_the_form_of_its_image(n, channels, size, share):
    strengths = {name: share * value if value is not True else True for name, value in ALL.items()}
    made = view(images(n, channels, size), **strengths)
    assert made.shape == (n, channels, size, size)
    assert made.dtype == torch.float32
    assert 0 <= made.min() <= made.max() <= 1


def test_without_strength_nothing_changes():
    assert torch.equal(view(images()), images())


def test_the_image_itself_is_left_alone():
    given = images()
    view(given, **ALL)
    assert torch.equal(given, images())


@pytest.mark.parametrize("name", [name for name in ALL if name != "flip"])
def test_every_image_gets_draws_of_its_own(name):
    made = view(images(1, size=64).repeat(8, 1, 1, 1), **{name: ALL[name]})
    apart = (made[:, None] - made[None]).flatten(2).abs().amax(2)
    assert apart[~torch.eye(8, dtype=torch.bool)].min() > 1e-4


def test_views_follow_the_seed_bit_for_bit():
    assert torch.equal(view(images(), 1, **ALL), view(images(), 1, **ALL))
    assert not torch.equal(view(images(), 1, **ALL), view(images(), 2, **ALL))


def test_half_of_the_views_are_mirrored():
    made, given = view(images(64), flip=True), images(64)
    as_they_are = (made - given).flatten(1).abs().amax(1) < 1e-4
    mirrored = (made - given.flip(3)).flatten(1).abs().amax(1) < 1e-4
    assert (as_they_are ^ mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_a_crop_enlarges_a_part_of_the_image():
    made = view(ramp(256), crop=0.5)
    across, down = slopes(made)
    assert 0.49 < across.min() < 0.6
    assert 0.9 < across.max() < 1.01
    assert down.abs().max() < 1e-4
    left, right = made[:, 0, 0, 0], made[:, 0, 0, -1]
    small = across < 0.7
    assert left[small].min() < 0.1  # the part may lie at either end
    assert right[small].max() > 0.9


def test_a_rotation_turns_by_no_more_than_its_angle():
    across, down = slopes(view(ramp(), rotation=30))
    angle = torch.atan2(down, across).rad2deg()
    assert torch.allclose(torch.hypot(across, down), torch.ones(64), atol=1e-3)
    assert -30.01 < angle.min() < -20
    assert 20 < angle.max() < 30.01


def test_a_rotation_keeps_right_angles():
    given = torch.cat((ramp(), ramp().transpose(2, 3)), dim=1)
    first, second = (slopes(channel) for channel in view(given, rotation=30).split(1, dim=1))
    assert torch.allclose(first[0] * second[0], -first[1] * second[1], atol=1e-3)
    assert torch.allclose(first[0], second[1], atol=1e-3)


@pytest.mark.parametrize("strengths", [{"crop": 0.5}, {"rotation": 180.0}, {"blur": 1.0}])
def test_what_is_even_stays_even(strengths):
    given = torch.full((4, 3, 32, 32), 0.3)
    assert torch.allclose(view(given, **strengths), given, atol=1e-6)


def test_contrast_spreads_pixels_about_their_mean():
    given = 0.4 + 0.2 * images(64)
    made = view(given, contrast=0.5)
    ratio = made.std((1, 2, 3)) / given.std((1, 2, 3))
    assert torch.allclose(made.mean((1, 2, 3)), given.mean((1, 2, 3)), atol=1e-5)
    assert 0.5 < ratio.min() < 0.6
    assert 1.4 < ratio.max() < 1.5


def test_brightness_scales_pixels():
    given = 0.1 + 0.5 * images(64)
    ratio = view(given, brightness=0.5) / given
    assert (ratio.amax((1, 2, 3)) - ratio.amin((1, 2, 3))).max() < 1e-5
    assert 0.5 < ratio.min() < 0.6
    assert 1.4 < ratio.max() < 1.5


def test_blur_smooths_its_share_of_the_views_in_both_directions():
    given = images(200, size=64)
    made = view(given, blur=0.3)
    touched = (made - given).flatten(1).abs().amax(1) > 1e-3
    assert 40 < touched.sum() < 80
    assert torch.equal(made[~touched], given[~touched])
    for axis in (2, 3):
        rough = [x.diff(dim=axis).abs().mean((1, 2, 3)) for x in (made[touched], given[touched])]
        assert (rough[0] < rough[1]).all()
        assert (rough[0] / rough[1]).min() < 0.3


def test_blur_is_a_gaussian():
    spot = torch.zeros(64, 1, 64, 64)
    spot[:, 0, 32, 32] = 1
    made = view(spot, blur=1)[:, 0]
    places = torch.arange(64.0) - 32
    spread = [  # standard deviations, in pixels
        (made.sum(axis) * places**2).sum(1).sqrt() for axis in (1, 2)
    ]
    assert torch.allclose(made.sum((1, 2)), torch.ones(64), atol=1e-5)
    assert torch.allclose(*spread, atol=1e-4)
    assert 0.1 < spread[0].min() < 0.4
    assert 1.1 < spread[0].max() < 1.3  # tails are cut off
    assert torch.allclose(made, made.transpose(1, 2), atol=1e-6)


def test_noise_is_as_strong_as_it_says():
    made = view(torch.full((400, 1, 32, 32), 0.5), noise=0.1)
    strength = made.std((1, 2, 3))
    assert strength.min() < 0.01
    assert 0.09 < strength.max() < 0.11
    assert math.isclose(made.mean(), 0.5, abs_tol=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": 1.0},
        {"crop": -0.1},
        {"rotation": 181.0},
        {"brightness": 1.1},
        {"contrast": -1.0},
        {"blur": 2.0},
        {"noise": -0.1},
        {"zoom": 0.1},
    ],
)
def test_wrong_strengths_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Views(**{**NONE, **wrong})

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode, functional

from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data.transforms import Augment, Transform, warped
from medtransfer.errors import ConfigError

ZERO = {
    "flip": False,
    "rotation": 0.0,
    "translation": 0.0,
    "scale": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "blur": 0.0,
    "erasing": 0.0,
}
STRENGTHS = {
    "flip": True,
    "rotation": 20.0,
    "translation": 0.2,
    "scale": 0.3,
    "brightness": 0.5,
    "contrast": 0.5,
    "blur": 1.0,
    "erasing": 1.0,
}


def image(channels=3):
    return torch.rand(channels, 16, 16, generator=torch.Generator().manual_seed(0))


def test_without_strengths_images_stay_as_they_are():
    transform = Augment(**ZERO)
    assert not transform.random
    assert torch.equal(transform(image()), image())


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_strength_alone_changes_images_within_their_range(name, channels):
    transform = Augment(**ZERO | {name: STRENGTHS[name]})
    assert transform.random
    torch.manual_seed(0)
    changed = [transform(image(channels)) for _ in range(8)]
    assert any(not torch.equal(one, image(channels)) for one in changed)
    for one in changed:
        assert one.shape == (channels, 16, 16)
        assert one.dtype == torch.float32
        assert 0 <= one.min() <= one.max() <= 1


def test_a_mirrored_image_is_mirrored_left_to_right():
    transform = Augment(**ZERO | {"flip": True})
    torch.manual_seed(0)
    seen = [transform(image()) for _ in range(20)]
    mirrored = [torch.equal(one, image().flip(2)) for one in seen]
    assert 0 < sum(mirrored) < 20
    assert all(m or torch.equal(one, image()) for m, one in zip(mirrored, seen, strict=True))


def test_randomness_comes_from_torchs_generator_alone():
    transform = Augment(**STRENGTHS)
    first, second = (torch.manual_seed(3) and transform(image()) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("choice", "random"), [("none", False), ("light", True), ("strong", True)])
def test_the_shipped_choices_are_random_or_not(compose, choice, random):
    node = compose(f"transform={choice}").typed(TrainConfig).transform
    assert build(node, Transform).random is random


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("transform.blur=2", "transform.blur=2 does not fit"),
        ("transform.rotation=-1", "transform.rotation=-1 does not fit"),
        ("transform.scale=1.0", "transform.scale=1.0 does not fit"),
    ],
)
def test_a_strength_out_of_range_is_the_users_mistake(compose, override, said):
    node = compose(override).typed(TrainConfig).transform
    with pytest.raises(ConfigError, match=said):
        build(node, Transform)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(2, 40),
    width=st.integers(2, 40),
    angle=st.floats(-180, 180),
    translate=st.tuples(st.integers(-10, 10), st.integers(-10, 10)),
    scale=st.floats(0.5, 2),
)
def test_warping_is_what_torchvision_does(height, width, angle, translate, scale):
    pixels = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    expected = functional.affine(
        pixels,
        angle=angle,
        translate=list(translate),
        scale=scale,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
    )
    found = warped(pixels, angle=angle, translate=translate, scale=scale)
    # a pixel that comes from the border itself may come from either side of it
    near = (found - expected).abs().amax(0) < 1e-3
    assert near.float().mean() > 0.9

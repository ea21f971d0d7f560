"""Weights for images of another number of channels than the backbone takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models import adapt_input_conv

from medtransfer.backbones import weights
from medtransfer.backbones.base import Normalisation
from medtransfer.backbones.channels import adapt_channels
from medtransfer.backbones.encoder import ConvEncoder, DenseEncoder
from medtransfer.backbones.files import File
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.errors import WeightsError

SIZE = 32
EQUAL = Normalisation((0.4,), (0.3,))  # in every channel
CONV = {"kernel": 3, "units": "relu", "norm": "batch", "image_size": SIZE}
MAKERS = {
    "test_resnet": lambda channels: TimmBackbone("test_resnet", channels, SIZE),
    "test_convnext": lambda channels: TimmBackbone("test_convnext", channels, SIZE),
    "test_vit": lambda channels: TimmBackbone("test_vit", channels, SIZE),
    # its second layer takes three channels too, and they are none of an image
    "conv_encoder": lambda channels: ConvEncoder(channels=channels, widths=[3, 8, 5], **CONV),
    "dense_encoder": lambda channels: DenseEncoder(
        channels=channels, size=16, widths=[3, 8], units="sigmoid", image_size=SIZE
    ),
}


@pytest.fixture(params=MAKERS.values(), ids=MAKERS)
def make(request):
    """Return what makes a backbone with values of its own in every tensor."""

    def build(channels, seed=0):
        torch.manual_seed(seed)
        backbone = request.param(channels)
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        backbone.normalise_by(EQUAL)
        return backbone.eval()

    return build


@pytest.fixture(params=["ours", "plain"])
def write(request, tmp_path):
    """Return what writes a backbone to a file with our header, or to a checkpoint without one."""

    def save(backbone):
        if request.param == "ours":
            path = tmp_path / "w.safetensors"
            weights.save(backbone, path, source="here")
        else:
            path = tmp_path / "w.pth"
            own = {"mean", "std"}
            torch.save({k: v for k, v in backbone.state_dict().items() if k not in own}, path)
        return path

    return save


def load(path, backbone):
    known = File(
        path=path, tag=None, sha256=None, folder=path.parent, source=None, made_on="any"
    ).load(backbone)
    return known.detail["keys"].get("channels")


@pytest.mark.parametrize(("made_for", "wanted"), [(1, 3), (3, 1), (1, 4), (3, 6)])
def test_equal_channels_give_the_same_response(make, write, made_for, wanted):
    source, target = make(made_for), make(wanted, seed=1)
    assert load(write(source), target) == f"{made_for} to {wanted}"
    grey = torch.rand(4, 1, SIZE, SIZE)
    with torch.no_grad():
        expected = source.features(grey.expand(-1, made_for, -1, -1))
        found = target.features(grey.expand(-1, wanted, -1, -1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert expected[0].std(0).mean() > 1e-5  # or nothing was compared


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_as_many_channels_as_before_are_loaded_to_the_bit(make, write, channels):
    source, target = make(channels), make(channels, seed=1)
    assert load(write(source), target) is None
    state = target.state_dict()
    assert all(torch.equal(state[name], value) for name, value in source.state_dict().items())


@pytest.mark.parametrize(("made_for", "wanted"), [(4, 3), (4, 1), (2, 3)])
def test_channels_that_nobody_can_tell_the_meaning_of_are_refused(make, write, made_for, wanted):
    target = make(wanted, seed=1)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(WeightsError, match=f"made for images of {made_for} channels") as error:
        load(write(make(made_for)), target)
    assert f"dataset.channels={made_for}" in error.value.remedy
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_only_the_first_layer_changes(make, write):
    source, target = make(3), make(1, seed=1)
    load(write(source), target)
    state = target.state_dict()
    different = {n for n, v in source.state_dict().items() if v.shape != state[n].shape}
    assert len(different) == 3
    assert {"mean", "std"} < different
    for name, value in source.state_dict().items():
        assert name in different or torch.equal(state[name], value)


@given(wanted=st.integers(1, 9), seed=st.integers(0, 99))
def test_weights_for_colour_are_adapted_as_timm_does_it(wanted, seed):
    kernel = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    own = {"kernel": torch.empty(4, wanted, 5, 5)}
    adapted = adapt_channels({"kernel": kernel}, own, 3, wanted, "w")["kernel"]
    torch.testing.assert_close(adapted, adapt_input_conv(wanted, kernel))


@pytest.mark.parametrize(
    ("made_for", "wanted", "expected"),
    [(1, 3, [1, 1, 1]), (3, 1, [2]), (3, 3, [1, 2, 3]), (3, 5, [1, 2, 3, 1, 2])],
)
def test_the_normalisation_is_repeated_in_turn_or_averaged(made_for, wanted, expected):
    values = torch.arange(1.0, made_for + 1).view(1, -1, 1, 1)
    own = dict.fromkeys(("mean", "std"), torch.empty(1, wanted, 1, 1))
    adapted = adapt_channels(dict.fromkeys(own, values), own, made_for, wanted, "w")
    for value in adapted.values():
        assert value.flatten().tolist() == expected

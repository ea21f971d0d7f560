"""Heads of segmentation on the pyramids of several kinds of networks, and the neck before them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from medtransfer.backbones.timm import TimmBackbone
from medtransfer.components import build
from medtransfer.errors import ConfigError
from medtransfer.heads.necks import EvenLevels, Pyramid, canvas, nominal_strides, place
from medtransfer.heads.segmentation import SegmentationHead

CONF = Path(__file__).parents[2] / "conf" / "head"
HEADS = (
    *("unet", "unetplusplus", "manet", "linknet", "fpn", "deeplabv3plus"),
    *("pan", "pspnet", "upernet", "segformer", "dpt"),
)
LEARNED = ("unet", "unetplusplus", "manet")  # where pixels are repeated or their doubling learnt
NETWORKS = ("test_resnet", "test_convnext", "test_vit", "resnet10t")
SIZE = 64
OUTPUTS = 3
# What comes after the last level of a network, for its embedding alone.
BEYOND = ("model.norm.", "model.head.")
# Pyramids of other kinds: (channels, strides, image size).
OTHERS = {
    "patches of 8": ((32,) * 5, (8,) * 5, 64),
    "patches of 14": ((32,) * 5, (14,) * 5, 70),
    "patches of 32": ((32,) * 3, (32,) * 3, 96),
    "from stride 8": ((8, 12, 16), (8, 16, 32), 64),
    "to stride 16": ((4, 8, 12, 16), (2, 4, 8, 16), 64),
    "from stride 1": ((4, 4, 8, 12, 16, 20), (1, 2, 4, 8, 16, 32), 64),
    "to stride 64": ((16, 20, 24), (16, 32, 56), 224),
    "some twice": ((8, 12, 16, 20), (8, 16, 16, 16), 64),
}


def size_for(name: str, size: int = SIZE) -> int:
    return max(size, 128) if name == "pan" else size


@cache
def network(name: str, size: int) -> TimmBackbone:
    torch.manual_seed(0)
    return TimmBackbone(name, 1, size)


def node_of(name: str, **changed):
    return {**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **changed}


def make(name: str, channels, strides, size: int, **changed) -> SegmentationHead:
    torch.manual_seed(0)
    return build(
        node_of(name, **changed),
        SegmentationHead,
        channels=channels,
        strides=strides,
        image_size=size,
        outputs=OUTPUTS,
    )


def head_on(name: str, backbone: TimmBackbone, size: int, **changed) -> SegmentationHead:
    return make(name, backbone.channels, backbone.strides, size, **changed)


def images(size: int, cases: int = 2) -> torch.Tensor:
    return torch.rand(cases, 1, size, size, generator=torch.Generator().manual_seed(1))


def levels_of(channels, strides, size: int, cases: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    sides = [round(size / stride) for stride in strides]
    return [
        torch.randn(cases, width, side, side, generator=generator)
        for width, side in zip(channels, sides, strict=True)
    ]


def every_parameter_has_a_gradient(head: nn.Module) -> None:
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        # MAnet weighs channels through so few units of tiny networks that ReLU may shut all
        if parameter.ndim > 1 and ".SE_" not in name:
            assert parameter.grad.any(), name


def test_every_choice_of_the_group_is_here():
    found = {
        path.stem
        for path in CONF.glob("*.yaml")
        if ".heads." in (target := yaml.safe_load(path.read_text())["_target_"])
        and target.split(".")[2] in {"unets", "decoders", "dpt"}
    }
    assert found == set(HEADS)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", HEADS)
def test_one_step_reaches_every_parameter(name, kind):
    size = size_for(name)
    backbone = network(kind, size).train()
    head = head_on(name, backbone, size)
    backbone.zero_grad()
    logits = head(backbone.pyramid(images(size)), (size, size))
    assert logits.shape == (2, OUTPUTS, size, size)
    logits.square().mean().backward()
    every_parameter_has_a_gradient(head)
    without = {n for n, p in backbone.named_parameters() if p.grad is None}
    assert all(n.startswith(BEYOND) for n in without), without


@pytest.mark.parametrize("name", HEADS)
def test_in_evaluation_an_image_has_one_answer_whatever_is_beside_it(name):
    size = size_for(name)
    backbone = network("test_resnet", size).eval()
    head = head_on(name, backbone, size).eval()
    with torch.no_grad():
        levels = backbone.pyramid(images(size))
        both = head(levels, (size, size))
        assert torch.equal(both, head(levels, (size, size)))
        alone = head([level[1:] for level in levels], (size, size))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)
    assert both.std() > 0


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("kind", NETWORKS)
def test_doubling_that_is_learnt_can_repeat_pixels_and_is_then_the_same(name, kind):
    backbone = network(kind, SIZE).eval()
    plain = head_on(name, backbone, SIZE).eval()
    learned = head_on(name, backbone, SIZE, upsampling="transposed").eval()
    values = learned.state_dict()
    for key in values:
        if key.rpartition(".up.")[0]:  # each pixel four times
            identity = torch.eye(len(values[key]))[:, :, None, None]
            values[key] = identity.expand(-1, -1, 2, 2) if "weight" in key else values[key] * 0
        else:
            values[key] = plain.state_dict()[key.replace(".block.", ".")]
    learned.load_state_dict(values)
    with torch.no_grad():
        levels = backbone.pyramid(images(SIZE))
        found, expected = (head(levels, (SIZE, SIZE)) for head in (learned, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(".up." in key for key in values) >= 2 * 5 - 2


@pytest.mark.parametrize("name", LEARNED)
def test_doubling_learns(name):
    backbone = network("resnet10t", SIZE)
    head = head_on(name, backbone, SIZE, upsampling="transposed").train()
    head(backbone.pyramid(images(SIZE)), (SIZE, SIZE)).square().mean().backward()
    every_parameter_has_a_gradient(head)


@pytest.mark.parametrize("name", sorted(set(HEADS) - set(LEARNED)))
def test_other_decoders_refuse_another_way_of_upsampling(name):
    other = "interpolation" if name == "linknet" else "transposed"
    with pytest.raises(ConfigError, match=r"head\.upsampling"):
        make(name, (8, 8, 8, 8), (4, 8, 16, 32), 128, upsampling=other)


@pytest.mark.parametrize("size", [(40, 72), (99, 33), (112, 112)])
@pytest.mark.parametrize("name", [n for n in HEADS if n != "pan"])
def test_images_of_any_size_are_taken(name, size):
    backbone = network("test_convnext", SIZE).train()
    head = head_on(name, backbone, SIZE)
    logits = head(backbone.pyramid(torch.rand(2, 1, *size)), size)
    assert logits.shape == (2, OUTPUTS, *size)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["unet", "linknet", "deeplabv3plus", "segformer", "dpt"])
def test_other_kinds_of_pyramids_are_taken(name, kind):
    channels, strides, size = OTHERS[kind]
    levels = [level.requires_grad_() for level in levels_of(channels, strides, size)]
    head = make(name, channels, strides, size)
    head(levels, (size, size)).square().mean().backward()
    every_parameter_has_a_gradient(head)
    assert levels[-1].grad.any()  # the network's last layers learn


@pytest.mark.parametrize("kind", OTHERS)
def test_the_neck_gives_five_levels_each_half_as_large_as_the_one_before(kind):
    channels, strides, size = OTHERS[kind]
    neck = Pyramid(channels, strides, size, stem=True)
    found = neck(levels_of(channels, strides, size), (size, size))
    side = canvas((size, size))[0]
    widths = [tuple(level.shape) for level in found]
    steps = zip(neck.channels, (2, 4, 8, 16, 32), strict=True)
    assert widths == [(2, width, side // stride, side // stride) for width, stride in steps]
    assert all(neck.channels[1:])


def test_the_neck_takes_levels_as_they_are_where_the_network_has_them():
    channels, strides = (4, 6, 8, 10, 12), (2, 4, 8, 16, 32)
    neck, levels = Pyramid(channels, strides, 64, stem=True), levels_of(channels, strides, 64)
    assert not list(neck.parameters())
    for ours, theirs in zip(neck(levels, (64, 64)), levels, strict=True):
        assert torch.equal(ours, theirs)
    without = Pyramid(channels, strides, 64, stem=False, unused=(8, 16))
    assert without.channels == (0, 6, 0, 0, 12)
    assert [level.shape[1] for level in without(levels, (64, 64))] == [0, 6, 0, 0, 12]


def test_of_a_transformer_the_neck_takes_the_last_level_and_the_head_for_it_four():
    channels, strides = (8,) * 12, (16,) * 12
    levels = levels_of(channels, strides, 64)
    neck = Pyramid(channels, strides, 64, stem=True)
    assert neck.channels == (0, 2, 4, 8, 8)
    last = neck(levels, (64, 64))
    changed = neck([level + 1 for level in levels[:-1]] + levels[-1:], (64, 64))
    assert all(torch.equal(a, b) for a, b in zip(last, changed, strict=True))
    scaled = neck([100 * level for level in levels], (64, 64))  # the last norm comes after it
    for a, b in zip(last, scaled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    taken = EvenLevels(channels, 16)(levels, (64, 64))
    assert all(torch.equal(a, levels[k]) for a, k in zip(taken, (2, 5, 8, 11), strict=True))


def test_a_level_lies_at_the_top_left_of_the_canvas():
    level = torch.arange(1.0, 10).view(1, 1, 3, 3)  # stride 8 of 20 px, filled up to 32
    found = place(level, 8, (20, 20))
    assert found.shape == (1, 1, 4, 4)
    assert torch.equal(found[..., :3, :3], level)
    assert not found[..., 3, :].any()
    assert not found[..., :, 3].any()
    whole = place(torch.ones(1, 1, 5, 5), 16, (70, 70))  # patches of 14 px
    assert torch.equal(whole[..., :5, :5], torch.ones(1, 1, 5, 5))
    assert whole.shape == (1, 1, 6, 6)


def test_strides_are_known_from_the_sizes_of_levels_that_round_up():
    for size in range(33, 700):
        strides = [round(size / -(-size // power)) for power in (2, 4, 8, 16, 32)]
        assert nominal_strides(strides, size) == [2, 4, 8, 16, 32], size
    assert nominal_strides([14] * 3, 224) == [16] * 3
    assert nominal_strides([12, 17], 240) == [16, 16]
    assert nominal_strides([16, 32, 56], 224) == [16, 32, 64]


@pytest.mark.parametrize("name", ["deeplabv3plus", "pan", "upernet"])
def test_a_batch_of_one_is_refused_in_training_with_the_remedy(name):
    channels, strides, size = (8, 8, 8, 8), (4, 8, 16, 32), 128
    head = make(name, channels, strides, size).train()
    levels = levels_of(channels, strides, size, cases=1)
    with pytest.raises(ConfigError, match=r"batch of one image(.|\n)*batch_size"):
        head(levels, (size, size))
    assert head.eval()(levels, (size, size)).shape == (1, OUTPUTS, size, size)


def test_a_fault_of_another_kind_keeps_its_own_error():
    head = make("fpn", (8, 8, 8, 8), (4, 8, 16, 32), 64)
    head.decoder.forward = lambda _: int("x")
    with pytest.raises(ValueError, match="invalid literal"):
        head(levels_of((8, 8, 8, 8), (4, 8, 16, 32), 64), (64, 64))


def test_pan_names_the_size_that_it_needs_for_images_and_for_patches():
    channels, strides = (8, 8, 8, 8), (4, 8, 16, 32)
    with pytest.raises(ConfigError, match=r"96 x 96(.|\n)*at least 97 px"):
        make("pan", channels, strides, 96)
    head = make("pan", channels, strides, 97)
    assert head(levels_of(channels, strides, 97), (97, 97)).shape[-2:] == (97, 97)
    with pytest.raises(ConfigError, match="64 x 64"):
        head(levels_of(channels, strides, 64), (64, 64))


@pytest.mark.parametrize("name", ["linknet", "pspnet"])
def test_heads_that_divide_channels_refuse_the_pixels_themselves(name):
    with pytest.raises(ConfigError, match="head=unet"):
        make(name, (1, 1, 1, 1), (2, 4, 8, 16), 64)
    assert make("unet", (1, 1, 1, 1), (2, 4, 8, 16), 64)


@pytest.mark.parametrize("name", HEADS)
def test_a_network_without_feature_maps_is_refused(name):
    with pytest.raises(ConfigError, match="no feature maps"):
        make(name, (), (), 128)


@pytest.mark.parametrize("name", HEADS)
def test_logits_are_in_full_precision(name):
    channels, strides, size = (8, 8, 8, 8), (4, 8, 16, 32), 128
    head = make(name, channels, strides, size).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(levels_of(channels, strides, size), (size, size))
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("unet", "widths", [16, 8]),
        ("unet", "upsampling", "nearest"),
        ("fpn", "width", 48),
        ("deeplabv3plus", "rates", [1, 2]),
        ("dpt", "widths", [8] * 5),
        ("pspnet", "dropout", 1.0),
        ("manet", "reduction", 0),
    ],
)
def test_values_without_meaning_are_refused(name, key, value):
    with pytest.raises(ConfigError, match=rf"head\.{key}"):
        make(name, (8, 8, 8, 8), (4, 8, 16, 32), 128, **{key: value})

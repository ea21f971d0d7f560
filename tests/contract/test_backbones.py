"""What every timm model keeps to that may serve as a backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from medtransfer.backbones.base import Backbone
from medtransfer.backbones.encoder import ConvEncoder
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.components import build
from medtransfer.errors import ConfigError

CHOICES = sorted(p.stem for p in (Path(__file__).parents[2] / "conf" / "backbone").glob("*.yaml"))

# The smallest model of each of timm's 98 families. Of 59 it has up to 15 M parameters and is quick.
QUICK = """
gernet_s cait_xxs24_224 coat_lite_tiny convit_tiny convnext_atto cpubone_nano
crossvit_tiny_240 cs3darknet_focus_s cspnext_s deit_tiny_distilled_patch16_224 densenet121 dla46_c
dpn48b edgenext_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientvim_m1
efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 gcvit_xxtiny
ghostnet_050 hardcorenas_a hgnetv2_b0 hrnet_w18_small iformer_s inception_next_atto lcnetv2_base
levit_128s lowformer_b0 mambaout_femto maxvit_pico_rw_256 gmlp_ti16_224 fbnetv3_b mobilevit_s
nf_regnet_b0 pvt_v2_b0 regnetx_002 repghostnet_050 repvit_m0_9 resnest14d resnet10t resnetv2_18
rexnet_100 legacy_seresnet18 shvit_s1 skresnet18 starnet_s1 swiftformer_s tiny_vit_5m_224
visformer_tiny test_vit vit_tiny_r_s16_p8_224 test_vit_relpos ese_vovnet19b_dw
xcit_nano_12_p8_224
"""
# 35 families more, of larger or slower models.
SLOW = """
beit_base_patch16_224 convmixer_768_32 davit_tiny focalnet_tiny_srf hiera_tiny_224 sam2_hiera_tiny
inception_resnet_v2 inception_v3 inception_v4 mobilenetv5_base mvitv2_tiny
naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny nextvit_small pnasnet5large qwen3_vit_88m
res2next50 selecsls42 sequencer2d_s swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
swinv2_cr_tiny_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11
samvit_base_patch16_224 vitamin_small_224 volo_d1_224 legacy_xception xception41p
gemma4_vit_167m deepseek_vit_412m halonet_h1
"""
# The other 4 families: what their smallest model lacks.
REFUSED = dict.fromkeys(
    ("csatv2", "poolformerv2_s12", "pit_ti_224", "rdnet_tiny"), "lacks layer groups"
)


def native_size(name: str) -> int:
    """Return the size that a model is made for; where others will do, no more than 224 px."""
    known = timm.get_pretrained_cfg(name)
    native = known.input_size[-1]
    least = native if known.fixed_input_size else (known.min_input_size or (3, 32, 32))[-1]
    return max(min(native, 224), least)


def timm_keeps_the_contract(name: str) -> None:
    size = native_size(name)
    keeps_the_contract(lambda: TimmBackbone(name, 3, size), size)


def keeps_the_contract(make: Callable[[], Backbone], size: int) -> None:
    torch.manual_seed(0)
    backbone = make().eval()
    images = torch.rand(2, 3, size, size)
    untouched = images.clone()
    with torch.no_grad():
        embedding, levels = backbone.embed(images), backbone.pyramid(images)
        both = backbone.features(images)
        alone = backbone.embed(images[:1])
    assert torch.equal(images, untouched)

    assert embedding.shape == (2, backbone.embedding_size)
    assert len(levels) == len(backbone.channels) == len(backbone.strides)
    for level, channels, stride in zip(levels, backbone.channels, backbone.strides, strict=True):
        assert level.shape[:2] == (2, channels)
        assert level.shape[2] == level.shape[3]
        assert size / level.shape[2] == pytest.approx(stride, abs=0.5)  # some do not pad
    assert list(backbone.strides) == sorted(backbone.strides)

    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(both, (embedding, levels), **close)
    torch.testing.assert_close(alone, embedding[:1], atol=1e-4, rtol=1e-3)

    grouped = [parameter for group in backbone.layer_groups() for parameter in group]
    assert len(backbone.layer_groups()) > 1
    assert sorted(grouped) == sorted(parameter for parameter, _ in backbone.named_parameters())

    torch.manual_seed(1)
    twin = make().eval()
    twin.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(twin.embed(images), embedding, **close)


@pytest.mark.parametrize("name", QUICK.split())
def test_a_small_model_of_each_family_keeps_the_contract(name):
    timm_keeps_the_contract(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW.split())
def test_a_larger_model_of_each_other_family_keeps_the_contract(name):
    timm_keeps_the_contract(name)


@pytest.mark.parametrize(("name", "lack"), REFUSED.items())
def test_a_model_that_lacks_something_is_refused_with_what_it_lacks(name, lack):
    with pytest.raises(ConfigError, match=f"'{name}' {lack}") as error:
        TimmBackbone(name, 3, native_size(name))
    assert "medtransfer list backbone" in error.value.remedy


def test_an_image_that_is_too_small_is_refused_with_its_size():
    with pytest.raises(ConfigError, match="'inception_v3' cannot take images of 64 px") as error:
        TimmBackbone("inception_v3", 3, 64)
    assert "dataset.image_size" in error.value.remedy


def test_an_unknown_model_is_refused_with_those_of_similar_name():
    with pytest.raises(ConfigError, match="no model 'resnt18'; did you mean 'resnet18'") as error:
        TimmBackbone("resnt18", 3, 64)
    assert "resnet18" in error.value.choices


def test_a_tag_belongs_to_the_weights():
    with pytest.raises(ConfigError, match=r"'resnet18\.a1_in1k' names weights too") as error:
        TimmBackbone("resnet18.a1_in1k", 3, 64)
    assert error.value.remedy == "backbone.name=resnet18 weights=imagenet weights.tag=a1_in1k"


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "dla46_c"])
def test_grey_images_pass_with_the_mean_of_the_colours_normalisation(name):
    grey, colour = (TimmBackbone(name, channels, 64).eval() for channels in (1, 3))
    assert grey.embed(torch.rand(2, 1, 64, 64)).shape == (2, grey.embedding_size)
    for buffer in ("mean", "std"):
        expected = colour.get_buffer(buffer).mean(1, keepdim=True)
        torch.testing.assert_close(grey.get_buffer(buffer), expected)


def test_images_are_normalised_by_the_backbone_itself():
    backbone = TimmBackbone("test_vit", 3, 64).eval()
    assert torch.equal(backbone.get_buffer("mean").flatten(), torch.full((3,), 0.5))
    plain = TimmBackbone("test_vit", 3, 64).eval()
    plain.load_state_dict(backbone.state_dict())
    nn.init.zeros_(plain.get_buffer("mean"))
    nn.init.ones_(plain.get_buffer("std"))
    images = torch.rand(2, 3, 64, 64)
    expected = plain.embed((images - 0.5) / 0.5)
    torch.testing.assert_close(backbone.embed(images), expected)


def test_measuring_leaves_mode_and_statistics_alone(monkeypatch):
    model = timm.create_model("test_resnet", num_classes=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    monkeypatch.setattr("medtransfer.backbones.timm.create", lambda *_: model)
    backbone = TimmBackbone("test_resnet", 3, 32)
    assert all(module.training for module in backbone.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_builds(choice, component):
    node = component("backbone", choice, channels=3)
    if choice == "timm":
        node["name"] = "test_resnet"  # the YAML leaves it to the user
    backbone = build(node, Backbone, image_size=64).eval()
    assert backbone.name == node.get("name", choice)
    assert backbone.embed(torch.rand(1, 3, 64, 64)).shape == (1, backbone.embedding_size)


ENCODERS = ("conv_encoder", "sigmoid_encoder", "dense_encoder")


@pytest.fixture
def make_encoder(component):
    """Return a function that builds an encoder as its YAML has it, with some keys changed."""

    def make(choice, image_size=64, channels=3, **changed):
        node = component("backbone", choice, channels=channels, **changed)
        return build(node, Backbone, image_size=image_size)

    return make


@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("choice", ENCODERS)
def test_an_encoder_keeps_the_contract(choice, size, make_encoder):
    keeps_the_contract(lambda: make_encoder(choice, size), size)


@pytest.mark.parametrize("choice", ["conv_encoder", "sigmoid_encoder"])
def test_each_layer_of_a_convolutional_encoder_is_a_level(choice, make_encoder):
    backbone = make_encoder(choice, widths=[4, 6, 8])
    assert backbone.channels == (4, 6, 8)
    assert backbone.strides == (2, 4, 8)
    assert backbone.embedding_size == 8
    embedding, levels = backbone.features(torch.rand(3, 3, 64, 64))
    torch.testing.assert_close(embedding, levels[-1].mean((2, 3)))


def test_the_dense_encoder_has_no_pyramid(make_encoder):
    backbone = make_encoder("dense_encoder")
    assert (backbone.channels, backbone.strides) == ((), ())
    images = torch.rand(2, 3, 64, 64)
    assert backbone.pyramid(images) == []
    halved = torch.nn.functional.avg_pool2d(images, 2)
    torch.testing.assert_close(backbone.embed(images), backbone.embed(halved))
    small = make_encoder("dense_encoder", image_size=16)
    assert small.layers[0].sums.weight.shape[2:] == (16, 16)


@pytest.mark.parametrize(
    ("choice", "keys", "said"),
    [
        ("conv_encoder", {"kernel": 4}, "kernel=4 is even"),
        ("conv_encoder", {"widths": [2] * 6}, "6 layers that halve images of 32 px leave nothing"),
        ("conv_encoder", {"widths": []}, "0 layers"),
        ("conv_encoder", {"widths": [0]}, "widths"),
        ("conv_encoder", {"units": "tanh"}, "units"),
        ("dense_encoder", {"widths": []}, "widths"),
        ("dense_encoder", {"size": 0}, "size"),
    ],
    ids=str,
)
def test_an_encoder_that_cannot_be_is_refused(choice, keys, said, make_encoder):
    with pytest.raises(ConfigError, match=said):
        make_encoder(choice, 32, **keys)


CHAINS = [*ENCODERS, "resnet10t", "resnet18", "test_resnet"]


@pytest.mark.parametrize("choice", CHAINS)
def test_the_stages_of_a_chain_give_its_levels_one_after_the_other(choice, make_encoder):
    torch.manual_seed(0)
    known = choice in CHOICES
    backbone = make_encoder(choice) if known else TimmBackbone(choice, 3, 64)
    backbone.eval()
    images = torch.rand(2, 3, 64, 64)
    found = [backbone.normalised(images)]
    for stage in backbone.stages():
        found.append(stage(found[-1]))
    expected = backbone.pyramid(images)
    if backbone.channels:
        torch.testing.assert_close(found[1:], expected)
    torch.testing.assert_close(found[-1].mean((2, 3)), backbone.embed(images))
    staged = {p for stage in backbone.stages() for p in stage.parameters()}
    assert staged == set(backbone.parameters())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_what_is_no_chain_has_no_stages(name):
    assert TimmBackbone(name, 3, 64).stages() == ()


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_says_how_it_is_chosen(choice, component, compose):
    node = component("backbone", choice, channels=3)
    if choice == "timm":
        node["name"] = "test_resnet"
    backbone = build(node, Backbone, image_size=64)
    composed = compose(*backbone.chosen_by.split()).plain()["backbone"]
    again = build(composed, Backbone, image_size=64)
    assert again.name == backbone.name
    assert again.state_dict().keys() == backbone.state_dict().keys()


def test_units_give_a_convolutional_encoder_its_name(make_encoder):
    assert make_encoder("conv_encoder", units="sigmoid").name == "sigmoid_encoder"
    assert isinstance(make_encoder("sigmoid_encoder", units="relu"), ConvEncoder)

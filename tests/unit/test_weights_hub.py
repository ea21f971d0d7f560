"""Weights of timm's hub, from a local cache and without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from medtransfer.backbones import weights
from medtransfer.backbones.base import Normalisation
from medtransfer.backbones.hub import Hub
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.errors import WeightsError

NAME = "test_resnet"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """Return the folder of an empty cache of the hub, on a machine that is offline."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def fill(hub: Path, name: str) -> dict[str, torch.Tensor]:
    """Put a model of this name into the hub's cache, as the hub's client would."""
    torch.manual_seed(3)
    model = timm.create_model(name.partition(".")[0])
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = hub / f"models--timm--{name}"
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    return model.state_dict()


def from_hub(tag: str | None = None) -> Hub:
    return Hub(path=None, tag=tag, sha256=None)


@pytest.mark.timeout(20)
def test_an_offline_machine_is_told_three_ways_to_get_weights(hub):
    target = TimmBackbone(NAME, 3, 32)
    with pytest.raises(WeightsError, match="cannot be fetched from the hub") as error:
        from_hub().load(target)
    for way in ("HF_HOME", "weights=file weights.path=FILE", "medtransfer pretrain"):
        assert way in error.value.remedy


@pytest.mark.parametrize("tag", [None, "r160_in1k"])
@pytest.mark.parametrize("channels", [1, 3])
def test_weights_come_from_the_hubs_local_cache(channels, tag, hub):
    cached = fill(hub, f"{NAME}.r160_in1k")
    target = TimmBackbone(NAME, channels, 32)
    target.normalise_by(Normalisation((0.0,) * 3, (1.0,) * 3))
    known = from_hub(tag).load(target)
    first = "conv1.0.weight"
    for key, value in target.model.state_dict().items():
        expected = cached[key]
        if key == first and channels == 1:
            expected = expected.sum(1, keepdim=True)  # as timm does it
        torch.testing.assert_close(value, expected)
    mean = timm.get_pretrained_cfg(NAME).mean
    expected = torch.tensor(mean if channels == 3 else [sum(mean) / 3])
    torch.testing.assert_close(target.get_buffer("mean").flatten(), expected)
    assert known.source == f"timm/{NAME}.r160_in1k"
    assert known.trained_on == "natural images (r160_in1k)"
    assert known.statistics
    assert known.sha256 == weights.hash_tensors(target.state_dict())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_what_comes_before_the_first_kernel_is_no_kernel(name, hub):
    cached = fill(hub, f"{name}.r160_in1k")
    target = TimmBackbone(name, 3, 160)
    from_hub().load(target)
    for key, value in target.model.state_dict().items():
        assert torch.equal(value, cached[key]), key


def test_an_unknown_tag_names_those_that_exist(hub):
    target = TimmBackbone(NAME, 3, 32)
    with pytest.raises(WeightsError, match="no weights 'r160_in12k'") as error:
        from_hub("r160_in12k").load(target)
    assert error.value.choices == ("r160_in1k",)
    assert error.value.nearest == "r160_in1k"


def test_a_model_without_any_weights_says_so(hub):
    target = TimmBackbone(NAME, 3, 32)
    target.name = "test_nothing"
    with pytest.raises(WeightsError, match="no weights for 'test_nothing'"):
        from_hub().load(target)


def test_a_tag_picks_one_set_among_several(hub):
    name = "mobilenetv4_conv_small"
    assert timm.get_pretrained_cfg(name).tag == "e2400_r224_in1k"  # what no tag would mean
    fill(hub, f"{name}.e1200_r224_in1k")
    known = from_hub("e1200_r224_in1k").load(TimmBackbone(name, 3, 32))
    assert known.source == f"timm/{name}.e1200_r224_in1k"


def test_a_hub_that_does_not_answer_is_not_asked_for_what_is_in_the_cache(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("medtransfer.backbones.hub.unreachable", lambda: "it sleeps")
    fill(hub, f"{NAME}.r160_in1k")
    assert from_hub().load(TimmBackbone(NAME, 3, 32)).source == f"timm/{NAME}.r160_in1k"
    assert constants.HF_HUB_OFFLINE is False  # as the user has it

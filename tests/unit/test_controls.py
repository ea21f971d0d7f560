"""The controls without which no claim about transfer holds."""

import pytest
import torch

from medtransfer.backbones import weights
from medtransfer.backbones.pixels import Pixels
from medtransfer.backbones.stats_transfer import StatsTransfer
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.errors import WeightsError

SEEN = {"groups": ["a"], "images": ["b"]}


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(1)
    backbone = TimmBackbone("test_resnet", 3, 32)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.7)
    for name, buffer in backbone.named_buffers():
        if "running" in name:
            buffer.fill_(5)
    weights.save(backbone, tmp_path / "w.safetensors", source="here", licence="CC0", seen=SEEN)
    return backbone


def transferred(tmp_path, seed=0):
    torch.manual_seed(seed)
    target = TimmBackbone("test_resnet", 3, 32)
    path = tmp_path / "w.safetensors"
    options = {"tag": None, "sha256": None, "source": None, "made_on": "any"}
    return target, StatsTransfer(path=path, folder=tmp_path, **options).load(target)


def test_the_scale_is_transferred_and_the_values_are_not(source, tmp_path):
    target, known = transferred(tmp_path)
    originals = dict(source.named_parameters())
    for name, value in target.named_parameters():
        original = originals[name]
        assert not torch.equal(value, original)
        if value.numel() > 5000:
            assert abs(value.mean() - original.mean()) < 0.05
            assert abs(value.std() / original.std() - 1) < 0.05
            correlation = torch.corrcoef(torch.stack([value.flatten(), original.flatten()]))[0, 1]
            assert abs(correlation) < 0.1
    statistics = {n: b for n, b in target.named_buffers() if n.endswith("running_mean")}
    assert statistics
    assert not any(value.any() for value in statistics.values())
    assert not known.statistics
    assert known.source == "random values at the scale of here"
    assert known.licence == "CC0"
    assert known.seen == SEEN  # the scale was learnt from them
    assert known.sha256 == weights.hash_tensors(target.state_dict())


def test_the_draw_follows_the_seed(source, tmp_path):
    (_, first), (_, again), (_, other) = (transferred(tmp_path, seed) for seed in (0, 0, 1))
    assert first.sha256 == again.sha256 != other.sha256


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"w\.safetensors' does not exist"):
        transferred(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_the_image_and_nothing_learns(channels):
    backbone = Pixels(channels, 8, 32)
    images = torch.rand(2, channels, 32, 32)
    embedding, levels = backbone.features(images)
    assert embedding.shape == (2, backbone.embedding_size)
    scaled = torch.nn.functional.avg_pool2d(images, 4)
    torch.testing.assert_close(embedding, ((scaled - 0.5) / 0.25).flatten(1))
    for level, stride, width in zip(levels, backbone.strides, backbone.channels, strict=True):
        assert level.shape == (2, width, 32 // stride, 32 // stride)
    assert not list(backbone.parameters())
    assert backbone.layer_groups() == ()


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_pixels_are_trained_on_like_any_backbone(cli, strategy):
    tiny = ("dataset.patients=36", "dataset.size=32", "dataset.image_size=32")
    result = cli(
        *("train", "backbone=pixels", f"strategy={strategy}", *tiny),
        *("trainer=quick", "trainer.max_epochs=1", "trainer.threads=1"),
    )
    assert result.code == 0, result.err
    assert "test/auroc" in result.out


def test_weights_have_nothing_to_fill_in_pixels(cli, source, tmp_path):
    path = tmp_path / "w.safetensors"
    result = cli("train", "backbone=pixels", "weights=file", f"weights.path={path}")
    assert result.code == 2
    assert "backbone 'pixels' has no parameters" in result.err

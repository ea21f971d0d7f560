"""What was loaded last is copied where the same is asked for, and only there."""

import os

import pytest
import torch

from medtransfer.backbones import load
from medtransfer.backbones.load import load_backbone
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.backbones.weights import save

BACKBONE = {
    "_target_": "medtransfer.backbones.timm.TimmBackbone",
    "name": "test_resnet",
    "channels": 3,
}
RANDOM = {
    "_target_": "medtransfer.backbones.weights.Random",
    "path": None,
    "tag": None,
    "sha256": None,
}


@pytest.fixture
def built(monkeypatch):
    """Begin with nothing loaded, and count how often a backbone is built."""
    monkeypatch.setattr(load, "_last", None)
    found = []
    usual = TimmBackbone._measure
    monkeypatch.setattr(
        TimmBackbone, "_measure", lambda self, *told: (found.append(self), usual(self, *told))[1]
    )
    return found


def loaded(weights=RANDOM, seed=0, image_size=32):
    backbone, provenance = load_backbone(
        BACKBONE,
        weights,
        image_size=image_size,
        channels=3,
        near=("", ""),
        seed=seed,
        trusted=(),
    )
    return backbone, provenance


def from_file(path):
    target = "medtransfer.backbones.files.File"
    return RANDOM | {
        "_target_": target,
        "path": str(path),
        "folder": str(path.parent),
        "source": None,
        "made_on": "any",
    }


def written(path, seed):
    torch.manual_seed(seed)
    backbone = TimmBackbone("test_resnet", 3, 32)
    save(backbone, path, source="test", trained_on="nothing", licence="none")
    return backbone.state_dict()


def equal(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_the_same_is_built_once_and_what_is_done_to_one_copy_the_next_does_not_see(built):
    first, known = loaded()
    before = {key: value.clone() for key, value in first.state_dict().items()}
    with torch.no_grad():
        for value in first.parameters():
            value.add_(1)
            value.requires_grad = False
    known.detail["changed"] = True
    second, again = loaded()
    assert len(built) == 1
    assert equal(second.state_dict(), before)
    assert all(value.requires_grad for value in second.parameters())
    assert "changed" not in again.detail


def test_a_copy_is_equal_to_what_would_have_been_built(built):
    loaded()
    copied, known = loaded()
    load._last = None
    fresh, told = loaded()
    assert len(built) == 2
    assert equal(copied.state_dict(), fresh.state_dict())
    assert known == told
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(copied.eval().embed(images), fresh.eval().embed(images))


@pytest.mark.parametrize("other", [{"seed": 1}, {"image_size": 64}])
def test_what_is_asked_for_otherwise_is_built_anew(built, other):
    loaded()
    loaded(**other)
    assert len(built) == 2


def test_random_values_follow_the_seed(built):
    assert not equal(loaded(seed=0)[0].state_dict(), loaded(seed=1)[0].state_dict())
    assert equal(loaded(seed=0)[0].state_dict(), loaded(seed=0)[0].state_dict())


def test_a_file_serves_all_seeds_until_it_changes(built, tmp_path):
    path = tmp_path / "weights.safetensors"
    values = written(path, 1)
    built.clear()
    for seed in range(3):
        assert equal(loaded(from_file(path), seed)[0].state_dict(), values)
    assert len(built) == 1
    values = written(path, 2)
    os.utime(path, ns=(0, 0))  # however coarse the file system's clock is
    built.clear()
    assert equal(loaded(from_file(path))[0].state_dict(), values)
    assert len(built) == 1

"""Which file of weights is taken where none is named."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from medtransfer.backbones import files, weights
from medtransfer.backbones.encoder import ConvEncoder
from medtransfer.backbones.files import File
from medtransfer.backbones.stats_transfer import StatsTransfer
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.errors import WeightsError

NAME = "test_resnet"
DATA, SPLIT = "d" * 16, "s" * 16


@pytest.fixture(scope="module")
def backbone():
    return TimmBackbone(NAME, 3, 32)


@pytest.fixture
def shelf(tmp_path, monkeypatch, backbone):
    """Return a function that writes a file; each is newer than the one before."""
    monkeypatch.setattr(files, "SHIPPED", tmp_path / "shipped")

    def write(label, source="synthetic", folder="made", **known):
        path = tmp_path / folder / f"{label}.safetensors"
        weights.save(backbone, path, source=source, label=label, **known)
        age = len(list(tmp_path.rglob("*.safetensors")))
        os.utime(path, (1e9 + age, 1e9 + age))

    return write


@pytest.fixture
def take(tmp_path, backbone):
    """Return a function that tells which file is taken."""

    def load(source, *, made_on="any", cls=File, into=backbone):
        file = cls(
            path=None,
            tag=None,
            sha256=None,
            folder=tmp_path / "made",
            source=source,
            made_on=made_on,
            near=(DATA, SPLIT),
        )
        return file.load(into).detail["label"]

    return load


def test_what_ships_comes_first_where_a_source_is_named(shelf, take):
    shelf("shipped", folder="shipped")
    shelf("made")
    assert take("synthetic") == "shipped"
    assert take(None) == "made"
    assert take("synthetic", cls=StatsTransfer) == "shipped"


def test_what_ships_for_another_source_or_backbone_is_passed_over(shelf, take, tmp_path):
    shelf("shipped", source="formula", folder="shipped")
    other = TimmBackbone("test_convnext", 3, 32)
    path = tmp_path / "shipped" / "other.safetensors"
    weights.save(other, path, source="synthetic", label="other")
    shelf("made")
    assert take("synthetic") == "made"
    assert take("formula") == "shipped"
    assert take("synthetic", into=other) == "other"


def test_what_ships_was_not_made_on_the_own_dataset(shelf, take):
    shelf("shipped", source="sae", folder="shipped")
    shelf("made", source="sae", data_hash=DATA)
    assert take("sae") == "shipped"
    assert take("sae", made_on="own") == "made"


def test_only_what_the_source_made_is_taken_the_newest_first(shelf, take):
    for label, source in [("a", "sae"), ("b", "rbm"), ("c", "sae"), ("d", "rbm")]:
        shelf(label, source=source)
    assert (take("sae"), take("rbm"), take(None)) == ("c", "d", "d")


def test_of_the_own_dataset_the_same_split_is_preferred_to_a_newer_file(shelf, take):
    shelf("other data", "sae", data_hash="x", split_hash=SPLIT)
    shelf("first", "sae", data_hash=DATA, split_hash=SPLIT)
    shelf("second", "sae", data_hash=DATA, split_hash=SPLIT)
    shelf("other split", "sae", data_hash=DATA, split_hash="x")
    shelf("newest", "sae", data_hash="x", split_hash="x")
    shelf("no dataset", "sae")
    assert take("sae", made_on="own") == "second"
    assert take("sae") == "no dataset"
    assert take(None, made_on="own") == "second"


def test_another_split_of_the_own_dataset_will_do(shelf, take):
    shelf("other split", "sae", data_hash=DATA, split_hash="x")
    shelf("no dataset", "sae")
    assert take("sae", made_on="own") == "other split"


def test_of_other_datasets_the_newest_is_taken_and_never_the_own(shelf, take):
    shelf("first", "supervised", data_hash="x", split_hash=SPLIT)
    shelf("second", "supervised", data_hash="y", split_hash="x")
    shelf("own", "supervised", data_hash=DATA, split_hash="x")
    assert take("supervised", made_on="other") == "second"
    assert take("supervised") == "own"
    assert take("supervised", made_on="own") == "own"


REMEDIES = {
    ("synthetic", "any"): "medtransfer pretrain source=synthetic {}, or",
    ("sae", "own"): "medtransfer pretrain source=sae {} dataset=DATASET, or",
    ("supervised", "other"): "medtransfer pretrain source=supervised {} dataset=DATASET, or",
    (None, "any"): "medtransfer pretrain source=synthetic {}, or",
}


@pytest.mark.parametrize(("source", "made_on"), REMEDIES)
def test_where_there_is_none_the_remedy_is_the_command_that_makes_it(
    shelf, take, backbone, source, made_on
):
    shelf("other", "rbm")  # of another source; or on another dataset, or none
    shelf("elsewhere", "sae", data_hash="x")
    shelf("own", "supervised", data_hash=DATA)
    encoder = ConvEncoder(
        channels=3, widths=[4], kernel=3, units="relu", norm="none", image_size=32
    )
    chosen = {
        backbone: f"backbone=timm backbone.name={NAME}",
        encoder: "backbone=conv_encoder",
    }
    for into, choice in chosen.items():
        if into is backbone and source is None:
            continue
        with pytest.raises(WeightsError, match=f"for backbone '{into.name}'") as error:
            take(source, made_on=made_on, into=into)
        assert error.value.remedy.startswith(REMEDIES[source, made_on].format(choice))
        assert "weights.path" in error.value.remedy
        assert "/made'" in str(error.value)
        where = {"any": "", "own": " made on this dataset", "other": " made on another dataset"}
        assert f"'{into.name}'{where[made_on]} in '" in str(error.value)
        assert source is None or f"of source '{source}'" in str(error.value)


def test_damaged_and_foreign_files_are_passed_over(shelf, take, tmp_path):
    shelf("good", "sae")
    (tmp_path / "made" / "damaged.safetensors").write_bytes(b"\x10")
    (tmp_path / "made" / "folder.safetensors").mkdir()
    save_file({"x": torch.ones(1)}, tmp_path / "made" / "foreign.safetensors")
    assert take("sae") == take(None) == "good"

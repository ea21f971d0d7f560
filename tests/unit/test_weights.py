"""Files of weights: what is taken, what is refused, and what is known of them afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from medtransfer.backbones import weights
from medtransfer.backbones.base import Normalisation
from medtransfer.backbones.files import File
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.errors import WeightsError

NAME = "test_resnet"


def make_backbone(name: str = NAME, channels: int = 3, seed: int = 0) -> TimmBackbone:
    torch.manual_seed(seed)
    return TimmBackbone(name, channels, 32)


def file(path: Path | None, folder: Path = Path("nowhere"), sha256: str | None = None):
    return File(path=path, tag=None, sha256=sha256, folder=folder, source=None, made_on="any")


def prefixed(prefix: str, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def source() -> TimmBackbone:
    """Return a backbone whose values are to be found again."""
    backbone = make_backbone(seed=1)
    backbone.normalise_by(Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    return backbone


@pytest.fixture
def target() -> TimmBackbone:
    """Return another backbone, to be filled."""
    return make_backbone(seed=2)


def refused(path: Path, target: TimmBackbone, **options) -> str:
    """Return why a file is refused, having seen that the backbone stayed as it was."""
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        file(path, **options).load(target)
    assert equal(before, target.state_dict())
    return str(error.value)


def test_random_weights_are_the_initialisation_with_every_branch_switched_on(target):
    before = {key: value.clone() for key, value in target.state_dict().items()}
    known = weights.Random(path=None, tag=None, sha256=None).load(target)
    after = target.state_dict()
    different = {key for key in before if not torch.equal(before[key], after[key])}
    assert different
    for key in different:
        assert not before[key].any()
        assert (after[key] == 1).all()
    assert not [
        name
        for name, p in target.named_parameters()
        if "bn" in name and name.endswith("weight") and not p.any()
    ]
    assert (known.source, known.trained_on, known.statistics) == ("random", "nothing", False)
    assert known.sha256 == weights.hash_tensors(after)


def test_a_saved_file_brings_back_values_normalisation_and_provenance(tmp_path, source, target):
    path = tmp_path / "new" / "w.safetensors"
    weights.save(source, path, source="here", trained_on="shapes", licence="CC0", images=7)
    known = file(path).load(target)
    assert equal(source.state_dict(), target.state_dict())
    assert target.get_buffer("mean").flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert (known.source, known.trained_on, known.licence) == ("here", "shapes", "CC0")
    assert (known.statistics, known.detail["images"]) == (True, 7)
    assert known.detail["file_sha256"] == weights.hash_file(path)
    assert known.sha256 == weights.hash_tensors(source.state_dict())
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written


SIZES = {"test_vit": {"dynamic_img_size": True}}
WRAPPINGS = {
    "plain": lambda s: s,
    "DataParallel": lambda s: prefixed("module.", s),
    "Lightning": lambda s: {"state_dict": prefixed("backbone.model.", s)},
    "nested": lambda s: {"model": prefixed("module.backbone.", s)},
}


@pytest.mark.parametrize("name", [NAME, "test_convnext", "test_vit"])
@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
def test_checkpoints_of_other_programs_load_without_their_classifier(wrap, name, tmp_path):
    target = make_backbone(name, seed=2)
    other = timm.create_model(name, num_classes=10, **SIZES.get(name, {}))
    path = tmp_path / "other.pth"
    torch.save(wrap(other.state_dict()), path)
    known = file(path).load(target)
    classifier = other.pretrained_cfg["classifier"]
    assert f"{classifier}.weight" in other.state_dict()
    expected = {k: v for k, v in other.state_dict().items() if not k.startswith(classifier)}
    assert equal(expected, target.model.state_dict())
    assert target.get_buffer("mean").flatten().tolist() == [0.5] * 3  # as it was
    assert (known.source, known.trained_on) == ("other.pth", "unknown")


def test_a_checkpoint_of_this_program_brings_its_normalisation(tmp_path, source, target):
    path = tmp_path / "best.ckpt"
    state = prefixed("backbone.", source.state_dict())
    torch.save({"state_dict": {**state, "head.linear.weight": torch.ones(2, 2)}}, path)
    file(path).load(target)
    assert equal(source.state_dict(), target.state_dict())


def test_without_a_path_the_newest_file_for_this_backbone_is_taken(tmp_path, source, target):
    for age, (name, label) in enumerate(
        [("test_vit", "other"), (NAME, "new"), (NAME, "old"), (NAME, "older")]
    ):
        path = tmp_path / f"{label}.safetensors"
        weights.save(make_backbone(name) if name != NAME else source, path, source=label)
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10")
    assert file(None, folder=tmp_path).load(target).source == "new"


def test_without_any_file_the_remedy_is_to_pretrain(tmp_path, target):
    message = refused(None, target, folder=tmp_path)
    assert f"'{NAME}'" in message
    assert f"medtransfer pretrain source=synthetic backbone=timm backbone.name={NAME}" in message


def test_the_hash_of_a_file_is_checked_when_it_is_given(tmp_path, source, target):
    path = tmp_path / "w.safetensors"
    weights.save(source, path)
    digest = weights.hash_file(path)
    assert digest in refused(path, target, sha256="0" * 64)
    file(path, sha256=digest.upper()).load(target)
    assert equal(source.state_dict(), target.state_dict())


def test_a_missing_file_is_named(tmp_path, target):
    assert "gone.safetensors' does not exist" in refused(tmp_path / "gone.safetensors", target)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_refused(suffix, share, tmp_path, source, target):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(source.state_dict(), path)
    else:
        weights.save(source, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert path.name in refused(path, target)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_executed(zipped, tmp_path, target):
    witness, path = tmp_path / "executed", tmp_path / "evil.pth"

    class Evil:
        def __reduce__(self):
            return Path.touch, (witness,)

    torch.save({"state_dict": Evil()}, path, _use_new_zipfile_serialization=zipped)
    assert "was not executed" in refused(path, target)
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists()  # so the refusal was worth something


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_a_file_of_anything_is_refused_in_words(content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "anything.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        weights.read_tensors(path)


def test_what_is_no_state_dict_is_refused(tmp_path, target):
    torch.save([torch.ones(2)], tmp_path / "w.pth")
    assert "holds a list and no state dict" in refused(tmp_path / "w.pth", target)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value, tmp_path, source, target):
    path = tmp_path / "w.safetensors"
    with torch.no_grad():
        source.model.conv1[0].weight[0, 0, 0, 0] = value
    weights.save(source, path)
    assert "'model.conv1.0.weight' that are not finite" in refused(path, target)


def test_weights_of_another_architecture_are_refused_with_a_count(tmp_path, target):
    path = tmp_path / "w.safetensors"
    weights.save(make_backbone("test_vit"), path)
    assert "does not fit backbone 'test_resnet'" in (message := refused(path, target))
    assert "are missing (first 'model.bn1.bias')" in message


@pytest.mark.parametrize("shape", [(16, 3, 5, 5), (8, 3, 3, 3), (16, 2, 3, 3), (16,), ()], ids=str)
def test_a_tensor_of_another_shape_is_refused_with_both_shapes(shape, tmp_path, source, target):
    path = tmp_path / "w.pth"
    torch.save({**source.state_dict(), "model.conv1.0.weight": torch.ones(shape)}, path)
    message = refused(path, target)
    if shape[1:2] == (2,):
        assert "was made for images of 2 channels, and the backbone takes 3" in message
    else:
        assert f"'model.conv1.0.weight' is {shape} and should be (16, 3, 3, 3)" in message


def test_a_file_in_half_precision_loads_into_single_precision(tmp_path, source, target):
    path = tmp_path / "w.safetensors"
    header = {"backbone": source.name, "channels": source.channels_in}
    weights.write(source.state_dict(), path, header, half=True)
    stored, _ = weights.read_tensors(path)
    halved = {key for key, value in stored.items() if value.dtype == torch.float16}
    assert halved == {k for k, v in source.state_dict().items() if v.is_floating_point()}
    known = file(path).load(target)
    for key, value in target.state_dict().items():
        original = source.state_dict()[key]
        assert value.dtype == original.dtype
        expected = original.half().float() if key in halved else original
        assert torch.equal(value, expected)
    assert known.sha256 == weights.hash_tensors(target.state_dict())


@pytest.mark.parametrize("header", ["{not json", "[1, 2]", '"text"', "null"])
def test_a_header_of_another_kind_tells_nothing(header, tmp_path, source, target):
    path = tmp_path / "w.safetensors"
    save_file(source.state_dict(), path, metadata={weights.METADATA_KEY: header})
    known = file(path).load(target)
    assert equal(source.state_dict(), target.state_dict())
    assert (known.source, known.licence) == ("w.safetensors", "unknown")


OF_EQUAL_SIZE = {
    torch.float32: torch.int32,
    torch.int64: torch.float64,
    torch.uint8: torch.int8,
    torch.bool: torch.uint8,
}
TENSORS = st.dictionaries(
    st.text(max_size=5),
    hnp.arrays(st.sampled_from(["f4", "i8", "u1", "?"]), hnp.array_shapes(min_dims=0, max_dims=3)),
    min_size=1,
    max_size=4,
).map(lambda arrays: {name: torch.from_numpy(array) for name, array in arrays.items()})


@settings(deadline=None)
@given(state=TENSORS, data=st.data())
def test_a_hash_tells_names_types_shapes_and_values_apart(state, data):
    original = weights.hash_tensors(state)
    same = dict(reversed([(name, value.clone()) for name, value in state.items()]))
    assert weights.hash_tensors(same) == original

    name = data.draw(st.sampled_from(sorted(state)))
    value = state[name]
    others = {
        "value": {name: torch.where(value == 1, 0, 1).to(value.dtype)},
        "type": {name: value.view(OF_EQUAL_SIZE[value.dtype])},
        "shape": {name: value[None]},
        "name": {f"{name}_": value},
    }
    rest = {key: value for key, value in state.items() if key != name}
    for what, other in others.items():
        assert weights.hash_tensors(rest | other) != original, what

import copy

import pytest

from medtransfer.app import App
from medtransfer.backbones.weights import Weights
from medtransfer.components import build, locate
from medtransfer.config import TrainConfig, check
from medtransfer.data.base import Dataset
from medtransfer.data.phantom import Phantom
from medtransfer.data.transforms import Augment, Transform
from medtransfer.errors import ConfigError, MedtransferError


@pytest.fixture(scope="module")
def shipped():
    with App.open("train", None) as app:
        return app.compose([]).plain()


@pytest.fixture
def plain(shipped):
    return copy.deepcopy(shipped)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Return a function that writes a module where Python finds it."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, code):
        (tmp_path / f"{name}.py").write_text(code)

    return write


def refused(model, values):
    with pytest.raises(ConfigError) as caught:
        check(model, values)
    return caught.value


def test_the_shipped_configuration_is_typed_and_frozen(plain):
    put(plain, "trainer.max_epochs", "7")
    config = check(TrainConfig, plain)
    assert config.trainer.max_epochs == 7
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1


def put(values, key, value):
    *path, last = key.split(".")
    for part in path:
        values = values[part]
    values[last] = value


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("sead", "seed"),
        ("trainer.max_epoch", "max_epochs"),
        ("trainer.selection.metrics", "metric"),
        ("trainer.early_stopping.patients", "patience"),
        ("tracking.url", "uri"),
        ("study.nam", "name"),
    ],
)
def test_an_unknown_key_is_named_in_full_with_the_nearest(plain, key, nearest):
    put(plain, key, 1)
    error = refused(TrainConfig, plain)
    assert error.problem == f"key '{key}' is unknown"
    assert error.nearest == nearest


@pytest.mark.parametrize("key", ["seed", "trainer.max_epochs", "trainer.selection.metric"])
def test_a_missing_key_is_named_in_full(plain, key):
    *path, last = key.split(".")
    node = plain
    for part in path:
        node = node[part]
    del node[last]
    assert refused(TrainConfig, plain).problem == f"key '{key}' is missing"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "abc"),
        ("seed", -1),
        ("seed", None),
        ("test", "perhaps"),
        ("trainer.max_epochs", 0),
        ("trainer.batch_size", 1.5),
        ("trainer.precision", "fp8"),
        ("trainer.threads", "many"),
        ("trainer.selection.mode", "up"),
        ("tracking.experiment", ""),
        ("study.rope", -0.1),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_full_key(plain, key, value):
    put(plain, key, value)
    assert refused(TrainConfig, plain).problem.startswith(f"{key}={value!r} does not fit: ")


@pytest.mark.parametrize("node", [{}, {"_target_": 3}])
def test_a_component_needs_a_target(plain, node):
    plain["head"] = node
    assert "needs a `_target_`" in refused(TrainConfig, plain).problem


def test_a_component_becomes_its_class_with_converted_arguments(plain):
    built = build(plain["dataset"], Dataset)
    assert type(built) is Phantom
    assert built.split.ratios == tuple(plain["dataset"]["split"]["ratios"])


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("fractoin", 1, "key 'dataset.fractoin' is unknown .*did you mean 'fraction'"),
        ("fraction", 2, "dataset.fraction=2 does not fit"),
        ("fraction", "abc", "dataset.fraction='abc' does not fit"),
        ("image_size", None, "dataset.image_size=None does not fit"),
        ("on_error", "ignore", "dataset.on_error='ignore' does not fit"),
        ("split.kind", "random", "dataset.split.kind='random' does not fit"),
        ("split.seed", "x", "dataset.split.seed='x' does not fit"),
        ("split.ratios", [0.5, 0.5, 0.5], "ratios sum to 1.5"),
        ("split.ratios", [0.5, -0.2, 0.7], r"dataset.split.ratios.1=-0.2 does not fit"),
        ("split.kind", "file", "split.kind=file and split.file go together"),
        ("split.sed", 0, "key 'dataset.split.sed' is unknown"),
    ],
)
def test_an_argument_that_does_not_fit_is_named_with_its_full_key(plain, key, value, said):
    put(plain["dataset"], key, value)
    with pytest.raises(ConfigError, match=said.replace("unknown ", "unknown to ")):
        build(plain["dataset"], Dataset)


@pytest.mark.parametrize("key", ["fraction", "split.kind"])
def test_a_missing_argument_is_named_with_its_full_key(plain, key):
    node = plain["dataset"] if "." not in key else plain["dataset"]["split"]
    del node[key.rpartition(".")[2]]
    with pytest.raises(ConfigError, match=f"key 'dataset.{key}' is missing"):
        build(plain["dataset"], Dataset)


def test_an_argument_of_the_program_is_no_key(plain):
    from medtransfer.tasks.losses import Loss

    with pytest.raises(ConfigError, match=r"key 'loss.counts' is unknown"):
        build(plain["loss"] | {"counts": [1]}, Loss, counts=(1, 2))
    assert build(plain["loss"], Loss, counts=(1, 2))


OUTSIDE = "os.system torch.load torch.hub.load numpy.load builtins.exec eval medtransfer_evil.Own"


@pytest.mark.parametrize("target", OUTSIDE.split())
def test_a_target_outside_of_what_is_trusted_is_refused_with_the_way_to_trust(target):
    with pytest.raises(ConfigError, match="outside of the modules that may be run") as caught:
        build({"_target_": target}, Dataset)
    assert f"trusted_modules=[{target.rpartition('.')[0]}]" in caught.value.remedy


INSIDE = {
    "a function": "medtransfer.data.decoded.decode",
    "a module": "medtransfer.data.decoded.np",
    "a class of the standard library": "medtransfer.data.files.Path",
    "an abstract class": "medtransfer.data.base.Dataset",
    "a class of another group": "medtransfer.data.transforms.Augment",
    "the error family": "medtransfer.errors.ConfigError",
}


@pytest.mark.parametrize("target", INSIDE.values(), ids=INSIDE)
def test_a_target_of_another_kind_is_refused(target):
    with pytest.raises(ConfigError, match=r"is not a medtransfer\.data\.base\.Dataset"):
        build({"_target_": target}, Dataset)


@pytest.mark.parametrize(
    "target",
    ["medtransfer.data.decoded.shutil.rmtree", "medtransfer.data.base.Nope", "medtransfer.x.Y"],
)
def test_a_target_that_is_not_there_is_said_so(target):
    with pytest.raises(ConfigError, match="cannot be imported"):
        locate(target, Dataset)


def test_a_module_that_python_cannot_read_is_named(own_module):
    own_module("halfdone", "class Own(")
    with pytest.raises(ConfigError, match=r"cannot be imported: .*halfdone\.py, line 1"):
        locate("halfdone.Own", Dataset, trusted=["halfdone"])


def test_a_library_opens_to_the_classes_of_its_group_alone():
    import torch

    extra = ("torch.optim",)
    assert locate("torch.optim.AdamW", torch.optim.Optimizer, extra=extra) is torch.optim.AdamW
    for target in ("torch.load", "torch.optim.lr_scheduler.LambdaLR", "torch.optim.Adam.step"):
        with pytest.raises(ConfigError):
            locate(target, torch.optim.Optimizer, extra=extra)


def test_an_untrusted_module_is_not_even_imported(own_module, tmp_path):
    own_module("stranger", f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ConfigError, match="outside of the modules"):
        locate("stranger.Own", Dataset)
    assert not (tmp_path / "ran").exists()


def test_a_trusted_module_gives_classes_and_its_functions_are_not_called(own_module, tmp_path):
    own_module(
        "trusted_own",
        "from medtransfer.data.transforms import Augment\n"
        "class Own(Augment): pass\n"
        f"def function(**_): open({str(tmp_path / 'ran')!r}, 'w')\n",
    )
    zeros = dict.fromkeys(Augment.__dataclass_fields__, 0)
    built = build({"_target_": "trusted_own.Own", **zeros}, Transform, trusted=["trusted_own"])
    assert type(built).__name__ == "Own"
    with pytest.raises(ConfigError, match="is not a"):
        build({"_target_": "trusted_own.function"}, Transform, trusted=["trusted_own"])
    assert not (tmp_path / "ran").exists()


def test_a_nested_target_is_data_and_is_refused_as_such(plain):
    plain["dataset"]["split"] = {"_target_": "os.system", "command": "true"}
    with pytest.raises(ConfigError, match=r"'dataset.split"):
        build(plain["dataset"], Dataset)


def test_inherited_arguments_keep_the_types_of_where_they_were_written(own_module):
    own_module(
        "heirs",
        "from dataclasses import dataclass\n"
        "from medtransfer.backbones.weights import Random\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Heir(Random):\n"
        "    depth: int\n",
    )
    node = {"_target_": "heirs.Heir", "path": "x.pt", "tag": None, "sha256": None, "depth": "3"}
    built = build(node, Weights, trusted=["heirs"])
    assert (built.path.name, built.depth) == ("x.pt", 3)
    with pytest.raises(MedtransferError, match=r"weights.depth='x' does not fit"):
        build(node | {"depth": "x"}, Weights, trusted=["heirs"])

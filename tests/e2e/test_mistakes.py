"""A user's mistake ends with exit code 2 and a way out, before any run is opened."""

import json

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import save_file

SMALL = (
    *("backbone=timm", "backbone.name=test_resnet"),
    *("trainer.max_epochs=1", "trainer.threads=1"),
)
PHANTOM = ("dataset.patients=18", "dataset.size=32", "dataset.image_size=32")
MASKS_ONLY = """
from medtransfer.data.phantom import Phantom

class MasksOnly(Phantom):
    provides = frozenset({"mask"})
"""


@pytest.fixture
def ground(tmp_path, image_tree, monkeypatch):
    """Return the functions that prepare each mistake; each returns the arguments that make it."""

    def folder(**counts):
        root = image_tree(**counts)
        return root, ["dataset=image_folder", f"dataset.root={root}", "dataset.image_size=32"]

    def unknown_choice():
        return ["strategy=finetuning"]

    def misspelt_key():
        (tmp_path / "own" / "dataset").mkdir(parents=True)
        text = "# Mine.\ndefaults:\n  - phantom\n\nfractoin: 0.5\n"
        (tmp_path / "own" / "dataset" / "mine.yaml").write_text(text)
        return ["--config-dir", tmp_path / "own", "dataset=mine"]

    def wrong_type():
        return ["optimizer.lr=abc"]

    def task_and_dataset():
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / "masks_only.py").write_text(MASKS_ONLY)
        (tmp_path / "own" / "dataset").mkdir(parents=True)
        text = "# Masks.\ndefaults:\n  - phantom\n\n_target_: masks_only.MasksOnly\n"
        (tmp_path / "own" / "dataset" / "masks.yaml").write_text(text)
        own = ["--config-dir", tmp_path / "own", "trusted_modules=[masks_only]"]
        return [*own, "dataset=masks"]

    def untrusted():
        return [a for a in task_and_dataset() if not str(a).startswith("trusted")]

    def missing_folder():
        return ["dataset=image_folder", f"dataset.root={tmp_path}/nowhere"]

    def empty_class():
        return folder(benign=4, malignant=0)[1]

    def small_class():
        return folder(benign=8, malignant=2)[1]

    def truncated_image():
        root, arguments = folder(benign=4, malignant=4)
        file = root / "malignant" / "1.png"
        file.write_bytes(file.read_bytes()[:80])
        return arguments

    def no_image():
        root, arguments = folder(benign=4, malignant=4)
        (root / "benign" / "notes.txt").write_text("who put this here?")
        return arguments

    def two_splits():
        ids = [f"patient{i:05d}_view0" for i in range(18)]
        split = {"train": ids[:9], "val": ids[8:12], "test": ids[12:]}
        (tmp_path / "split.json").write_text(json.dumps(split))
        return ["dataset.split.kind=file", f"dataset.split.file={tmp_path}/split.json"]

    def hub():
        return ["weights=imagenet"]

    def misfit():
        save_file({"layer.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
        return ["weights=file", f"weights.path={tmp_path}/w.safetensors"]

    def no_weights():
        return ["weights=file"]

    def no_own_weights():
        return ["weights=sae"]

    def unwritable_store():
        (tmp_path / "file").write_text("")
        return [f"tracking.uri=sqlite:///{tmp_path}/file/mlflow.db"]

    def unwritable_cache():
        (tmp_path / "file").write_text("")
        return [f"paths.cache={tmp_path}/file/cache"]

    def unknown_model():
        return ["backbone.name=test_resnett"]

    def unknown_metric():
        return ["trainer.selection.metric=val/aurc"]

    return locals()


# What is done, and what must be said: the value, the choices or the remedy.
MISTAKES = {
    "unknown_choice": ["strategy 'finetuning'", "did you mean 'fine_tuning'", "feature_extraction"],
    "misspelt_key": ["'dataset.fractoin'", "did you mean 'fraction'"],
    "wrong_type": ["optimizer.lr='abc'", "valid number"],
    "task_and_dataset": ["Classification", "'class'", "MasksOnly", "choices: mask"],
    "untrusted": ["'masks_only.MasksOnly'", "'trusted_modules=[masks_only]'"],
    "missing_folder": ["nowhere' does not exist", "dataset.root"],
    "empty_class": ["malignant' is empty", "dataset.classes"],
    "small_class": ["class 'malignant' has 2 independent groups", "3 splits", "add images"],
    "truncated_image": ["malignant/1.png", "dataset.on_error=skip"],
    "no_image": ["benign/notes.txt", "dataset.on_error=skip"],
    "two_splits": ["'patient00008_view0'", "train and val", "split.json"],
    "hub": ["'test_resnet", "HF_HUB_OFFLINE", "HF_HOME", "medtransfer pretrain"],
    "misfit": ["w.safetensors' does not fit backbone 'test_resnet'", "missing", "remedy"],
    "no_own_weights": [
        *("no weights of source 'sae'", "'test_resnet' made on this dataset"),
        "medtransfer pretrain source=sae backbone=timm backbone.name=test_resnet dataset=DATASET",
    ],
    "no_weights": ["no pre-trained weights for backbone 'test_resnet'", "medtransfer pretrain"],
    "unwritable_store": ["file/mlflow.db", "tracking.uri"],
    "unwritable_cache": ["file/cache", "paths.cache"],
    "unknown_model": ["'test_resnett'", "did you mean 'test_resnet'"],
    "unknown_metric": ["'aurc'", "did you mean 'auroc'", "balanced_accuracy"],
}


def arguments(ground, name):
    given = [str(argument) for argument in ground[name]()]
    data = () if "dataset=image_folder" in given else PHANTOM
    chosen = {argument.partition("=")[0] for argument in given}
    small = [argument for argument in SMALL if argument.partition("=")[0] not in chosen]
    return [*small, *data, *given]


def assert_refused(result, list_runs, home, said):
    assert result.code == 2, result
    assert result.err.startswith("error: ")
    for part in said:
        assert part in result.err
    assert "Traceback" not in result.out + result.err
    assert result.out == ""
    assert list_runs() == []
    assert not (home / "checkpoints").exists()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_the_way_out_and_leaves_no_run(cli, ground, list_runs, home, name):
    result = cli("train", *arguments(ground, name))
    assert_refused(result, list_runs, home, MISTAKES[name])


IN_SWEEPS = ["unknown_choice", "wrong_type", "truncated_image", "two_splits", "misfit"]


@pytest.mark.parametrize("name", [*IN_SWEEPS, "unwritable_store"])
def test_a_sweep_with_a_mistake_does_not_start(cli, ground, list_runs, home, name):
    result = cli("train", "-m", *arguments(ground, name), "seed=0,1")
    assert_refused(result, list_runs, home, MISTAKES[name])


@pytest.mark.parametrize(
    ("swept", "said"),
    [
        ("optimizer.lr=0.1,abc", ["optimizer.lr='abc'"]),
        ("weights=random,imagenet", ["'test_resnet", "HF_HOME"]),
        ("dataset=phantom,image_folder", ["dataset.root"]),
        ("strategy.batchnorm=auto,sometimes", ["strategy.batchnorm='sometimes'"]),
        ("dataset.split.seed=0,-1", ["dataset.split.seed=-1"]),
        ("seed=0,x", ["seed='x'"]),
    ],
)
def test_a_mistake_in_the_last_trial_alone_ends_the_sweep_before_the_first(
    cli, list_runs, home, swept, said
):
    data = () if "dataset=" in swept else PHANTOM
    result = cli("train", "-m", *SMALL, *data, swept)
    assert_refused(result, list_runs, home, said)


def test_identical_images_on_two_sides_are_leakage_with_an_exit_code_of_its_own(
    cli, image_tree, tmp_path, list_runs
):
    root = image_tree(a=4, b=4)
    PILImage.open(root / "a" / "0.png").save(root / "b" / "0.png")
    ids = [[f"{name}/{i}.png" for name in "ab"] for i in range(4)]
    ids[0], ids[2] = [*ids[0][:1], *ids[2]], ids[0][1:]
    split = {"train": ids[0] + ids[1], "val": ids[2], "test": ids[3]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    result = cli(
        *("train", *SMALL, "dataset=image_folder", f"dataset.root={root}"),
        *("dataset.split.kind=file", f"dataset.split.file={tmp_path}/split.json"),
    )
    assert result.code == 3
    assert "'a/0.png' (train)" in result.err
    assert "'b/0.png' (val)" in result.err
    assert list_runs() == []

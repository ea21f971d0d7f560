"""What every choice of `dataset` keeps, the ones of the future included."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from annotated import SQUARE, write_coco, write_masks, write_voc
from medtransfer.app import config_dir
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data.base import Annotation, Dataset
from medtransfer.testing import datasets as checks

# What a choice needs to be small, and the folder of real data that it reads.
SMALL = {"phantom": ["dataset.patients=18", "dataset.size=32", "dataset.image_size=32"]}
REAL = {"busi": "busi", "isbi2012": "isbi2012", "bccd": "bccd"}

CHOICES = [
    pytest.param(path.stem, marks=pytest.mark.real_data(REAL[path.stem]))
    if path.stem in REAL
    else path.stem
    for path in sorted(config_dir().glob("dataset/*.yaml"))
]


@pytest.fixture
def folders(image_tree, tmp_path):
    """Return what those choices need that read a folder of the user."""
    boxes = [[SQUARE]] * 9
    return {
        "image_folder": lambda: [f"dataset.root={image_tree(a=6, b=6)}"],
        "mask_folder": lambda: [
            f"dataset.root={write_masks(tmp_path / 'own', 9)}",
            "dataset.values={lesion: 255}",
        ],
        "voc": lambda: [
            f"dataset.root={write_voc(tmp_path / 'own', boxes)}",
            "dataset.classes=[cell]",
        ],
        "coco": lambda: [f"dataset.root={write_coco(tmp_path / 'own', boxes, ['cell'])}"],
        "csv_manifest": lambda: [
            f"dataset.root={write_table(image_tree(a=6, b=6))}",
            "dataset.file=all.csv",
        ],
        "medmnist": lambda: [
            "dataset.name=pneumoniamnist",
            f"dataset.file={write_npz(tmp_path / 'own.npz')}",
        ],
    }


def write_table(root: Path) -> Path:
    """List a tree of images by class in a table."""
    files = sorted(root.rglob("*.png"))
    rows = [f"{file.relative_to(root)},{file.parent.name}" for file in files]
    (root / "all.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    return root


def write_npz(path: Path) -> Path:
    """Write a few random images as MedMNIST has them."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(6, dtype=np.uint8)[:, None] % 2
    np.savez(path, **arrays)
    return path


@pytest.fixture(params=CHOICES)
def anew(request, compose, folders):
    """Return a function that builds a choice, always of one configuration."""
    needs = folders.get(request.param, lambda: SMALL.get(request.param, []))()
    config = compose(f"dataset={request.param}", *needs).typed(TrainConfig)
    return lambda: build(config.dataset, Dataset)


@pytest.fixture
def dataset(anew):
    return anew()


def test_a_dataset_declares_what_it_provides(dataset):
    checks.provides_what_is_known(dataset)


def test_samples_are_unique_and_come_in_a_stable_order(dataset, anew):
    checks.has_unique_samples(dataset)
    checks.has_stable_samples(dataset, anew())


def test_pixels_are_grey_or_colour_and_stay_the_same(dataset):
    checks.has_plain_pixels(dataset)


def test_an_exam_is_of_one_patient(dataset):
    checks.has_whole_exams(dataset)


def test_a_dataset_is_divided_by_group_with_every_class_on_every_side(dataset, tmp_path):
    checks.is_divided_by_group(dataset, tmp_path)


def test_hashes_are_the_same_when_they_are_computed_anew(dataset, anew, tmp_path):
    checks.has_stable_hashes(dataset, anew(), tmp_path)


def test_masks_and_boxes_fit_their_images_and_name_their_classes(dataset):
    checks.annotates_its_images(dataset)


@pytest.mark.parametrize("annotation", get_args(Annotation))
def test_what_it_provides_comes_in_batches(dataset, annotation, tmp_path):
    if annotation not in dataset.provides:
        pytest.skip("not provided")
    checks.comes_in_batches(dataset, annotation, tmp_path)


def test_every_real_dataset_is_known_here():
    assert set(REAL) <= {path.stem for path in Path(config_dir()).glob("dataset/*.yaml")}

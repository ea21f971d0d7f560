"""What every choice of `dataset` keeps, the ones of the future included."""

from pathlib import Path

import numpy as np
import pytest
import torch

from annotated import SQUARE, write_coco, write_masks, write_voc
from medtransfer.app import config_dir
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data.base import IGNORED, Boxes, Dataset
from medtransfer.data.loading import Data

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
def dataset(request, compose, folders):
    needs = folders.get(request.param, lambda: SMALL.get(request.param, []))()
    config = compose(f"dataset={request.param}", *needs).typed(TrainConfig)
    return build(config.dataset, Dataset)


def test_a_dataset_declares_what_it_provides(dataset):
    assert dataset.provides
    assert dataset.provides <= {"class", "labels", "exam", "mask", "boxes"}


def test_samples_are_unique_and_come_in_a_stable_order(dataset):
    names, records = dataset.records()
    assert len({record.sample_id for record in records}) == len(records)
    assert {record.target for record in records} == set(range(len(names)))
    assert dataset.records() == (names, records)
    assert dataset.fingerprint(records) == dataset.fingerprint(records)


def test_pixels_are_8_bit_grey_or_colour(dataset):
    names, records = dataset.records()
    for target in range(len(names)):
        record = next(r for r in records if r.target == target)
        image = dataset.read(record)
        assert image.dtype == np.uint8
        assert image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        assert image.min() < image.max()
        assert np.array_equal(image, dataset.read(record))


def test_a_dataset_is_divided_by_group_with_every_class_on_every_side(dataset, tmp_path):
    data = Data.open(dataset, cache=tmp_path, seed=0)
    sides = [getattr(data.division, name) for name in ("train", "val", "test")]
    groups = [{data.decoded.records[i].group_id for i in side} for side in sides]
    assert sum(map(len, groups)) == len(set.union(*groups))
    for side in sides:
        assert set(data.targets[side]) == set(range(len(data.spec.class_names)))
    assert sum(data.spec.train_counts) == len(sides[0])
    data.seal.open()
    batch = next(iter(data.loader("test", batch_size=4)))
    size = dataset.image_size
    assert batch["image"].shape == (min(4, len(sides[2])), dataset.channels, size, size)


def test_masks_and_boxes_fit_their_images_and_name_their_classes(dataset):
    _, records = dataset.records()
    names = dataset.foreground()
    assert bool(names) == bool({"mask", "boxes"} & dataset.provides)
    for record in records[:20]:
        height, width = dataset.read(record).shape[:2]
        if "mask" in dataset.provides:
            mask = dataset.mask(record)
            assert mask.dtype == np.uint8
            assert mask.shape == (height, width)
            assert set(np.unique(mask)) <= {*range(len(names) + 1), IGNORED}
        if "boxes" in dataset.provides:
            found = dataset.boxes(record)
            assert isinstance(found, Boxes)
            assert (found.boxes.dtype, found.labels.dtype) == (np.float32, np.int64)
            assert found.boxes.shape == (len(found.labels), 4)
            assert set(found.labels) <= set(range(len(names)))
            assert (found.boxes[:, :2] >= 0).all()
            assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
            assert (found.boxes[:, 2:] <= [width, height]).all()


@pytest.mark.parametrize("annotation", ["mask", "boxes"])
def test_what_it_provides_comes_in_batches(dataset, annotation, tmp_path):
    if annotation not in dataset.provides:
        pytest.skip("not provided")
    data = Data.open(dataset, annotation, cache=tmp_path, seed=0)
    assert data.spec.class_names == dataset.foreground()
    assert all(0 < count <= len(data.train) for count in data.spec.train_counts)
    batch = next(iter(data.loader("train", batch_size=3)))
    size = dataset.image_size
    assert batch["image"].shape == (3, dataset.channels, size, size)
    if annotation == "mask":
        assert batch["mask"].shape == (3, size, size)
        assert batch["mask"].dtype == torch.int64
    else:
        assert len(batch["boxes"]) == len(batch["labels"]) == 3
        for boxes, labels in zip(batch["boxes"], batch["labels"], strict=True):
            assert boxes.shape == (len(labels), 4)


def test_every_real_dataset_is_known_here():
    assert set(REAL) <= {path.stem for path in Path(config_dir()).glob("dataset/*.yaml")}

"""What every choice of `dataset` keeps, the ones of the future included."""

from pathlib import Path

import numpy as np
import pytest

from medtransfer.app import config_dir
from medtransfer.config import TrainConfig, build
from medtransfer.data.base import Dataset
from medtransfer.data.loading import Data

# What a choice needs to be small, and the folder of real data that it reads.
SMALL = {"phantom": ["dataset.patients=18", "dataset.size=32", "dataset.image_size=32"]}
REAL = {"busi": "busi"}

CHOICES = [
    pytest.param(path.stem, marks=pytest.mark.real_data(REAL[path.stem]))
    if path.stem in REAL
    else path.stem
    for path in sorted(config_dir().glob("dataset/*.yaml"))
]


@pytest.fixture(params=CHOICES)
def dataset(request, compose, image_tree):
    needs = SMALL.get(request.param, [])
    if request.param == "image_folder":
        needs = [f"dataset.root={image_tree(a=6, b=6)}"]
    config = compose(f"dataset={request.param}", *needs).typed(TrainConfig)
    return build(config.dataset, Dataset)


def test_a_dataset_declares_what_it_provides(dataset):
    assert dataset.provides
    assert dataset.provides <= {"class", "boxes", "mask", "exam"}


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
    batch = next(iter(data.loader("test", batch_size=4)))
    size = dataset.image_size
    assert batch["image"].shape == (min(4, len(sides[2])), dataset.channels, size, size)


def test_every_real_dataset_is_known_here():
    assert set(REAL) <= {path.stem for path in Path(config_dir()).glob("dataset/*.yaml")}

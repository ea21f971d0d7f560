from dataclasses import replace

import numpy as np
import pytest

from medtransfer.data.loading import Data
from medtransfer.data.splits import Split


def pixels(dataset):
    return np.stack([dataset.read(record) for record in dataset.records()[1]])


def fingerprint(dataset):
    return dataset.fingerprint(dataset.records()[1])


def test_patients_are_equally_many_in_each_class(phantom):
    names, records = phantom.records()
    assert names == ("normal", "benign", "malignant")
    assert np.bincount([record.target for record in records]).tolist() == [6, 6, 6]
    assert len({record.group_id for record in records}) == 18


def test_views_of_a_patient_are_one_group_with_one_diagnosis(phantom, tmp_path):
    several = replace(phantom, images=3)
    records = several.records()[1]
    assert len({record.sample_id for record in records}) == len(records) == 54
    for record in records:
        alike = [r for r in records if r.group_id == record.group_id]
        assert len(alike) == 3
        assert {(r.exam_id, r.target) for r in alike} == {(record.exam_id, record.target)}
    views = [several.read(record) for record in records[:3]]
    assert len({view.tobytes() for view in views}) == 3
    division = Data.open(several, cache=tmp_path, seed=0).division
    sides = [{records[i].group_id for i in getattr(division, s)} for s in ("train", "val", "test")]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 18


def test_images_are_the_same_whenever_and_in_whatever_order_they_are_read(phantom):
    records = phantom.records()[1]
    first = pixels(phantom)
    np.random.seed(1)
    backwards = [phantom.read(record) for record in reversed(records)]
    assert np.array_equal(first, backwards[::-1])
    assert first.dtype == np.uint8
    assert first.shape == (18, 32, 32)


def test_more_patients_leave_the_first_ones_as_they_are(phantom):
    assert np.array_equal(pixels(phantom), pixels(replace(phantom, patients=21))[:18])


@pytest.mark.parametrize(
    "change", [{"difficulty": 0.6}, {"data_seed": 1}, {"size": 33}], ids=lambda c: next(iter(c))
)
def test_what_changes_the_pixels_changes_the_fingerprint(phantom, change):
    other = replace(phantom, **change)
    assert not np.array_equal(pixels(phantom), pixels(other))
    assert fingerprint(phantom) != fingerprint(other)


@pytest.mark.parametrize(
    "change",
    [{"patients": 21}, {"images": 2}, {"images": 2, "lesion_views": 1}],
    ids=" ".join,
)
def test_what_changes_the_samples_changes_the_fingerprint(phantom, change):
    assert fingerprint(phantom) != fingerprint(replace(phantom, **change))


@pytest.mark.parametrize(
    "change",
    [
        {"fraction": 0.5},
        {"shots": 2},
        {"split": Split(kind="holdout", seed=1, file=None, ratios=(0.5, 0.2, 0.3))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_seen_of_it_leaves_the_fingerprint(phantom, change):
    assert fingerprint(phantom) == fingerprint(replace(phantom, **change))


def test_lesions_have_masks_and_boxes_of_their_class_where_they_show(phantom):
    dataset = replace(phantom, images=2, lesion_views=1)
    assert dataset.foreground() == ("benign", "malignant")
    shown = 0
    for record in dataset.records()[1]:
        mask, found = dataset.mask(record), dataset.boxes(record)
        assert len(found.labels) == mask.any() <= record.target
        shown += len(found.labels)
        if mask.any():
            assert set(np.unique(mask)) == {0, record.target}
            assert found.labels.tolist() == [record.target - 1]
            rows, columns = np.nonzero(mask)
            frame = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert found.boxes.tolist() == [frame]
    assert shown == 12


def test_a_group_that_was_merged_still_finds_its_exam(phantom):
    record = phantom.records()[1][4]
    merged = replace(record, group_id="patient00000")
    assert np.array_equal(phantom.read(merged), phantom.read(record))

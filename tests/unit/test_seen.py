"""What weights have seen is not tested on."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtransfer.data import facts
from medtransfer.data.base import DataSpec, Record
from medtransfer.data.decoded import Decoded
from medtransfer.data.image_folder import ImageFolder
from medtransfer.data.loading import Data
from medtransfer.data.seal import Seal
from medtransfer.data.seen import refuse_seen, seen
from medtransfer.data.splits import SPLITS, Division, merge_groups
from medtransfer.errors import LeakageError

SPEC = DataSpec(("a", "b"), 1, 8, (1, 1), "data", "split")


def make_data(samples, sides=None, identity="Clinic"):
    """Return data of (group, pixels) pairs; `sides` gives each group's split."""
    contents = {f"{k}.png": pixels for k, (_, pixels) in enumerate(samples)}
    groups = merge_groups([group for group, _ in samples], list(contents.values()))
    records = tuple(
        Record(name, group, group, 0) for name, group in zip(contents, groups, strict=True)
    )
    images = np.zeros((len(records), 1, 8, 8), np.uint8)
    decoded = Decoded(
        class_names=("a", "b"),
        records=records,
        patients=tuple(record.group_id for record in records),
        images=images,
        facts=np.zeros(len(records), facts.DTYPE),
        skipped=(),
        contents=contents,
        data_hash="data",
    )
    side = [(sides or {}).get(record.group_id, "train") for record in records]
    indices = {s: np.asarray([i for i, own in enumerate(side) if own == s], int) for s in SPLITS}
    division = Division(**indices, hash="split")
    seal = Seal(division.test, len(records), allowed=True)
    return Data(decoded, division, division.train, SPEC, 0, identity, seal)


def leaks(data, before):
    try:
        refuse_seen(data, before, "the weights")
    except LeakageError:
        return True
    return False


GROUPS = st.sampled_from([f"patient{k}" for k in range(6)])
PIXELS = st.sampled_from([f"pixels{k}" for k in range(40)])
SAMPLES = st.lists(st.tuples(GROUPS, PIXELS), min_size=1, max_size=12)
SIDES = st.fixed_dictionaries(
    {f"patient{k}": st.sampled_from(SPLITS) for k in range(6)},
)


@given(samples=SAMPLES, sides=SIDES)
def test_what_learnt_from_the_same_training_part_may_be_tested(samples, sides):
    data = make_data(samples, sides)
    for indices in (data.division.train, data.division.val, data.division.train[:2], []):
        assert not leaks(data, seen(data, indices))


@given(samples=SAMPLES, later=SAMPLES, sides=SIDES, other=SIDES)
def test_a_patient_who_was_seen_is_refused_whatever_images_there_are_now(
    samples, later, sides, other
):
    # no image of the one lies in the other, so that only the names can tell
    now = make_data([(group, f"new {pixels}") for group, pixels in later], other)
    before = make_data(samples, sides)
    tested = {now.decoded.records[i].group_id for i in now.division.test}
    for some in (before.train, before.train[::2]):
        common = {before.decoded.records[i].group_id for i in some} & tested
        assert leaks(now, seen(before, some)) is bool(common)


@given(samples=SAMPLES, later=SAMPLES, sides=SIDES)
def test_in_another_collection_the_pixels_decide_and_not_the_names(samples, later, sides):
    before = make_data(samples, identity="Elsewhere")
    now = make_data(later, sides)
    known = {pixels for _, pixels in samples}
    records = now.decoded.records
    of_group = {
        records[i].group_id: {
            now.decoded.contents[r.sample_id] for r in records if r.group_id == records[i].group_id
        }
        for i in now.division.test
    }
    expected = any(known & pixels for pixels in of_group.values())
    assert leaks(now, seen(before, before.train)) is expected


@given(samples=SAMPLES)
def test_hashes_tell_nothing_but_whether_it_is_the_same(samples):
    data = make_data(samples)
    known = seen(data, data.train)
    assert set(known) == {"groups", "images"}
    for kind in known.values():
        assert kind == sorted(set(kind))
        assert all(re.fullmatch("[0-9a-f]{16}", value) for value in kind)
    assert len(known["groups"]) == len({r.group_id for r in data.decoded.records})
    assert len(known["images"]) == len({pixels for _, pixels in samples})
    assert known == seen(data, reversed(data.train))
    for text in {part for sample in samples for part in sample}:
        assert sha256(text.encode()).hexdigest()[:16] not in known["groups"]
    elsewhere = seen(replace(data, identity="Elsewhere"), data.train)
    assert not set(elsewhere["groups"]) & set(known["groups"])
    assert elsewhere["images"] == known["images"]


def test_the_message_names_the_weights_how_many_and_the_first():
    sides = {"a": "test", "b": "test", "c": "train", "d": "test"}
    samples = [("a", "1"), ("a", "2"), ("b", "3"), ("c", "4"), ("d", "5")]
    data = make_data(samples, sides)
    with pytest.raises(LeakageError) as error:
        refuse_seen(data, seen(data, [0, 2, 3]), "the weights of 'sae'")
    told = "the weights of 'sae' were trained on 2 of the 3 groups that this trial tests on"
    assert error.value.problem == f"{told} (first 'a')"
    assert "dataset.split" in error.value.remedy
    assert error.value.exit_code == 3


def test_other_images_of_a_patient_are_refused_when_one_was_seen_elsewhere():
    before = make_data([("x", "same"), ("y", "else")], identity="Elsewhere")
    sides = {"a": "test", "b": "train"}
    now = make_data([("a", "same"), ("a", "another"), ("b", "third")], sides)
    assert leaks(now, seen(before, [0]))
    assert not leaks(now, seen(before, [1]))
    one_test_image = replace(now, division=replace(now.division, test=np.asarray([1])))
    assert leaks(one_test_image, seen(before, [0]))


@pytest.mark.parametrize("before", [{}, {"groups": []}, {"images": ["0" * 16]}, {"more": ["x"]}])
def test_weights_that_tell_little_pass(before):
    data = make_data([("a", "1"), ("b", "2")], {"a": "test", "b": "train"})
    assert not leaks(data, before)


def test_collections_are_told_apart_by_what_gives_their_groups_names(phantom, tmp_path):
    assert phantom.identity == replace(phantom, patients=9, size=64, channels=3).identity
    assert phantom.identity != replace(phantom, data_seed=1).identity
    none = dict.fromkeys(("classes", "shots"))
    keys = {"image_size": 8, "channels": 1, "fraction": 1, "on_error": "raise", **none}
    keys["split"] = phantom.split
    first, second = (ImageFolder(root=tmp_path / name, **keys) for name in "ab")
    assert first.identity != second.identity
    assert first.identity == ImageFolder(root=tmp_path / "b" / ".." / "a", **keys).identity


def test_the_same_patients_at_another_size_are_the_same(phantom, tmp_path):
    small = Data.open(phantom, cache=tmp_path, seed=0)
    other = replace(phantom, image_size=64, channels=3, split=replace(phantom.split, seed=3))
    large = Data.open(other, cache=tmp_path, seed=0)
    known = seen(small, range(len(small.decoded.records)))
    assert known == seen(large, range(len(large.decoded.records)))
    assert leaks(large, seen(small, small.train))

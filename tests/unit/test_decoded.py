import multiprocessing
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtransfer.data.base import Dataset, Record
from medtransfer.data.decoded import decode, letterbox
from medtransfer.data.splits import Split
from medtransfer.errors import DataError, StoreError

SPLIT = Split(kind="holdout", seed=0, file=None, ratios=(0.6, 0.2, 0.2))


@dataclass(frozen=True, kw_only=True)
class Toy(Dataset):
    """Images in memory; each reading leaves a line in `log`."""

    provides = frozenset({"class"})

    samples: tuple[tuple[Record, np.ndarray | None], ...]
    log: Path

    def records(self):
        return ("a", "b"), [record for record, _ in self.samples]

    def read(self, record):
        with self.log.open("a") as file:
            file.write(f"{record.sample_id}\n")
        time.sleep(0.002)
        image = next(image for r, image in self.samples if r.sample_id == record.sample_id)
        if image is None:
            raise DataError(f"'{record.sample_id}' is broken", remedy="mend it")
        return image

    def fingerprint(self, records):
        images = {record.sample_id: image for record, image in self.samples}
        return str([(r.sample_id, repr(images[r.sample_id])) for r in records])

    def reads(self):
        return len(self.log.read_text().splitlines())


@pytest.fixture
def toy(tmp_path):
    rng = np.random.default_rng(0)
    samples = tuple(
        (Record(f"i{i}", f"p{i}", f"e{i}", i % 2), rng.integers(0, 256, (9, 12), dtype=np.uint8))
        for i in range(8)
    )
    return Toy(
        samples=samples,
        log=tmp_path / "log",
        image_size=16,
        channels=1,
        fraction=1,
        shots=None,
        on_error="raise",
        split=SPLIT,
    )


def changed(toy, index, image=None, **fields):
    samples = list(toy.samples)
    record, old = samples[index]
    samples[index] = (replace(record, **fields), old if image is None else image)
    return replace(toy, samples=tuple(samples))


def broken(toy, *indices, **fields):
    samples = tuple((r, None if i in indices else m) for i, (r, m) in enumerate(toy.samples))
    return replace(toy, samples=samples, **fields)


def test_what_is_decoded_is_what_was_read(toy, tmp_path):
    decoded = decode(toy, tmp_path)
    assert decoded.class_names == ("a", "b")
    assert decoded.records == tuple(record for record, _ in toy.samples)
    assert decoded.images.shape == (8, 1, 16, 16)
    assert decoded.images.dtype == np.uint8
    for (_, image), stored in zip(toy.samples, decoded.images, strict=True):
        assert np.array_equal(stored, letterbox(image, 16, 1))


def test_a_second_time_nothing_is_read(toy, tmp_path):
    first = decode(toy, tmp_path)
    second = decode(replace(toy, fraction=0.5), tmp_path)
    assert toy.reads() == 8
    assert np.array_equal(first.images, second.images)
    assert first.data_hash == second.data_hash


@pytest.mark.parametrize(
    "change",
    [
        lambda toy: replace(toy, image_size=24),
        lambda toy: replace(toy, channels=3),
        lambda toy: changed(toy, 3, np.zeros((9, 12), np.uint8)),
    ],
    ids=["size", "channels", "file"],
)
def test_what_changes_the_pixels_is_read_again(toy, tmp_path, change):
    decode(toy, tmp_path)
    decode(change(toy), tmp_path)
    assert toy.reads() == 16
    decode(toy, tmp_path)  # the first entry is still there
    assert toy.reads() == 16


def pixel(toy):
    image = toy.samples[0][1].copy()
    image[0, 0] ^= 1
    return changed(toy, 0, image)


@pytest.mark.parametrize(
    "change",
    [pixel, lambda toy: changed(toy, 0, target=1), lambda toy: changed(toy, 0, group_id="p1")],
    ids=["pixel", "target", "group"],
)
def test_the_hash_of_the_data_covers(toy, tmp_path, change):
    assert decode(toy, tmp_path).data_hash != decode(change(toy), tmp_path).data_hash


def test_identical_images_are_one_group_across_classes(toy, tmp_path):
    decoded = decode(changed(toy, 1, toy.samples[4][1]), tmp_path)
    groups = [record.group_id for record in decoded.records]
    assert groups[1] == groups[4]
    assert decoded.records[1].target != decoded.records[4].target
    assert len(set(groups)) == 7


def test_bytes_of_another_shape_are_another_image(toy, tmp_path):
    turned = changed(toy, 1, toy.samples[4][1].reshape(12, 9))
    assert len({record.group_id for record in decode(turned, tmp_path).records}) == 8


def test_a_broken_image_ends_the_decoding_and_leaves_nothing(toy, tmp_path):
    with pytest.raises(DataError, match="'i5' is broken"):
        decode(broken(toy, 5), tmp_path)
    assert [path for path in (tmp_path / "decoded").iterdir() if path.suffix != ".lock"] == []


def test_a_broken_image_may_be_skipped_and_is_counted(toy, tmp_path):
    skipping = broken(toy, 2, 5, on_error="skip")
    decoded = decode(skipping, tmp_path)
    assert decoded.skipped == ("'i2' is broken", "'i5' is broken")
    assert [record.sample_id for record in decoded.records] == ["i0", "i1", "i3", "i4", "i6", "i7"]
    assert np.array_equal(decoded.images[2], letterbox(toy.samples[3][1], 16, 1))
    # what was skipped once does not slip through later
    with pytest.raises(DataError, match="'i2' is broken") as caught:
        decode(replace(skipping, on_error="raise"), tmp_path)
    assert caught.value.remedy == "mend it"


def test_a_class_that_was_skipped_whole_is_named(toy, tmp_path):
    with pytest.raises(DataError, match="class 'b' has no image"):
        decode(broken(toy, 1, 3, 5, 7, on_error="skip"), tmp_path)


def test_two_samples_of_one_id_are_refused(toy, tmp_path):
    with pytest.raises(DataError, match="'i1' is listed 2 times"):
        decode(changed(toy, 2, sample_id="i1"), tmp_path)


def test_what_a_killed_writer_left_does_no_harm_and_is_cleared_away(toy, tmp_path):
    decode(toy, tmp_path)
    (entry,) = (path for path in (tmp_path / "decoded").iterdir() if path.is_dir())
    left = entry.with_name(f"partial-{entry.name}-x")
    entry.rename(left)
    assert len(decode(toy, tmp_path).records) == 8
    assert [path for path in (tmp_path / "decoded").iterdir() if path.is_dir()] == [entry]


def test_a_cache_that_cannot_be_written_says_where(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cache '.*file/cache/decoded' cannot be written") as e:
        decode(toy, tmp_path / "file" / "cache")
    assert "paths.cache" in e.value.remedy


def test_a_full_disk_is_told_and_leaves_nothing(toy, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the images have 2048 bytes
    try:
        with pytest.raises(StoreError, match=r"cannot be written: .*large"):
            decode(toy, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in (tmp_path / "decoded").iterdir() if path.suffix != ".lock"] == []


def test_a_damaged_cache_is_told_and_decoded_again(toy, tmp_path):
    expected = np.array(decode(toy, tmp_path).images)
    (file,) = tmp_path.glob("decoded/*/images.npy")
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    os.utime(file, (1, 1))  # clocks of file systems are coarse
    with pytest.warns(UserWarning, match="'images.npy' is not as it was written"):
        assert np.array_equal(decode(toy, tmp_path).images, expected)
    assert toy.reads() == 16


def _decode(given):
    return decode(*given).data_hash


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_whoever_comes_at_once_waits_for_the_first(toy, tmp_path, kind):
    if kind == "threads":
        pool = ThreadPoolExecutor(4)
    else:
        pool = ProcessPoolExecutor(2, multiprocessing.get_context("fork"))
    with pool:
        hashes = set(pool.map(_decode, [(toy, tmp_path)] * 4))
    assert len(hashes) == 1
    assert toy.reads() == 8


@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    colour=st.booleans(),
    size=st.integers(8, 64),
    channels=st.sampled_from([1, 3]),
)
def test_a_letterbox_keeps_proportions_centres_and_pads_with_black(
    height, width, colour, size, channels
):
    image = np.full((height, width, 3) if colour else (height, width), 255, np.uint8)
    boxed = letterbox(image, size, channels)
    assert boxed.shape == (channels, size, size)
    assert boxed.dtype == np.uint8
    assert set(np.unique(boxed)) <= {0, 255}
    for axis, side in ((1, height), (0, width)):
        inside = np.flatnonzero(boxed[0].any(axis=axis))
        expected = max(1, round(side * size / max(height, width)))
        assert len(inside) == inside[-1] - inside[0] + 1 == expected
        assert abs(inside[0] - (size - 1 - inside[-1])) <= 1


def test_a_letterbox_of_the_right_size_changes_no_pixel():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(letterbox(image, 16, 3), image.transpose(2, 0, 1))
    grey = image[..., 0]
    assert np.array_equal(letterbox(grey, 16, 3), np.stack([grey] * 3))


def test_contents_are_those_of_the_pixels_whatever_their_size_and_name(toy, tmp_path):
    decoded = decode(toy, tmp_path)
    assert set(decoded.contents) == {record.sample_id for record, _ in toy.samples}
    assert len(set(decoded.contents.values())) == len(toy.samples)
    other = replace(toy, image_size=8, samples=(*toy.samples[:-1], (toy.samples[-1][0], None)))
    other = replace(other, on_error="skip")
    renamed = replace(
        toy,
        samples=tuple((replace(r, sample_id=f"{r.sample_id}x"), image) for r, image in toy.samples),
    )
    some = decode(other, tmp_path).contents
    assert some == {k: v for k, v in decoded.contents.items() if k != toy.samples[-1][0].sample_id}
    assert decode(renamed, tmp_path).contents == {f"{k}x": v for k, v in decoded.contents.items()}

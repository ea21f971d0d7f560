import json
import multiprocessing
import os
import resource
import signal
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout
from hypothesis import given
from hypothesis import strategies as st

from medtransfer.cache import array_file, entry
from medtransfer.errors import StoreError


class Writer:
    """Writes a file of a given size, and counts how often."""

    def __init__(self, size=100):
        self.size = size
        self.calls = 0

    def __call__(self, folder):
        self.calls += 1
        (folder / "a.bin").write_bytes(
            bytes(range(self.size % 256)) + bytes(self.size // 256 * 256)
        )
        (folder / "b.bin").write_bytes(b"b")


def folders(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


@contextmanager
def file_limit(size):
    """Let no file grow beyond a size, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_entry_is_written_once_and_found_again(tmp_path):
    write = Writer()
    for _ in range(3):
        with entry(tmp_path / "deep" / "cache", "k", write) as folder:
            assert (folder / "a.bin").stat().st_size == 100
    assert write.calls == 1
    assert folders(tmp_path / "deep" / "cache") == ["k"]


def test_keys_are_apart(tmp_path):
    for key, size in (("k", 10), ("kk", 20)):
        with entry(tmp_path, key, Writer(size)):
            pass
    for key, size in (("k", 10), ("kk", 20)):
        with entry(tmp_path, key, Writer(0)) as folder:
            assert (folder / "a.bin").stat().st_size == size


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_nothing(tmp_path, error):
    def write(folder):
        (folder / "a.bin").write_bytes(b"a")
        raise error

    with pytest.raises(type(error)), entry(tmp_path, "k", write):
        pass
    assert folders(tmp_path) == []


def test_what_goes_wrong_with_a_held_entry_is_not_the_caches_fault(tmp_path):
    with pytest.raises(OSError, match="mine"), entry(tmp_path, "k", Writer()):
        raise OSError("mine")
    with entry(tmp_path, "k", Writer(), max_gb=1):  # and the lock is free again
        pass


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    write = Writer(5000)
    told = pytest.raises(StoreError, match=r"the cache '.*' cannot be written: .*large")
    with file_limit(1000), told as caught, entry(tmp_path, "k", write):
        pass
    assert "free some space" in caught.value.remedy
    assert folders(tmp_path) == []
    with entry(tmp_path, "k", write) as folder:
        assert (folder / "a.bin").stat().st_size >= 4000


def test_a_cache_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match="cannot be written"),
        entry(tmp_path / "file", "k", Writer()),
    ):
        pass


def damage_bytes(folder):
    file = folder / "a.bin"
    file.write_bytes(b"?" + file.read_bytes()[1:])
    os.utime(file, (1, 1))  # clocks of file systems are coarse


def damage_length(folder):
    os.truncate(folder / "a.bin", 50)


def damage_presence(folder):
    (folder / "b.bin").unlink()


def damage_index(folder):
    (folder / "index.json").write_text('{"a.bin": ')


def damage_index_presence(folder):
    (folder / "index.json").unlink()


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (damage_bytes, "a.bin"),
        (damage_length, "a.bin"),
        (damage_presence, "b.bin"),
        (damage_index, "index.json"),
        (damage_index_presence, "index.json"),
    ],
)
@pytest.mark.parametrize("opened", [1, 2])  # the second time the files have been checked
def test_a_damaged_entry_is_told_and_made_again(tmp_path, damage, name, opened):
    write = Writer()
    for _ in range(opened):
        with entry(tmp_path, "k", write) as folder:
            expected = (folder / "a.bin").read_bytes()
    damage(tmp_path / "k")
    told = pytest.warns(UserWarning, match=f"'{name}' is not as it was written")
    with told, entry(tmp_path, "k", write) as folder:
        assert (folder / "a.bin").read_bytes() == expected
    assert write.calls == 2
    assert folders(tmp_path) == ["k"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with entry(tmp_path, "k", write):
            pass
    assert write.calls == 2


def test_sound_files_are_read_for_checking_once(tmp_path, monkeypatch):
    with entry(tmp_path, "k", Writer()):
        pass
    opened = []
    plain = Path.open
    monkeypatch.setattr(Path, "open", lambda p, *a, **k: opened.append(p.name) or plain(p, *a, **k))
    for _ in range(3):
        with entry(tmp_path, "k", Writer()):
            pass
    assert opened.count("a.bin") == opened.count("b.bin") == 1


def test_what_was_mapped_outlives_a_removal(tmp_path):
    def write(folder):
        np.save(folder / "x.npy", np.arange(10_000))

    with entry(tmp_path, "k", write) as folder:
        mapped = np.load(folder / "x.npy", mmap_mode="r")
    with entry(tmp_path, "other", Writer(), max_gb=0):
        pass
    assert folders(tmp_path) == ["other"]
    assert np.array_equal(mapped, np.arange(10_000))


def test_the_least_recently_used_go_first_and_no_more_than_need_be(tmp_path):
    write = Writer(10_000)
    for second, key in enumerate("abcd"):
        with entry(tmp_path, key, write) as folder:
            os.utime(folder / "index.json", (second, second))
    with entry(tmp_path, "a", write):  # the oldest, used again
        pass
    size = sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    with entry(tmp_path, "e", write, max_gb=3.5 * size / 1e9):
        pass
    assert folders(tmp_path) == ["a", "d", "e"]
    with entry(tmp_path, "d", write, max_gb=0):  # what is found there removes nothing
        pass
    assert folders(tmp_path) == ["a", "d", "e"]


def test_an_entry_larger_than_the_bound_stays_while_it_is_needed(tmp_path):
    with entry(tmp_path, "a", Writer()):
        pass
    with entry(tmp_path, "b", Writer(), max_gb=1e-9) as folder:
        assert (folder / "a.bin").exists()
    assert folders(tmp_path) == ["b"]


def test_what_is_held_is_not_removed(tmp_path):
    with entry(tmp_path, "a", Writer()):
        with entry(tmp_path, "b", Writer(), max_gb=0):
            pass
        assert folders(tmp_path) == ["a", "b"]
    with entry(tmp_path, "c", Writer(), max_gb=0):
        pass
    assert folders(tmp_path) == ["c"]


def test_what_killed_writers_of_other_entries_left_goes_before_all_else(tmp_path):
    left = tmp_path / "partial-gone-1"
    left.mkdir(parents=True)
    (left / "a.bin").write_bytes(bytes(10_000))
    with entry(tmp_path, "a", Writer()):
        pass
    with entry(tmp_path, "b", Writer(), max_gb=5e-6):
        pass
    assert folders(tmp_path) == ["a", "b"]


def test_a_held_entry_is_locked_for_others(tmp_path):
    with entry(tmp_path, "k", Writer()) as folder, pytest.raises(Timeout):
        FileLock(f"{folder}.lock", timeout=0).acquire()


def _write_and_die(cache):
    def write(folder):
        (folder / "a.bin").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    with entry(cache, "k", write):
        pass


def test_what_a_killed_writer_left_is_cleared_away_by_the_next(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_write_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [name.rpartition("-")[0] for name in folders(tmp_path)] == ["partial-k"]
    with entry(tmp_path, "k", Writer()) as folder:
        assert set(json.loads((folder / "index.json").read_text())) == {"a.bin", "b.bin"}
    assert folders(tmp_path) == ["k"]


@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 5),
    kind=st.sampled_from([np.float32, np.int16, np.uint8]),
    data=st.data(),
)
def test_an_array_written_in_parts_is_what_numpy_reads(tmp_path_factory, rows, columns, kind, data):
    path = tmp_path_factory.mktemp("array") / "x.npy"
    written = data.draw(st.integers(0, rows))
    whole = np.zeros((rows, columns), kind)
    whole[:written] = np.random.default_rng(0).integers(0, 100, (written, columns))
    step = data.draw(st.integers(1, rows))
    with array_file(path, whole.shape, kind) as append:
        for start in range(0, written, step):
            append(np.asfortranarray(whole[start : min(start + step, written)]))
    read = np.load(path, mmap_mode="r")
    assert read.dtype == kind
    assert np.array_equal(read, whole)

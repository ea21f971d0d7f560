import os
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from medmnist.info import INFO

from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data import npz
from medtransfer.data.base import Dataset
from medtransfer.data.decoded import decode
from medtransfer.data.loading import Data
from medtransfer.data.medmnist import MedMNIST
from medtransfer.data.splits import Split
from medtransfer.errors import DataError

COUNTS = {"train": 12, "val": 5, "test": 7}
SPLIT = Split(kind="own", seed=0, file=None, ratios=(0.6, 0.2, 0.2), leaks="drop")


def arrays(name="pneumoniamnist", size=28, counts=COUNTS):
    """Return what an archive of a set holds; every image is another, and every class is there."""
    rng = np.random.default_rng(0)
    found = {}
    labels = len(INFO[name]["label"])
    shape = (size, size, 3) if INFO[name]["n_channels"] == 3 else (size, size)
    for side, count in counts.items():
        found[f"{side}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        if "multi-label" in INFO[name]["task"]:
            found[f"{side}_labels"] = rng.integers(0, 2, (count, labels), dtype=np.uint8)
        else:
            found[f"{side}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % labels
    return found


@pytest.fixture
def write(tmp_path):
    def save(found, name="x.npz", packed=True):
        (np.savez_compressed if packed else np.savez)(tmp_path / name, **found)
        return tmp_path / name

    return save


def medmnist(file, name="pneumoniamnist", size=28, **keys):
    settings = {
        "root": Path("nowhere"),
        "download": False,
        "image_size": size,
        "channels": 1,
        "fraction": 1,
        "shots": None,
        "on_error": "raise",
        "split": SPLIT,
    }
    return MedMNIST(name=name, size=size, file=file, **settings | keys)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "size"), [("pneumoniamnist", 28), ("bloodmnist", 64)])
def test_samples_are_the_images_of_the_archive_in_its_own_split(write, name, size, packed):
    counts = {"train": 12, "val": 8, "test": 9}
    found = arrays(name, size, counts)
    dataset = medmnist(write(found, packed=packed), name, size)
    names, records = dataset.records()
    assert names == tuple(INFO[name]["label"].values())
    ids = {side: [f"{side}/{i:05d}" for i in range(n)] for side, n in counts.items()}
    assert [record.sample_id for record in records] == [i for side in ids.values() for i in side]
    assert dataset.lists() == ids
    assert dataset.provides == {"class"}
    for record in [*records, records[3], records[20], records[0]]:  # in any order
        side, number = record.sample_id.split("/")
        assert record.target == found[f"{side}_labels"][int(number), 0]
        assert np.array_equal(dataset.read(record), found[f"{side}_images"][int(number)])


def test_labels_of_the_chest_are_several(write):
    found = arrays("chestmnist")
    dataset = medmnist(write(found), "chestmnist")
    names, records = dataset.records()
    assert names == ("image",)
    assert dataset.labels() == tuple(INFO["chestmnist"]["label"].values())
    assert dataset.provides == {"labels"}
    assert records[13].labels == tuple(found["val_labels"][1].tolist())


def test_labels_may_lie_in_a_single_row(write):
    found = arrays()
    found["val_labels"] = found["val_labels"][:, 0].astype(np.int64)
    assert [r.target for r in medmnist(write(found)).records()[1][12:17]] == [0, 1, 0, 1, 0]


def test_images_are_unpacked_a_few_at_a_time(write, monkeypatch):
    found = arrays(size=64, counts={"train": 2000, "val": 3, "test": 3})
    dataset = medmnist(write(found), size=64)
    monkeypatch.setattr(npz, "CHUNK", 2**18)
    _, records = dataset.records()
    tracemalloc.start()
    for record in records:
        dataset.read(record)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.25 * found["train_images"].nbytes


def test_published_figures_stand_beside_the_published_file_alone(write, monkeypatch):
    import hashlib

    file = write(arrays())
    dataset = medmnist(file)
    assert not dataset.official
    wrong, right = "28209eda62fecd6e6a2d98b1501bb15f", hashlib.md5(file.read_bytes()).hexdigest()
    (note,) = dataset.notes()
    for told in [
        *("x.npz", wrong, right, "12 and not 4708 images in train"),
        *("5 and not 524 images in val", "published figures are withheld"),
    ]:
        assert told in note
    monkeypatch.setitem(INFO["pneumoniamnist"], "MD5", right)
    dataset = medmnist(file)
    assert dataset.official
    (note,) = dataset.notes()
    assert "withheld" not in note
    # Yang et al. 2023, table 3
    assert "resnet18 at 28 px AUROC 0.944, accuracy 0.854" in note
    assert dataset.identity == "MedMNIST pneumoniamnist"  # the same patients in every size


def test_grades_are_said_to_be_in_order(write):
    _, note = medmnist(write(arrays("retinamnist")), "retinamnist").notes()
    assert "task.ordinal=true" in note


def test_the_archive_becomes_data_and_duplicates_across_its_splits_are_left_out(write, tmp_path):
    found = arrays()
    found["train_images"][4] = found["test_images"][0]
    with pytest.warns(UserWarning, match="not the published"):
        data = Data.open(medmnist(write(found)), cache=tmp_path / "cache", seed=0)
    assert (len(data.division.train), len(data.division.val), len(data.division.test)) == (11, 5, 7)
    assert data.division.dropped == 1


def test_a_changed_archive_is_read_anew(write):
    found = arrays()
    file = write(found)
    record = medmnist(file).records()[1][0]
    before = medmnist(file).read(record)
    print_before = medmnist(file).fingerprint([record])
    found["train_images"] = 255 - found["train_images"]
    write(found)
    os.utime(file, ns=(0, 1))
    assert np.array_equal(medmnist(file).read(record), 255 - before)
    assert medmnist(file).fingerprint([record]) != print_before


def damaged(file):
    """Spoil the middle of the packed training images."""
    with zipfile.ZipFile(file) as archive:
        info = archive.getinfo("train_images.npy")
    content = bytearray(file.read_bytes())
    middle = info.header_offset + info.compress_size // 2
    content[middle : middle + 64] = b"\xff" * 64
    file.write_bytes(content)


def test_images_after_a_damaged_place_cannot_be_had(write, tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "CHUNK", 4 * 28 * 28)
    file = write(arrays())
    damaged(file)
    with pytest.raises(DataError, match=r"image 'train/000\d\d' of '.*x.npz' cannot be unpacked"):
        decode(medmnist(file), tmp_path / "cache")
    decoded = decode(medmnist(file, on_error="skip"), tmp_path / "cache")
    sides = [record.sample_id.split("/")[0] for record in decoded.records]
    assert sides.count("val") == 5
    assert sides.count("test") == 7
    assert len(decoded.skipped) == 12 - sides.count("train") >= 4


@pytest.fixture
def package(monkeypatch, write):
    """Let the package write a set in place of downloading it; return how often it did."""
    calls = []

    def download(self):
        calls.append(self.info["python_class"])
        made = write(arrays("breastmnist", 64))
        made.replace(Path(self.root, f"breastmnist{self.size_flag}.npz"))

    monkeypatch.setattr("medmnist.dataset.MedMNIST.download", download)
    return calls


def test_a_missing_archive_is_downloaded_once_and_only_if_asked_for(package, tmp_path):
    keys = {"name": "breastmnist", "size": 64, "root": tmp_path / "sets"}
    with pytest.raises(DataError, match=r"sets/breastmnist_64.npz' does not exist") as caught:
        medmnist(None, **keys).records()
    assert "dataset.download=true" in caught.value.remedy
    assert package == []
    for _ in range(2):
        assert len(medmnist(None, **keys, download=True).records()[1]) == 24
    assert package == ["BreastMNIST"]
    assert [p.name for p in (tmp_path / "sets").iterdir() if p.suffix != ".lock"] == [
        "breastmnist_64.npz"
    ]


def test_a_named_file_is_never_downloaded(package, tmp_path):
    with pytest.raises(DataError, match=r"mine.npz' does not exist"):
        medmnist(tmp_path / "mine.npz", "breastmnist", 64, download=True).records()
    assert package == []


@pytest.mark.parametrize("error", [OSError("no route to host"), None])
def test_a_failed_download_says_why_and_leaves_nothing(monkeypatch, tmp_path, error):
    def download(self):
        Path(self.root, "partly").touch()
        try:
            raise error or KeyboardInterrupt
        except BaseException:
            raise RuntimeError("Automatic download failed!")  # noqa: B904

    monkeypatch.setattr("medmnist.dataset.MedMNIST.download", download)
    dataset = medmnist(None, root=tmp_path / "sets", download=True)
    if error is None:
        with pytest.raises(KeyboardInterrupt):
            dataset.records()
    else:
        with pytest.raises(DataError, match="cannot be downloaded: no route to host") as caught:
            dataset.records()
        assert INFO["pneumoniamnist"]["url"] in caught.value.remedy
    assert not [p for p in (tmp_path / "sets").iterdir() if p.suffix != ".lock"]


def test_the_package_calls_what_is_replaced_here():
    # the signature that the tests above stand in for
    from medmnist.dataset import MedMNIST as Package

    assert {"info", "root", "size_flag"} <= set(Package.download.__code__.co_names)


def test_a_download_to_a_folder_that_cannot_be_made_is_told(package, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="pneumoniamnist cannot be downloaded"):
        medmnist(None, root=tmp_path / "file" / "sets", download=True).records()


def test_all_twelve_2d_sets_are_known_and_no_other():
    names = [name for name in INFO if not name.endswith("3d")]
    assert len(names) == 12
    for name in names:
        assert medmnist(Path("x.npz"), name).provides
    with pytest.raises(DataError, match="'organmnist3d' is no 2D set"):
        medmnist(Path("x.npz"), "organmnist3d")
    with pytest.raises(DataError, match="did you mean 'bloodmnist'"):
        medmnist(Path("x.npz"), "blodmnist")


@pytest.mark.real_data("pneumoniamnist.npz")
def test_a_wrong_file_is_noticed_and_usable(compose, tmp_path):
    file = Path(os.environ["MEDTRANSFER_DATA"], "pneumoniamnist.npz")
    keys = ["dataset.name=pneumoniamnist", f"dataset.file={file}"]
    config = compose("dataset=medmnist", *keys).typed(TrainConfig)
    dataset = build(config.dataset, Dataset)
    with pytest.warns(UserWarning, match="it has 3882 and not 4708 images in train"):
        data = Data.open(dataset, cache=tmp_path, seed=0)
    assert not dataset.official
    assert data.spec.class_names == ("normal", "pneumonia")
    sides = (data.division.train, data.division.val, data.division.test)
    assert sum(map(len, sides)) + data.division.dropped == 3882 + 524 + 624
    assert len(data.division.test) == 624
    with np.load(file) as archive:
        assert np.array_equal(data.decoded.images[3882 + 524, 0], archive["test_images"][0])

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PILImage

from medtransfer.data.files import read_image
from medtransfer.data.image_folder import ImageFolder
from medtransfer.data.loading import Data
from medtransfer.data.splits import Split
from medtransfer.errors import DataError

SPLIT = Split(kind="holdout", seed=0, file=None, ratios=(0.6, 0.2, 0.2))


def folder(root, **keys):
    settings = {
        "classes": None,
        "image_size": 16,
        "channels": 3,
        "fraction": 1,
        "shots": None,
        "on_error": "raise",
        "split": SPLIT,
    }
    return ImageFolder(root=root, **settings | keys)


def test_classes_are_folders_and_images_lie_at_any_depth(image_tree):
    root = image_tree(benign=2, malignant=1)
    (root / "benign" / "deep").mkdir()
    (root / "benign" / "0.png").rename(root / "benign" / "deep" / "0.png")
    names, records = folder(root).records()
    assert names == ("benign", "malignant")
    assert [(r.sample_id, r.target) for r in records] == [
        ("benign/1.png", 0),
        ("benign/deep/0.png", 0),
        ("malignant/0.png", 1),
    ]
    assert len({record.group_id for record in records}) == 3


def test_named_classes_come_in_the_order_given(image_tree):
    names, records = folder(image_tree(a=1, b=1, c=1), classes=("c", "a")).records()
    assert names == ("c", "a")
    assert [record.sample_id for record in records] == ["c/0.png", "a/0.png"]


def test_hidden_files_and_folders_are_passed_over(image_tree):
    root = image_tree(a=1, b=1, **{".git": 1})
    (root / "a" / ".DS_Store").write_bytes(b"x")
    (root / "b" / ".thumbnails").mkdir()
    (root / "b" / ".thumbnails" / "0.png").write_bytes(b"x")
    names, records = folder(root).records()
    assert names == ("a", "b")
    assert [record.sample_id for record in records] == ["a/0.png", "b/0.png"]


def test_a_missing_folder_is_named_with_where_to_set_it(tmp_path):
    with pytest.raises(DataError, match=r"nowhere' does not exist") as caught:
        folder(tmp_path / "nowhere").records()
    assert "MEDTRANSFER_DATA" in caught.value.remedy


@pytest.mark.parametrize("classes", [{}, {"only": 3}])
def test_one_class_is_no_comparison(image_tree, tmp_path, classes):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=f"has {len(classes)} class folders"):
        folder(image_tree(**classes)).records()


def test_an_empty_class_is_named(image_tree):
    with pytest.raises(DataError, match="images/empty' is empty"):
        folder(image_tree(a=1, empty=0)).records()


def test_a_class_that_is_not_there_meets_the_nearest(image_tree):
    with pytest.raises(DataError, match="did you mean 'malignant'"):
        folder(image_tree(benign=1, malignant=1), classes=("benign", "malignat")).records()


def test_a_class_with_fewer_images_than_splits_is_named(image_tree, tmp_path):
    with pytest.raises(DataError, match="class 'b' has 2 independent groups"):
        Data.open(folder(image_tree(a=5, b=2)), cache=tmp_path, seed=0)


def test_a_folder_becomes_data_by_class_and_split(image_tree, tmp_path):
    data = Data.open(folder(image_tree(a=5, b=5)), cache=tmp_path, seed=0)
    assert data.spec.class_names == ("a", "b")
    assert data.spec.train_counts == (3, 3)


def test_the_fingerprint_follows_every_file(image_tree):
    dataset = folder(image_tree(a=2, b=2))
    _, records = dataset.records()
    first = dataset.fingerprint(records)
    assert dataset.fingerprint(records) == first
    assert replace(dataset, fraction=0.5).fingerprint(records) == first
    file = dataset.root / "a" / "0.png"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert dataset.fingerprint(records) != first
    assert dataset.fingerprint(records[1:]) != first


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_usual_mode_is_read_as_grey_or_colour(tmp_path, mode):
    grey = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (8, 1))
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    PILImage.fromarray(grey).convert(mode).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8
    assert image.shape == ((8, 16) if mode in {"L", "1", "LA"} else (8, 16, 3))
    if mode != "1":  # which dithers
        assert np.abs(image.reshape(8, 16, -1) - grey[..., None].astype(int)).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_and_not_cut_off(tmp_path, suffix):
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    PILImage.fromarray(deep).save(tmp_path / f"x.{suffix}")
    assert np.array_equal(read_image(tmp_path / f"x.{suffix}"), (deep // 256).astype(np.uint8))


def test_values_without_a_known_range_are_refused(tmp_path):
    PILImage.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match="32 bits for each pixel"):
        read_image(tmp_path / "x.tif")


def truncated(path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    PILImage.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("cut.png", truncated, r"cut.png' cannot be decoded"),
        ("text.png", lambda path: path.write_text("hello"), r"text.png' is not an image, whatever"),
        ("empty.png", lambda path: path.touch(), r"empty.png' is not an image, whatever"),
        ("notes.txt", lambda path: path.write_text("hello"), r"notes.txt' is not an image file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_two_ways_out(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        read_image(tmp_path / name)
    assert "remove the file" in caught.value.remedy
    assert "dataset.on_error=skip" in caught.value.remedy


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 100)
    PILImage.new("L", (32, 32)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb.png' cannot be decoded.*exceeds limit"):
        read_image(tmp_path / "bomb.png")

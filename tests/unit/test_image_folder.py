import os
import re
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image as PILImage

from annotated import noise
from hospital import save_dicom
from medtransfer.data.image_folder import ImageFolder
from medtransfer.data.loading import Data
from medtransfer.data.reading.base import Reading
from medtransfer.data.reading.base import read as read_frame
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


@pytest.fixture
def exams(tmp_path):
    """Write images of exams below the patients' folders."""
    for i, name in enumerate(["a/p1/e1_x", "a/p1/e1_y", "a/p1/e2_x", "b/p2/e3_x", "b/p3/e4_x"]):
        noise(tmp_path / "images" / f"{name}.png", i)
    return tmp_path / "images"


@pytest.mark.parametrize(
    ("group", "exam", "groups", "exam_ids"),
    [
        (r"^p\d+", None, ["p1", "p1", "p1", "p2", "p3"], None),
        (r"p(\d+)/", r"e(\d+)_", ["1", "1", "1", "2", "3"], ["1", "1", "2", "3", "4"]),
        (None, r"p\d+/e\d+", None, ["p1/e1", "p1/e1", "p1/e2", "p2/e3", "p3/e4"]),
    ],
    ids=["patient", "both", "exam"],
)
def test_patterns_find_patients_and_exams_below_the_class_folder(
    exams, group, exam, groups, exam_ids
):
    patterns = {key: p and re.compile(p) for key, p in [("group", group), ("exam", exam)]}
    _, records = folder(exams, **patterns).records()
    ids = [record.sample_id for record in records]
    assert [record.group_id for record in records] == (groups or exam_ids)
    assert [record.exam_id for record in records] == (exam_ids or ids)


def test_the_class_folder_tells_no_patient(exams):
    with pytest.raises(DataError, match=r"image 'a/p1/e1_x.png' tells no group by .*'\^a'"):
        folder(exams, group=re.compile("^a")).records()


def test_one_exam_of_two_patients_is_refused(exams):
    (exams / "b" / "p3" / "e4_x.png").rename(exams / "b" / "p3" / "e3_y.png")
    patterns = {"group": re.compile(r"p\d+"), "exam": re.compile(r"e\d+")}
    with pytest.raises(DataError, match=r"p2/e3_x.png' and 'b/p3/e3_y.png' .* two patients"):
        folder(exams, **patterns).records()


def test_hashed_ids_show_nothing_of_what_patterns_have_found(exams, tmp_path):
    patterns = {"group": re.compile(r"p(\d+)/"), "exam": re.compile(r"e\d+")}
    dataset = folder(exams, **patterns, identifiers="hashed", salt=tmp_path / "salt")
    _, records = dataset.records()
    one, exam = dataset.pseudonyms.of("1"), dataset.pseudonyms.of("e1")
    assert records[0].sample_id == f"a/p{one}/{exam}_x.png"
    assert (records[0].group_id, records[0].exam_id) == (one, exam)
    assert dataset.where(records[0].sample_id) == (exams / "a" / "p1" / "e1_x.png", None)
    assert dataset.read(records[3]).shape == (12, 16)


def test_dicom_headers_say_whose_images_are(image_tree, tmp_path):
    root = image_tree(a=1, b=1)
    header = {"PatientID": "DOE7", "StudyInstanceUID": "1.2.3", "ViewPosition": "CC"}
    save_dicom(root / "b" / "DOE7_1.dcm", **header)
    save_dicom(root / "b" / "x", **header | {"ViewPosition": "MLO"})  # as scanners name files
    save_dicom(root / "b" / "z.dcm", frames=2)
    plain = folder(root)
    records = plain.records()[1][2:]
    assert [(r.sample_id, r.group_id, r.exam_id, r.view) for r in records] == [
        ("b/DOE7_1.dcm", "DOE7", "1.2.3", "CC"),
        ("b/x", "DOE7", "1.2.3", "MLO"),
        ("b/z.dcm#0000", "b/z.dcm", "b/z.dcm", ""),
        ("b/z.dcm#0001", "b/z.dcm", "b/z.dcm", ""),
    ]
    hashed = replace(plain, identifiers="hashed", salt=tmp_path / "salt")
    names = [hashed.pseudonyms.of(text) for text in ("DOE7", "1.2.3")]
    first = hashed.records()[1][2]
    assert [first.sample_id, first.group_id, first.exam_id] == [f"b/{names[0]}_1.dcm", *names]
    assert np.array_equal(hashed.read(first), plain.read(records[0]))


def test_a_pattern_goes_before_a_header(image_tree):
    root = image_tree(a=1, b=1)
    save_dicom(root / "b" / "7.dcm", PatientID="DOE7", StudyInstanceUID="1.2.3")
    record = folder(root, group=re.compile(r"\d")).records()[1][2]
    assert (record.group_id, record.exam_id) == ("7", "1.2.3")


def test_slices_of_a_volume_are_of_one_exam_and_one_patient(image_tree):
    root = image_tree(a=1, b=1)
    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), root / "a" / "v.nii.gz")
    ids = [f"a/v.nii.gz#{i:04d}" for i in range(5)]
    records = folder(root).records()[1][1:6]
    assert [record.sample_id for record in records] == ids
    assert {(r.group_id, r.exam_id) for r in records} == {("a/v.nii.gz", "a/v.nii.gz")}


def test_a_name_that_looks_like_a_frame_is_a_name(image_tree):
    root = image_tree(a=2, b=1)
    (root / "a" / "1.png").rename(root / "a" / "0.png#0007")
    PILImage.new("L", (4, 4), 9).save(root / "a" / "0.png#0007", "png")
    dataset = folder(root, on_error="skip")
    record = dataset.records()[1][1]
    assert dataset.where(record.sample_id) == (root / "a" / "0.png#0007", None)


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
    image = read_frame(path, None, Reading())
    assert image.dtype == np.uint8
    assert image.shape == ((8, 16) if mode in {"L", "1", "LA"} else (8, 16, 3))
    if mode != "1":  # which dithers
        assert np.abs(image.reshape(8, 16, -1) - grey[..., None].astype(int)).max() <= 1


def test_values_without_a_known_range_are_refused(tmp_path):
    PILImage.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match="32 bits for each pixel"):
        read_frame(tmp_path / "x.tif", None, Reading())


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
        read_frame(tmp_path / name, None, Reading())
    assert "remove the file" in caught.value.remedy
    assert "dataset.on_error=skip" in caught.value.remedy


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 100)
    PILImage.new("L", (32, 32)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb.png' cannot be decoded.*exceeds limit"):
        read_frame(tmp_path / "bomb.png", None, Reading())

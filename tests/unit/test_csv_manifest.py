import csv
import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from annotated import noise
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data.base import Dataset
from medtransfer.data.csv_manifest import CsvManifest
from medtransfer.data.decoded import decode
from medtransfer.data.loading import Data
from medtransfer.data.splits import Split
from medtransfer.errors import ConfigError, DataError

SPLIT = Split(kind="holdout", seed=0, file=None, ratios=(0.6, 0.2, 0.2))


def manifest(root, **keys):
    settings = {
        "file": Path("m.csv"),
        "image": "image",
        "label": "label",
        **dict.fromkeys(("label_columns", "separator", "classes", "patient", "exam", "view")),
        "split_column": None,
        "attributes": (),
        "image_size": 16,
        "channels": 1,
        "fraction": 1,
        "shots": None,
        "on_error": "raise",
        "split": SPLIT,
    }
    return CsvManifest(root=root, **settings | keys)


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a table and, where they are not there, its images."""

    def write(*rows, name="m.csv", images=("image",), separator=","):
        header, *cells = (row.split("|") for row in rows)
        for i, row in enumerate(cells):
            for k, column in enumerate(header):
                if column in images and row[k]:
                    noise(tmp_path / row[k], 100 * i + k)
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file, delimiter=separator).writerows([header, *cells])
        return tmp_path

    return write


def test_rows_are_samples_of_patients_and_exams_with_views_and_attributes(write):
    root = write(
        "site|image|label|patient|exam|view",
        "A|x/1.png|sick|007|E1|CC",
        "A|x/2.png|sick|007|E1|MLO",
        "B|x/3.png|fine|7|E2|",
    )
    keys = {"patient": "patient", "exam": "exam", "view": "view", "attributes": ("site",)}
    dataset = manifest(root, **keys)
    names, records = dataset.records()
    assert names == ("fine", "sick")
    assert [(r.sample_id, r.group_id, r.exam_id, r.target, r.view) for r in records] == [
        ("x/1.png", "007", "E1", 1, "CC"),
        ("x/2.png", "007", "E1", 1, "MLO"),
        ("x/3.png", "7", "E2", 0, ""),
    ]
    assert [dict(record.attributes) for record in records] == [{"site": s} for s in "AAB"]
    assert dataset.provides == {"class", "exam"}
    assert dataset.lists() is None


def test_a_row_of_several_images_is_an_exam_whose_columns_are_views(write):
    root = write(
        "CC|MLO|label|patient",
        "1.png|2.png|a|P1",
        "|3.png|b|P1",
        images=("CC", "MLO"),
    )
    _, records = manifest(root, image=("CC", "MLO"), patient="patient").records()
    assert [(r.sample_id, r.group_id, r.exam_id, r.view) for r in records] == [
        ("1.png", "P1", "1.png", "CC"),
        ("2.png", "P1", "1.png", "MLO"),
        ("3.png", "P1", "3.png", "MLO"),
    ]
    _, records = manifest(root, image=("CC", "MLO")).records()
    assert [record.group_id for record in records] == ["1.png", "1.png", "3.png"]


def test_without_patients_an_exam_and_without_exams_an_image_is_one(write):
    root = write("image|label|exam", "1.png|a|E1", "2.png|a|E1", "3.png|b|E2")
    assert [r.group_id for r in manifest(root, exam="exam").records()[1]] == ["E1", "E1", "E2"]
    records = manifest(root).records()[1]
    ids = ["1.png", "2.png", "3.png"]
    assert [r.group_id for r in records] == [r.exam_id for r in records] == ids


@pytest.mark.parametrize(
    ("cells", "classes", "names", "targets"),
    [
        (("b", "a", "b"), None, ("a", "b"), [1, 0, 1]),
        (("10", "9", "10"), None, ("9", "10"), [1, 0, 1]),
        (("10", "9", "x"), ("x", "9", "10"), ("x", "9", "10"), [2, 1, 0]),
    ],
)
def test_classes_are_sorted_numbers_by_size_or_as_they_are_named(
    write, cells, classes, names, targets
):
    root = write("image|label", *(f"{i}.png|{cell}" for i, cell in enumerate(cells)))
    found, records = manifest(root, classes=classes).records()
    assert found == names
    assert [record.target for record in records] == targets


def test_labels_in_columns_hold_or_not_or_are_unknown(write):
    root = write(
        "image|fluid|mass|air",
        "1.png|1|0|-1",
        "2.png|0.0|1.0|",
        "3.png|True|nan|-1.0",
    )
    dataset = manifest(root, label=None, label_columns=("air", "fluid", "mass"))
    names, records = dataset.records()
    assert names == ("image",)
    assert dataset.labels() == ("air", "fluid", "mass")
    assert [r.labels for r in records] == [(-1, 1, 0), (-1, 0, 1), (-1, 1, -1)]
    assert dataset.provides == {"labels"}


@pytest.mark.parametrize("classes", [None, ("mass", "air", "fluid")])
def test_labels_in_one_column_hold_where_they_are_named(write, classes):
    cells = ["fluid; mass", "No Finding", "", "air"]
    root = write("image|found", *(f"{i}.png|{cell}" for i, cell in enumerate(cells)))
    keys = {"label": None, "label_columns": "found", "separator": ";", "classes": classes}
    dataset = manifest(root, **keys)
    names = classes or ("air", "fluid", "mass")
    assert dataset.labels() == names
    shown = [{n for n, v in zip(names, r.labels, strict=True) if v} for r in dataset.records()[1]]
    assert shown == [{"fluid", "mass"}, set(), set(), {"air"}]


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("csv", ";"), ("tsv", "\t")])
def test_delimiters_quotes_marks_and_blank_rows_are_understood(write, suffix, separator):
    root = write(
        "image|label|note",
        f'1.png|a|"x"{separator} y',
        "2.png|b|two\nlines",
        name=f"m.{suffix}",
        separator=separator,
    )
    file = root / f"m.{suffix}"
    lines = file.read_bytes().split(b"\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + b"\n".join([lines[0], b"", *lines[1:], b"", b""]))
    dataset = manifest(root, file=file, attributes=("note",))  # absolute
    _, records = dataset.records()
    assert [next(iter(record.attributes.values())) for record in records] == [
        f'"x"{separator} y',
        "two\nlines",
    ]


def test_a_parquet_file_is_as_good(write):
    root = write("image|patient", "1.png|x", "2.png|x", "3.png|x")
    table = pd.DataFrame(
        {
            "image": ["1.png", "2.png", "3.png"],
            "grade": [10, 9, 10],
            "site": pd.Categorical(["A", "B", None]),
            "year": [2020.0, np.nan, 1999.5],
            "new": [True, False, None],
        }
    )
    table.to_parquet(root / "m.parquet")
    dataset = manifest(
        root, file=Path("m.parquet"), label="grade", attributes=("site", "year", "new")
    )
    names, records = dataset.records()
    assert names == ("9", "10")
    assert [dict(record.attributes) for record in records] == [
        {"site": "A", "year": "2020", "new": "True"},
        {"site": "B", "year": "", "new": "False"},
        {"site": "", "year": "1999.5", "new": ""},
    ]
    assert [record.target for record in records] == [1, 0, 1]


def test_the_table_may_bring_the_split(write, tmp_path):
    words = ["train", "Training", "val", "valid", "TEST", "testing"]
    root = write("image|label|use", *(f"{i}.png|{'ab'[i % 2]}|{w}" for i, w in enumerate(words)))
    dataset = manifest(root, split_column="use", split=replace(SPLIT, kind="own"))
    assert dataset.lists() == {
        "train": ["0.png", "1.png"],
        "val": ["2.png", "3.png"],
        "test": ["4.png", "5.png"],
    }
    data = Data.open(dataset, cache=tmp_path / "cache", seed=0)
    assert data.division.test.tolist() == [4, 5]


def test_the_column_that_the_split_goes_by_is_kept(write):
    root = write("image|label|site|age", "1.png|a|X|3", "2.png|b|Y|4")
    split = replace(SPLIT, kind="column", column="site", test=("Y",))
    _, records = manifest(root, split=split, attributes=("age",)).records()
    assert dict(records[1].attributes) == {"site": "Y", "age": "4"}


def test_hashed_identifiers_stand_in_nothing_that_is_kept(write, tmp_path):
    rows = [f"P{i}/exam_E{i}/P{i}.png|{'ab'[i % 2]}|P{i}|E{i}|s" for i in range(4)]
    root = write("image|label|patient|exam|site", *rows)
    keys = {"patient": "patient", "exam": "exam", "attributes": ("patient", "site")}
    plain = manifest(root, **keys)
    hashed = replace(plain, identifiers="hashed", salt=tmp_path / "salt")
    _, records = hashed.records()
    for i, record in enumerate(records):
        patient, exam = hashed.pseudonyms.of(f"P{i}"), hashed.pseudonyms.of(f"E{i}")
        assert record.sample_id == f"{patient}/exam_{exam}/{patient}.png"
        assert (record.group_id, record.exam_id) == (patient, exam)
        assert record.attributes == {"patient": patient, "site": "s"}
    decoded = decode(hashed, tmp_path / "cache")
    assert np.array_equal(decoded.images, decode(plain, tmp_path / "cache").images)
    assert replace(hashed).read(records[2]).shape == (12, 16)  # by an object that listed nothing


def test_slices_of_a_volume_are_samples_of_one_exam(write, tmp_path):
    root = write("image|label|patient", "1.png|a|P1")
    for name in ("P2.nii", "P2 again.nii.gz"):
        values = np.random.default_rng(len(name)).integers(0, 99, (5, 6, 4)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), root / name)
    with (root / "m.csv").open("a") as file:
        file.write("P2.nii,b,P2\r\nP2 again.nii.gz,b,P2\r\n")
    dataset = manifest(root, patient="patient", identifiers="hashed", salt=tmp_path / "salt")
    _, records = dataset.records()
    name = dataset.pseudonyms.of("P2")
    assert [record.sample_id for record in records[1:]] == [
        *(f"{name}.nii#{i:04d}" for i in range(4)),
        *(f"{name} again.nii.gz#{i:04d}" for i in range(4)),
    ]
    assert {record.group_id for record in records[1:]} == {name}
    exams = [f"{name}.nii", f"{name} again.nii.gz"]
    assert [record.exam_id for record in records[1:]] == [exams[0]] * 4 + [exams[1]] * 4
    plain = replace(dataset, identifiers="plain")
    for record, other in zip(records, plain.records()[1], strict=True):
        assert np.array_equal(dataset.read(record), plain.read(other))


def test_another_secret_or_none_is_another_entry_of_the_cache(write, tmp_path):
    root = write("image|label|p", "P1.png|a|P1", "P2.png|b|P2")
    for salt in ("one", "two"):
        dataset = manifest(root, patient="p", identifiers="hashed", salt=tmp_path / salt)
        assert len(decode(dataset, tmp_path / "cache").records) == 2


def test_a_missing_image_is_found_before_any_is_read_or_left_out(write, tmp_path):
    root = write("image|label", *(f"x/{i}.png|{'ab'[i % 2]}" for i in range(6)))
    for i in (2, 5):
        (root / "x" / f"{i}.png").unlink()
    with pytest.raises(DataError, match=r"row 4, .* image 'x/2.png' is not in .* \(1 more such\)"):
        manifest(root).records()
    decoded = decode(manifest(root, on_error="skip"), tmp_path / "cache")
    assert [record.sample_id for record in decoded.records] == [f"x/{i}.png" for i in (0, 1, 3, 4)]
    assert len(decoded.skipped) == 2


def test_what_is_left_out_is_told_without_its_patient(write, tmp_path):
    root = write("image|label|p", "P1/0.png|a|P1", "P2/1.png|b|P2", "P3/2.png|b|P3")
    (root / "P3" / "2.png").write_text("x")
    keys = {"patient": "p", "identifiers": "hashed", "salt": tmp_path / "salt"}
    dataset = manifest(root, on_error="skip", **keys)
    (told,) = decode(dataset, tmp_path / "cache").skipped
    assert "P3" not in told
    assert f"{dataset.pseudonyms.of('P3')}/2.png' is not an image" in told
    with pytest.raises(DataError, match=r"P3/2.png' is not an image"):
        decode(replace(dataset, on_error="raise"), tmp_path / "other cache")


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        ({"label": None}, "name one of"),
        ({"label_columns": ("a", "b")}, "name one of"),
        ({"image": ()}, "column with the images"),
        ({"separator": ","}, "single column"),
        ({"label": None, "label_columns": ("a", "b"), "separator": ","}, "single column"),
        ({"label": None, "label_columns": ("a", "b"), "classes": ("a", "b")}, "are columns"),
        ({"image": ("a", "b"), "view": "v"}, "leave dataset.view out"),
        ({"classes": ("a",)}, "2 names at least"),
        ({"classes": ("a", "b", "a")}, "each once"),
    ],
)
def test_keys_that_contradict_each_other_are_the_users_mistake(tmp_path, keys, remedy):
    with pytest.raises(ConfigError, match="do not fit together") as caught:
        manifest(tmp_path, **keys)
    assert remedy in caught.value.remedy


def test_the_yaml_says_every_key(compose, write, tmp_path):
    rows = (f"P{i}.png|{'ab'[i % 2]}|P{i}" for i in range(12))
    root = write("path|label|p", *rows, images=("path",))
    keys = [f"dataset.root={root}", "dataset.file=m.csv", "dataset.image=path", "dataset.patient=p"]
    config = compose("dataset=csv_manifest", *keys).typed(TrainConfig)
    dataset = build(config.dataset, Dataset)
    assert dataset.image == "path"
    assert not any("P1" in record.sample_id for record in dataset.records()[1])
    assert Data.open(dataset, cache=tmp_path / "cache", seed=0).spec.class_names == ("a", "b")


def test_a_long_table_is_read_in_time_that_grows_with_its_length(tmp_path):
    def seconds(count):
        root = tmp_path / str(count)
        root.mkdir()
        lines = (f"P{i // 500 * 500}/{i}.png,{i % 3},P{i // 500 * 500}\n" for i in range(count))
        (root / "m.csv").write_text("image,label,p\n" + "".join(lines))
        keys = {"identifiers": "hashed", "salt": tmp_path / "salt", "on_error": "skip"}
        dataset = manifest(root, patient="p", **keys)
        start = time.process_time()
        assert len(dataset.records()[1]) == count
        return time.process_time() - start

    seconds(500)  # modules are loaded
    assert seconds(10_000) < 30 * max(seconds(1_000), 0.01)

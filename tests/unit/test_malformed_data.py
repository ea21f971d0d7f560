"""What users' data are like at their worst: one clear error each, or a counted sample less.

Every case writes a small data set with a single fault. It is one error that names the file, or the
row of the table; where the fault is that of an image, `on_error=skip` leaves just that one out.
"""

import gzip
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image as PILImage
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, JPEGBaseline8Bit

from annotated import noise
from hospital import save_dicom
from medtransfer.app import App
from medtransfer.components import build
from medtransfer.data.base import Dataset
from medtransfer.data.decoded import decode
from medtransfer.errors import DataError

SOUND = (
    "p1/0.png,a,1,e1,train",
    "p1/1.png,a,1,e1,train",
    "p2/2.png,b,2,e2,val",
    "p2/3.png,b,3,e3,test",
)
HEADER = "image,label,patient,exam,use"
NEEDED = {
    "csv_manifest": ["dataset.root=x", "dataset.file=x"],
    "image_folder": ["dataset.root=x"],
    "medmnist": ["dataset.name=x"],
}
Made = tuple[str, dict[str, object]]
"""The choice of `dataset`, and its keys."""


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        name: What is wrong.
        make: Writes the data below a folder and returns the keys that read them.
        message: Pattern of what the error says, with the row or the file.
        left_out: How many samples `on_error=skip` leaves out; 0 where it does not help.
    """

    name: str
    make: Callable[[Path], Made]
    message: str
    left_out: int = 0


def table(*rows, header=HEADER, mend=(), **keys):
    """Return what writes four sound rows, some of them replaced, after those that are given."""

    def make(root):
        for row in SOUND:
            name = row.split(",")[0]
            noise(root / name, int(name[3]))
        lines = [header, *rows, *(row for i, row in enumerate(SOUND) if i not in mend)]
        (root / "m.csv").write_text("\n".join(lines) + "\n")
        return "csv_manifest", {"file": "m.csv"} | keys

    return make


def raw(content, name="m.csv"):
    """Return what writes a table of these bytes."""

    def make(root):
        (root / name).write_bytes(content)
        return "csv_manifest", {"file": name}

    return make


def parquet(change=None, exam=None, **columns):
    """Return what writes a table of these columns, and changes its bytes."""

    def make(root):
        frame = pd.DataFrame({"image": ["p1/0.png", "p2/2.png"], "label": ["a", "b"]} | columns)
        frame.to_parquet(root / "m.parquet")
        if change is not None:
            content = (root / "m.parquet").read_bytes()
            (root / "m.parquet").write_bytes(change(content))
        return "csv_manifest", {"file": "m.parquet", "exam": exam}

    return make


def folder(spoil=None, **keys):
    """Return what writes two class folders with two sound images each, and spoils them."""

    def make(root):
        for i, name in enumerate(("a/0", "a/1", "b/2", "b/3")):
            noise(root / f"{name}.png", i)
        if spoil is not None:
            spoil(root)
        return "image_folder", keys

    return make


def linked_to_itself(name):
    """Return what writes a link that leads nowhere else."""

    def make(root):
        made = table(f"{name},a,9,e9,train")(root)
        (root / name).symlink_to(name)
        return made

    return make


def folder_for_image(root):
    made = table("p1/9.png,a,9,e9,train")(root)
    (root / "p1" / "9.png").mkdir()
    return made


def folder_for_table(root):
    (root / "x.csv").mkdir()
    return "csv_manifest", {"file": root / "x.csv"}


def only_root_may_read(root):
    """Take the right to read an image away."""
    (root / "b" / "x.png").chmod(0)


def image(name, write):
    """Return what writes an image beside the sound ones."""
    return folder(lambda root: write(root / name))


def truncated(path, keep=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def text(path):
    path.write_text("not an image" * 50)


def short_jpeg(path):
    noise(path, 7, 64, 64)
    truncated(path)


def bomb(path):
    # as many pixels as Pillow refuses, in a few kilobytes
    buffer = BytesIO()
    PILImage.new("1", (13_500, 13_500)).save(buffer, "png")
    path.write_bytes(buffer.getvalue())


def strange_name(root):
    sound = (root / "b" / "2.png").read_bytes()
    with open(os.fsencode(root / "b") + b"/\xff\xfe.png", "wb") as file:  # noqa: PTH123
        file.write(sound + b"\0")


def archive(change=None, drop=(), spoil=None, keys=None, **arrays):
    """Return what writes an archive as of MedMNIST, with other arrays or spoilt bytes."""

    def make(root):
        rng = np.random.default_rng(0)
        found = {}
        for side, count in (("train", 6), ("val", 4), ("test", 4)):
            found[f"{side}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            found[f"{side}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
        found = {key: value for key, value in (found | arrays).items() if key not in drop}
        np.savez_compressed(root / "x.npz", **found)
        if change is not None:
            content = (root / "x.npz").read_bytes()
            (root / "x.npz").write_bytes(change(content))
        if spoil is not None:
            spoil(root / "x.npz")
        return "medmnist", {"name": "pneumoniamnist", "file": root / "x.npz"} | (keys or {})

    return make


def too_short(path):
    """Cut an array off, whose header promises more."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members["val_images.npy"] = members["val_images.npy"][:-1]
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)


TABLES = [
    Case("folder named like an image", folder_for_image, r"row 2, column 'image' .*p1/9.png'", 1),
    Case("column missing", table(patient="pid"), r"m.csv' has no column 'pid' in row 1"),
    Case("image unknown", table("p1/9.png,a,9,e9,test"), r"row 2, column 'image' .*'p1/9.png'", 1),
    Case("path that climbs", table("../9.png,a,9,e9,test"), r"'../9.png' in row 2, column 'image'"),
    Case(
        "path that climbs back", table("p1/../../m.png,a,1,e,val"), r"row 2, column 'image' .*out"
    ),
    Case("path that climbs like Windows", table(r"..\9.png,a,9,e9,val"), r"row 2, column 'image'"),
    Case("path that is absolute", table("/etc/passwd,a,9,e9,val"), r"'/etc/passwd' in row 2"),
    Case("image that links to itself", linked_to_itself("p1/9.png"), r"p1/9.png'", 1),
    Case("image twice", table("p1/./1.png,a,1,e1,val"), r"row 4, column 'image' .* in row 2 too"),
    Case("row without image", table(",a,9,e9,val"), r"row 2, column 'image' .* names no image"),
    Case(
        "word among numbers",
        table(
            "p1/0.png,3",
            "p1/1.png,4",
            "p2/2.png,4",
            "p2/3.png,x",
            header="image,label",
            mend=range(4),
        ),
        r"row 5, column 'label' .* 'x' is a word among numbers",
    ),
    Case("number among words", table("p1/9.png,1,9,e9,val"), r"row 2, .*label' .* '1' is a number"),
    Case(
        "number in two ways",
        table("p1/0.png,1", "p1/1.png,0", "p2/2.png,1.0", header="image,label", mend=range(4)),
        r"row 4, column 'label' .* '1.0' is the same number",
    ),
    Case("label NaN", table("p1/9.png,NaN,9,e9,val"), r"row 2, column 'label' .* is empty"),
    Case("label empty", table("p1/9.png, ,9,e9,val"), r"row 2, column 'label' .* is empty"),
    Case(
        "label not in classes",
        table("p1/9.png,bb,9,e9,val", classes=["a", "b"]),
        r"row 2, column 'label' .* 'bb' is not among dataset.classes; did you mean 'b'",
    ),
    Case("one class", table(mend=(2, 3)), r"column 'label' of '.*m.csv' has one class, 'a'"),
    Case(
        "patient empty",
        table("p1/9.png,a,,e9,val", patient="patient"),
        r"row 2, column 'patient' .* is empty",
    ),
    Case("exam empty", table("p1/9.png,a,9,,val", exam="exam"), r"row 2, column 'exam' .* empty"),
    Case(
        "exam with two labels",
        table("p1/1.png,b,1,e1,train", mend=(1,), exam="exam"),
        r"row 3, column 'label' .* another class than in row 2",
    ),
    Case(
        "exam of two patients",
        table("p1/1.png,a,5,e1,val", mend=(1,), exam="exam", patient="patient"),
        r"row 3, column 'patient' .* than in row 2",
    ),
    Case(
        "split unknown",
        table("p1/9.png,a,9,e9,tset", split_column="use"),
        r"row 2, column 'use' .* 'tset' names no split",
    ),
    Case("split empty", table("p1/9.png,a,9,e9,", split_column="use"), r"row 2, column 'use'"),
    Case(
        "label neither 1 nor 0",
        table(
            "p1/9.png,2,9,e9,val",
            header="image,mass,patient,exam,use",
            label=None,
            label_columns=["mass"],
            mend=range(4),
        ),
        r"row 2, column 'mass' .* '2' does not say",
    ),
    Case(
        "finding beside no finding",
        table(
            "p1/9.png,No Finding|mass,9,e9,val", label=None, label_columns="label", separator="|"
        ),
        r"row 2, column 'label'",
    ),
    Case(
        "label of one column unknown",
        table(
            "p1/9.png,mas|air,9,e9,val",
            mend=range(4),
            label=None,
            label_columns="label",
            separator="|",
            classes=["mass", "air"],
        ),
        r"row 2, column 'label' .* 'mas' is not among dataset.classes; did you mean 'mass'",
    ),
    Case(
        "not UTF-8",
        raw(b"image,label\n1.png,a\n2.png,K\xf6ln\n"),
        r"row 3 of '.*m.csv' is not text",
    ),
    Case(
        "UTF-16", raw("image,label\n1.png,a\n".encode("utf-16")), r"row 1 of '.*m.csv' is not text"
    ),
    Case("table empty", raw(b""), r"m.csv' is empty"),
    Case("table of blank lines", raw(b"\n\n\n"), r"m.csv' is empty"),
    Case("header alone", raw(b"image,label\n"), r"m.csv' has no row below its header"),
    Case(
        "column twice",
        raw(b"image,label,label\n1.png,a,b\n"),
        r"m.csv' has 2 columns named 'label'",
    ),
    Case(
        "row too long", raw(b"image,label\n1.png,a\n2.png,b,c\n"), r"row 3 of '.*m.csv' has 3 cells"
    ),
    Case(
        "rows all too long", raw(b"image,label\n1.png,a,\n2.png,b,\n"), r"row 2 of '.*' has 3 cells"
    ),
    Case("row too short", raw(b"image,label\n1.png,a\n2.png\n"), r"row 3 of '.*m.csv' has 1 cells"),
    Case(
        "quote without end", raw(b'image,label\n1.png,a\n2.png,"b\n'), r"row 3 of '.*m.csv' cannot"
    ),
    Case(
        "path with a null", raw(b"image,label\n1\0.png,a\n2.png,b\n"), r"in row 2, column 'image'"
    ),
    Case("table missing", table(file="n.csv"), r"file 'n.csv' is not in .*did you mean 'm.csv'"),
    Case("table elsewhere", table(file="../m.csv"), r"'../m.csv' in dataset.file leads out"),
    Case("table of a spreadsheet", raw(b"PK", "m.xlsx"), r"m.xlsx' is no table that can be read"),
    Case("folder for a table", folder_for_table, r"x.csv' cannot be read: Is a directory"),
    Case("Parquet that is none", raw(b"image,label\n", "m.parquet"), r"m.parquet' cannot be read"),
    Case("Parquet cut off", parquet(lambda content: content[:-20]), r"m.parquet' cannot be read"),
    Case(
        "Parquet spoilt",
        parquet(lambda content: content[:4] + b"\xff" * 40 + content[44:]),
        r"m.parquet' cannot be read",
    ),
    Case("Parquet without column", parquet(exam="e"), r"m.parquet' has no column 'e' in row 1"),
    Case("Parquet with lists", parquet(exam="e", e=[[1], [2, 3]]), r"column 'e' of '.*m.parquet'"),
    Case(
        "Parquet with NaN", parquet(label=[1.0, np.nan]), r"row 3, column 'label' of '.*m.parquet'"
    ),
]

FOLDERS = [
    Case(
        "root missing",
        lambda root: ("image_folder", {"root": root / "x"}),
        r"folder '.*/x' does not",
    ),
    Case(
        "one class folder",
        lambda root: noise(root / "a" / "0.png", 0) or ("image_folder", {}),
        r"1 class folders",
    ),
    Case("class folder missing", folder(classes=["a", "c"]), r"class folder 'c' is not"),
    Case(
        "class folder empty",
        folder(lambda root: (root / "c").mkdir()),
        r"class folder '.*/c' is empty",
    ),
    Case(
        "class folder that links to itself",
        folder(lambda root: (root / "c").symlink_to("c"), classes=["a", "b", "c"]),
        r"folder 'c' is not in",
    ),
    Case("pattern finds no patient", folder(group=r"^\d+x"), r"image 'a/0.png' tells no group"),
    Case("pattern finds no exam", folder(exam="^1"), r"'a/0.png' tells no exam"),
    Case(
        "pattern finds nothing at a place", folder(group="(p*)"), r"image 'a/0.png' tells no group"
    ),
    Case(
        "exam of two patients by pattern",
        folder(group=r"\d", exam="png"),
        r"'a/0.png' and 'a/1.png' .* two patients",
    ),
    Case("name not UTF-8", folder(strange_name), r"b/\\udcff\\udcfe.png' is not text in UTF-8", 1),
    Case("zero bytes", image("b/x.png", Path.touch), r"b/x.png' is not an image", 1),
    Case("text named .png", image("b/x.png", text), r"x.png' is not an image", 1),
    Case("text among images", image("b/x.txt", text), r"x.txt' is not an im", 1),
    Case("JPEG cut off", image("b/x.jpg", short_jpeg), r"b/x.jpg' cannot be decoded", 1),
    Case("decompression bomb", image("b/x.png", bomb), r"b/x.png' cannot be decoded: .*exceeds", 1),
    Case(
        "values without a range",
        image("b/x.tif", lambda p: PILImage.fromarray(np.ones((4, 4), np.float32)).save(p)),
        r"b/x.tif' has 32 bits",
        1,
    ),
    Case(
        "image that may not be read",
        folder(lambda root: noise(root / "b" / "x.png", 9) or only_root_may_read(root)),
        r"b/x.png' cannot be decoded",
        1,
    ),
]

ARCHIVES = [
    Case(
        "set unknown", archive(keys={"name": "pneumonia"}), r"'pneumonia' is no 2D set of MedMNIST"
    ),
    Case(
        "archive missing",
        archive(keys={"file": "nowhere.npz"}),
        r"file 'nowhere.npz' does not exist",
    ),
    Case("archive cut off", archive(lambda content: content[:-30]), r"x.npz' is damaged"),
    Case("text named .npz", archive(lambda _: b"hello"), r"x.npz' is damaged, or no archive"),
    Case("zero bytes named .npz", archive(lambda _: b""), r"x.npz' is damaged, or no archive"),
    Case("array missing", archive(drop=["val_labels"]), r"x.npz' has no array 'val_labels'"),
    Case("images of another size", archive(keys={"size": 64}), r"x.npz': array 'train_images' is"),
    Case(
        "images as fractions",
        archive(val_images=np.zeros((4, 28, 28), np.float32)),
        r"x.npz': array 'val_images' is .* float32",
    ),
    Case(
        "images as objects", archive(val_images=np.array([None, {}])), r"x.npz': array 'val_images'"
    ),
    Case(
        "images too few",
        archive(spoil=too_short),
        r"x.npz': array 'val_images' has 3263 and not 3264",
    ),
    Case(
        "labels too few", archive(test_labels=np.zeros((3, 1), np.uint8)), r"array 'test_labels' is"
    ),
    Case("labels as words", archive(test_labels=np.array([["a"]] * 4)), r"array 'test_labels' is"),
    Case(
        "label out of range",
        archive(test_labels=np.array([[0], [1], [2], [0]])),
        r"x.npz': label \[2\] of 'test/00002' is not among 0 to 1",
    ),
]


def scan(name="b/x.dcm", **header):
    """Return what writes a DICOM file with other headers beside the sound images."""
    return image(name, lambda path: save_dicom(path, **header))


def scan_in(syntax, content=b"", **header):
    """Return what writes a DICOM file whose pixels are said to be in a transfer syntax."""

    def write(path):
        data = dcmread(save_dicom(path, **header))
        data.file_meta.TransferSyntaxUID = syntax
        data.PixelData = encapsulate([content])
        data["PixelData"].VR = "OB"
        data.save_as(path)

    return image("b/x.dcm", write)


def damaged_scan(change):
    """Return what writes a DICOM file and changes its bytes."""

    def write(path):
        path.write_bytes(change(save_dicom(path).read_bytes()))

    return image("b/x.dcm", write)


def volume(values, name="b/x.nii", change=None):
    """Return what writes a NIfTI volume beside the sound images, and changes its bytes."""

    def write(path):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
        if change is not None:
            path.write_bytes(change(path.read_bytes()))

    return image(name, write)


NOISE = np.random.default_rng(0).integers(0, 1000, (6, 5, 3)).astype(np.int16)
LARGE = NOISE.repeat(40, axis=0).repeat(40, axis=1)
HOLED = np.where(NOISE.max() == NOISE, np.nan, NOISE.astype(np.float32))

SCANS = [
    Case("DICOM without pixels", scan(PixelData=None), r"b/x.dcm' has no pixels", 1),
    Case(
        "DICOM in a syntax without a codec",
        scan_in(MPEG2MPML, b"\0" * 64),
        r"b/x.dcm' cannot be decoded: its transfer syntax is MPEG2",
        1,
    ),
    Case(
        "DICOM with a spoilt JPEG",
        scan_in(
            JPEGBaseline8Bit, b"\xff\xd8" + b"\0" * 62, BitsAllocated=8, BitsStored=8, HighBit=7
        ),
        r"b/x.dcm' cannot be decoded",
        1,
    ),
    Case("text named .dcm", image("b/x.dcm", text), r"b/x.dcm' is not a DICOM file", 1),
    Case("zero bytes named .dcm", image("b/x.dcm", Path.touch), r"b/x.dcm' is not an image", 1),
    Case(
        "DICOM cut off in its pixels",
        damaged_scan(lambda content: content[:-100]),
        r"b/x.dcm' cannot be decoded",
        1,
    ),
    Case(
        "DICOM cut off in its header", damaged_scan(lambda content: content[:180]), r"b/x.dcm' ", 1
    ),
    Case("DICOM without rows", scan(Rows=None), r"b/x.dcm' cannot be decoded", 1),
    Case("DICOM of no size", scan(Rows=0), r"b/x.dcm' cannot be decoded", 1),
    Case("DICOM without bits", scan(BitsAllocated=None), r"b/x.dcm' cannot be decoded", 1),
    Case(
        "DICOM of unknown colours",
        scan(PhotometricInterpretation="HSV"),
        r"b/x.dcm' has a photom",
        1,
    ),
    Case(
        "DICOM that claims a bomb",
        scan(Rows=60_000, Columns=60_000),
        r"b/x.dcm' .* exceeds limit",
        1,
    ),
    Case("DICOM with frames that are not there", scan(frames=2, NumberOfFrames=3), r"b/x.dcm' ", 3),
    Case(
        "DICOM without suffix, cut off",
        image("b/IM1", lambda p: save_dicom(p) and truncated(p)),
        r"b/IM1' has no pixels",
        1,
    ),
    Case("NIfTI with NaN", volume(HOLED), r"b/x.nii' has 1 values that are NaN", 3),
    Case(
        "NIfTI with infinity",
        volume(np.where(np.isnan(HOLED), np.inf, HOLED)),
        r"b/x.nii' has 1 v",
        3,
    ),
    Case(
        "NIfTI of four dimensions", volume(np.stack([NOISE] * 2, axis=-1)), r"b/x.nii' has 4 dim", 1
    ),
    Case("NIfTI of one dimension", volume(NOISE[:, 0, 0]), r"b/x.nii' has 1 dimensions", 1),
    Case(
        "NIfTI of complex numbers",
        volume(NOISE.astype(np.complex64)),
        r"b/x.nii' has values of type",
        3,
    ),
    Case(
        "NIfTI cut off", volume(NOISE, change=lambda content: content[:-50]), r"b/x.nii' cannot", 3
    ),
    Case(
        "packed NIfTI cut off",
        volume(LARGE, "b/x.nii.gz", lambda content: content[:-50]),
        r"b/x.nii.gz' cannot be decoded",
        3,
    ),
    Case(
        "NIfTI that is not packed as it says",
        volume(NOISE, "b/x.nii.gz", gzip.decompress),
        r"b/x.nii.gz' ",
        1,
    ),
    Case("zero bytes named .nii", image("b/x.nii", Path.touch), r"b/x.nii' is not an image", 1),
    Case("text named .nii", image("b/x.nii", text), r"b/x.nii' is not a N", 1),
    Case("text named .nii.gz", image("b/x.nii.gz", text), r"b/x.nii.gz' ", 1),
    Case(
        "NIfTI with header alone",
        volume(NOISE, change=lambda content: content[:352]),
        r"b/x.nii' ",
        3,
    ),
]


@pytest.fixture(scope="module")
def composed():
    """Return a function that composes each choice once."""
    found = {}

    def compose(choice):
        if choice not in found:
            with App.open("train", None) as app:
                given = [f"dataset={choice}", *NEEDED[choice], "dataset.image_size=16"]
                found[choice] = app.compose(given).plain()["dataset"]
        return found[choice]

    return compose


@pytest.fixture
def opened(composed, tmp_path):
    """Return a function that writes a data set and builds what reads it."""

    def build_for(make, on_error="raise"):
        root = tmp_path / on_error
        root.mkdir()
        choice, keys = make(root)
        return build(composed(choice) | {"root": root, "on_error": on_error} | keys, Dataset)

    return build_for


def decoded(dataset, tmp_path):
    annotation = "labels" if dataset.provides == {"labels"} else "class"
    return decode(dataset, tmp_path / "cache", annotation)


@pytest.mark.parametrize("case", [*TABLES, *FOLDERS, *ARCHIVES, *SCANS], ids=lambda case: case.name)
def test_a_fault_is_one_error_that_names_it_or_a_counted_sample_less(case, opened, tmp_path):
    if "may not be read" in case.name and os.geteuid() == 0:
        pytest.skip("root may read everything")

    def attempt(on_error):
        return decoded(opened(case.make, on_error), tmp_path)

    with pytest.raises(DataError, match=case.message) as caught:
        attempt("raise")
    assert caught.value.remedy
    if case.left_out:
        found = attempt("skip")
        assert len(found.records) == 4
        assert len(found.skipped) == case.left_out
    else:
        with pytest.raises(DataError, match=case.message):
            attempt("skip")


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (table(patient="patient", exam="exam", split_column="use"), 4),
        (lambda root: table()(root) and parquet()(root), 2),
        (folder(), 4),
        (archive(), 14),
        (scan(), 5),
        (volume(NOISE), 7),
    ],
    ids=["table", "Parquet", "folder", "archive", "DICOM", "NIfTI"],
)
def test_sound_data_of_each_kind_have_no_fault(make, count, opened, tmp_path):
    assert len(decoded(opened(make), tmp_path).records) == count


def test_there_are_enough_of_them():
    names = [case.name for case in (*TABLES, *FOLDERS, *ARCHIVES, *SCANS)]
    assert len(names) == len(set(names)) >= 40

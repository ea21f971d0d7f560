import os
import re
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image as PILImage
from pydantic import ValidationError

from medtransfer.data.mask_folder import MaskFolder, read_mask
from medtransfer.data.reading.base import (
    SUFFIXES,
    Reading,
    frames,
    identity,
    read,
    spacing,
    stem_of,
    suffix_of,
)
from medtransfer.data.splits import Split
from medtransfer.errors import ConfigError, DataError

AUTO = Reading()
FULL = Reading(window="full")
DEEP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
GREY = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (8, 1))


def colours(*shape, kind=np.uint16):
    return np.random.default_rng(0).integers(0, np.iinfo(kind).max, (*shape, 3), dtype=kind)


@pytest.mark.parametrize(
    "keys",
    [
        {"window": (5, 5)},
        {"window": (5, 1)},
        {"window": (0, float("inf"))},
        {"window": "wide"},
        {"axis": 3},
        {"step": 0},
        {"stride": 2},
    ],
)
def test_settings_without_a_meaning_are_refused(keys):
    with pytest.raises(ValidationError):
        Reading(**keys)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_usual_mode_is_read_as_grey_or_colour(tmp_path, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    PILImage.fromarray(GREY).convert(mode).save(path)
    image = read(path, None, AUTO)
    assert image.dtype == np.uint8
    assert image.shape == ((8, 16) if mode in {"L", "1", "LA"} else (8, 16, 3))
    if mode != "1":  # which dithers
        assert np.abs(image.reshape(8, 16, -1) - GREY[..., None].astype(int)).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tif", "TIFF"])
def test_16_bits_keep_every_value(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    PILImage.fromarray(DEEP).save(path)
    image = read(path, None, AUTO)
    assert image.dtype == np.uint16
    assert np.array_equal(image, DEEP)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_file_of_which_zero_is_white_is_turned_round(tmp_path, kind):
    pixels = DEEP[:, :100].astype(kind)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="miniswhite")
    assert np.array_equal(read(tmp_path / "x.tif", None, AUTO), np.iinfo(kind).max - pixels)


@pytest.mark.parametrize("layout", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_of_16_bits_keep_every_value_in_tiff(tmp_path, layout, compression):
    pixels = colours(7, 9)
    given = pixels if layout == "contig" else np.moveaxis(pixels, 2, 0)
    tifffile.imwrite(
        tmp_path / "x.tif", given, photometric="rgb", planarconfig=layout, compression=compression
    )
    image = read(tmp_path / "x.tif", None, AUTO)
    assert image.dtype == np.uint16
    assert np.array_equal(image, pixels)


def test_opacity_is_left_out_of_colours_of_16_bits(tmp_path):
    pixels = np.concatenate([colours(7, 9), np.full((7, 9, 1), 9, np.uint16)], axis=2)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read(tmp_path / "x.tif", None, AUTO), pixels[..., :3])


def test_pixels_are_as_they_are_stored_whatever_way_the_camera_was_turned(tmp_path):
    exif = PILImage.Exif()
    exif[0x0112] = 6  # a quarter turn
    PILImage.fromarray(GREY).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(read(tmp_path / "x.png", None, AUTO), GREY)


def test_a_window_says_what_is_black_and_white(tmp_path):
    PILImage.fromarray(np.array([[1000, 1500, 2000, 9000]], np.uint16)).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png", None, Reading(window=(1000, 2000))).tolist() == [
        [0, 32768, 65535, 65535]
    ]
    assert read(tmp_path / "x.png", None, FULL).tolist() == [[0, 4096, 8192, 65535]]
    PILImage.fromarray(np.array([[50, 100]], np.uint8)).save(tmp_path / "y.png")
    image = read(tmp_path / "y.png", None, FULL)
    assert image.dtype == np.uint8
    assert image.tolist() == [[0, 255]]


def test_an_image_of_one_value_is_black_in_its_full_window(tmp_path):
    PILImage.fromarray(np.full((3, 3), 77, np.uint8)).save(tmp_path / "x.png")
    assert (read(tmp_path / "x.png", None, FULL) == 0).all()


def test_a_window_leaves_colours_alone(tmp_path):
    pixels = colours(4, 5, kind=np.uint8)
    PILImage.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(read(tmp_path / "x.png", None, Reading(window=(0, 10))), pixels)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32])
def test_values_without_a_known_range_need_a_window(tmp_path, kind):
    tifffile.imwrite(tmp_path / "x.tif", np.array([[-100, 0, 100]], kind))
    with pytest.raises(DataError, match="32 bits for each pixel") as caught:
        read(tmp_path / "x.tif", None, AUTO)
    assert "dataset.reading.window=[low, high]" in caught.value.remedy
    for reading in (FULL, Reading(window=(-100, 100))):
        image = read(tmp_path / "x.tif", None, reading)
        assert image.dtype == np.uint16
        assert image.tolist() == [[0, 32768, 65535]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(tmp_path, value):
    tifffile.imwrite(tmp_path / "x.tif", np.array([[0, value, 1]], np.float32))
    with pytest.raises(DataError, match=r"x.tif' has 1 values that are NaN or infinite"):
        read(tmp_path / "x.tif", None, Reading(window=(0, 1)))


@pytest.fixture
def stack(tmp_path):
    """Return a TIFF file of seven pages: 0, 100, 200 and so on."""
    path = tmp_path / "stack.tif"
    pages = np.arange(7, dtype=np.uint16)[:, None, None] * np.full((5, 6), 100, np.uint16)
    tifffile.imwrite(path, pages)
    return path


def test_each_page_of_a_tiff_file_is_an_image(stack):
    assert frames(stack, AUTO) == tuple(range(7))
    assert frames(stack, Reading(step=3)) == (0, 3, 6)
    assert [read(stack, page, AUTO).max() for page in range(7)] == [100 * i for i in range(7)]
    # the full window is that of all pages
    assert [read(stack, page, FULL).max() for page in (0, 3, 6)] == [0, 32768, 65535]


def test_a_page_that_is_not_there_or_not_named_is_told(stack):
    with pytest.raises(DataError, match=r"stack.tif' has 7 frames, and so none 7"):
        read(stack, 7, AUTO)
    with pytest.raises(DataError, match=r"stack.tif' holds 7 frames, and one image is expected"):
        read(stack, None, AUTO)


def test_a_file_of_one_image_has_no_frames(tmp_path):
    PILImage.fromarray(GREY).save(tmp_path / "x.tif")
    first, second = PILImage.new("L", (4, 4)), PILImage.new("L", (4, 4), 200)
    first.save(tmp_path / "x.gif", save_all=True, append_images=[second])
    for name in ("x.tif", "x.gif"):  # of an animation, the first
        assert frames(tmp_path / name, AUTO) is None
    assert (read(tmp_path / "x.gif", None, AUTO) == 0).all()


def test_a_file_that_was_written_anew_is_read_anew(stack):
    assert read(stack, 6, FULL).max() == 65535
    tifffile.imwrite(stack, np.full((8, 5, 6), 3, np.uint16))
    assert read(stack, 6, FULL).max() == 0


def test_these_formats_tell_neither_patients_nor_distances(tmp_path):
    PILImage.fromarray(GREY).save(tmp_path / "x.png", dpi=(72, 72))
    assert identity(tmp_path / "x.png") is None
    assert spacing(tmp_path / "x.png", None, AUTO) is None


def cut(path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    PILImage.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:500])


def cut_deep(path):
    tifffile.imwrite(path, colours(64, 64), photometric="rgb", compression="zlib")
    path.write_bytes(path.read_bytes()[:-500])


def loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("cut.png", cut, r"cut.png' cannot be decoded"),
        ("cut.tif", cut_deep, r"cut.tif' cannot be decoded"),
        ("text.png", lambda path: path.write_text("x"), r"text.png' is not an image, whatever"),
        ("text.tif", lambda path: path.write_text("x"), r"text.tif' is not an image, whatever"),
        ("empty.tif", lambda path: path.touch(), r"empty.tif' is not an image, .*it is empty"),
        ("notes.txt", lambda path: path.write_text("x"), r"notes.txt' is not an image file"),
        ("noname", lambda path: path.write_text("x"), r"noname' is not an image file"),
        ("gone.png", lambda _: None, r"gone.png' does not exist"),
        ("loop.png", loop, r"loop.png' cannot be decoded: .*symbolic links"),
        ("folder.png", lambda path: path.mkdir(), r"folder.png' cannot be decoded"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_two_ways_out(tmp_path, name, write, message):
    path = tmp_path / name
    write(path)
    assert frames(path, AUTO) is None
    assert spacing(path, None, AUTO) is None
    with pytest.raises(DataError, match=message) as caught:
        read(path, None, AUTO)
    assert "remove the file" in caught.value.remedy
    assert "dataset.on_error=skip" in caught.value.remedy


def test_a_name_that_is_no_text_is_named_too(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\xfe.png")
    try:
        path.write_text("x")
    except OSError:
        pytest.skip("the file system takes text alone")
    with pytest.raises(DataError, match="is not an image, whatever"):
        read(path, None, AUTO)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"bomb.{suffix}"
    PILImage.new("L", (32, 32)).save(path)
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"cannot be decoded.*exceeds limit"):
        read(path, None, AUTO)


def test_names_have_dots_of_their_own(tmp_path):
    names = {"a/p1.2.nii.gz": "a/p1.2", "X.NII.GZ": "X", "1.2.840": "1.2.840", "a.b.PNG": "a.b"}
    for name, stem in names.items():
        assert stem_of((tmp_path / name).relative_to(tmp_path)) == stem
    assert suffix_of(tmp_path / "X.Nii.Gz") == ".nii.gz"
    assert {".png", ".dcm", ".nii", ".nii.gz"} <= SUFFIXES


@pytest.fixture
def folder(tmp_path, stack):
    """Return a dataset of one image and one stack, with masks."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    stack.rename(root / "images" / "p1_stack.tif")
    PILImage.fromarray(GREY).save(root / "images" / "p2_x#0001.png")
    pages = np.zeros((7, 5, 6), np.uint8)
    for i in range(7):
        pages[i, 0, i % 6] = 255
    tifffile.imwrite(root / "masks" / "p1_stack.tif", pages)
    PILImage.fromarray(GREY * 0).save(root / "masks" / "p2_x#0001.png")
    return MaskFolder(
        root=root,
        images="images",
        masks="masks",
        values={"lesion": 255},
        background=0,
        ignored=None,
        group=None,
        boxes_from_masks=False,
        min_area=1,
        note=None,
        image_size=16,
        channels=1,
        fraction=1,
        shots=None,
        on_error="raise",
        split=Split(kind="holdout", seed=0, file=None, ratios=(0.6, 0.2, 0.2)),
        reading=Reading(step=3),
    )


def test_pages_are_samples_of_one_exam_and_one_patient_with_their_masks(folder):
    _, records = folder.records()
    stack = "images/p1_stack.tif"
    assert [r.sample_id for r in records] == [
        f"{stack}#0000",
        f"{stack}#0003",
        f"{stack}#0006",
        "images/p2_x#0001.png",
    ]
    assert [r.group_id for r in records] == [r.exam_id for r in records]
    assert [r.exam_id for r in records] == [stack] * 3 + ["images/p2_x#0001.png"]
    assert folder.read(records[1]).max() == 300
    assert np.argwhere(folder.mask(records[1])).tolist() == [[0, 3]]
    assert folder.read(records[3]).shape == folder.mask(records[3]).shape
    assert {file.name for file in folder.files(records[2])} == {"p1_stack.tif"}
    with pytest.raises(DataError, match=r"p1_stack.tif' has no page 9"):
        read_mask(folder.root / "masks" / "p1_stack.tif", 9)


def test_a_file_whose_name_ends_like_a_frame_is_itself(folder):
    path = folder.root / "images" / "x.tif#0002"
    path.touch()
    assert folder.where("images/x.tif#0002") == (path, None)
    assert folder.where("images/y.tif#0002") == (folder.root / "images" / "y.tif", 2)
    assert folder.where("images/y.tif#12345") == (folder.root / "images" / "y.tif", 12345)
    assert folder.where("images/y#02.tif") == (folder.root / "images" / "y#02.tif", None)


def test_the_fingerprint_follows_how_files_are_read(folder):
    _, records = folder.records()
    found = {
        replace(folder, reading=reading).fingerprint(records)
        for reading in (AUTO, FULL, Reading(axis=1), Reading(window=(0, 1)))
    }
    assert len(found) == 4
    assert folder.fingerprint(records[1:]) != folder.fingerprint(records)


def test_patients_that_a_pattern_finds_are_hashed_with_a_secret(folder, tmp_path):
    pattern = {"group": re.compile(r"^p\d")}
    plain = [r.group_id for r in replace(folder, **pattern).records()[1]]
    assert plain == ["p1"] * 3 + ["p2"]
    hashed = replace(folder, identifiers="hashed", salt=tmp_path / "salt", **pattern)
    names = [r.group_id for r in hashed.records()[1]]
    assert len(set(names)) == 2
    assert not set(names) & set(plain)
    with pytest.raises(ConfigError, match="identifiers=hashed needs a file"):
        replace(folder, identifiers="hashed")

import logging
import struct
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as PILImage
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_voi_lut, pixel_array
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medtransfer.data.reading import dicom
from medtransfer.data.reading.base import Identity, Reading, frames, identity, read, spacing
from medtransfer.errors import DataError

AUTO = Reading()
FULL = Reading(window="full")


def given(name):
    """Return a file that comes with pydicom."""
    return Path(get_testdata_file(name, download=False))


def write(path, pixels, bits=16, photometric="MONOCHROME2", **tags):
    """Write pixels, (H, W), (n, H, W) or (H, W, 3), in one DICOM file."""
    colour = photometric not in {"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"}
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.Rows, data.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    if pixels.ndim == 3 and not colour:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel = 3 if colour else 1
    if colour:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    content = pixels.tobytes()
    data.PixelData = content + b"\0" * (len(content) % 2)
    data["PixelData"].VR = "OW"
    data.save_as(path, enforce_file_format=True)
    return path


def table(first, depth, entries):
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, depth]
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item.LUTData = struct.pack(f"<{len(entries)}H", *entries)
    item["LUTData"].VR = "OW"
    return [item]


def item(**tags):
    found = Dataset()
    for keyword, value in tags.items():
        setattr(found, keyword, value)
    return found


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_without_a_window_stored_bits_fill_the_range(tmp_path, bits, signed):
    least = -(2 ** (bits - 1)) if signed else 0
    values = np.array([[least, least + 2**bits - 1, least + 2 ** (bits - 1)]])
    kind = f"{'i' if signed else 'u'}{1 if bits == 8 else 2}"
    path = write(tmp_path / "x.dcm", values.astype(kind), bits)
    image = read(path, None, AUTO)
    top = 255 if bits == 8 else 65535
    assert image.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert image.tolist() == [[0, top, round(top * 2 ** (bits - 1) / (2**bits - 1))]]


def test_a_range_is_that_of_the_units_whichever_way_they_run(tmp_path):
    tags = {"RescaleSlope": -2, "RescaleIntercept": 7}
    path = write(tmp_path / "x.dcm", np.array([[0, 4095]], np.uint16), 12, **tags)
    assert read(path, None, AUTO).tolist() == [[65535, 0]]


def test_a_files_own_window_is_taken_in_the_units_of_the_modality(tmp_path):
    hounsfield = np.array([[-1000, -160, -159.5 + 199.5, 239, 240, 3000]])
    tags = {
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "WindowCenter": [40, 50],  # the first of several holds
        "WindowWidth": [400, 350],
    }
    path = write(tmp_path / "x.dcm", (hounsfield + 1024).astype(np.uint16), **tags)
    image = read(path, None, AUTO)[0]
    # PS3.3 C.11.2.1.2.1: from c - 0.5 - (w - 1) / 2 on, w - 1 units wide
    expected = (hounsfield[0] - (39.5 - 199.5)) / 399
    assert np.abs(image - np.clip(expected, 0, 1) * 65535).max() <= 1
    # one that says itself what is black and white does not ask the file
    window = Reading(window=(-1000, 3000))
    expected = (hounsfield[0] + 1000) / 4000
    assert np.abs(read(path, None, window)[0] - expected * 65535).max() <= 1


@pytest.mark.parametrize(
    ("function", "expected"),
    [("LINEAR_EXACT", [0, 0.5, 1]), ("SIGMOID", [1 / (1 + np.exp(2)), 0.5, 1 / (1 + np.exp(-2))])],
)
def test_a_window_may_have_another_shape(tmp_path, function, expected):
    tags = {"WindowCenter": 100, "WindowWidth": 40, "VOILUTFunction": function}
    path = write(tmp_path / "x.dcm", np.array([[80, 100, 120]], np.uint16), **tags)
    assert np.abs(read(path, None, AUTO)[0] / 65535 - expected).max() < 1e-4


@pytest.mark.parametrize("width", [0, -5, None])
def test_a_window_without_a_width_is_none(tmp_path, width):
    tags = {"WindowCenter": 100, "WindowWidth": width}
    path = write(tmp_path / "x.dcm", np.array([[0, 65535]], np.uint16), **tags)
    assert read(path, None, AUTO).tolist() == [[0, 65535]]


def test_the_full_window_goes_from_the_least_to_the_greatest_of_all_frames(tmp_path):
    values = np.array([[[10, 20]], [[30, 110]]], np.uint16)
    path = write(tmp_path / "x.dcm", values, WindowCenter=1, WindowWidth=1)
    assert [read(path, i, FULL).tolist()[0] for i in (0, 1)] == [[0, 6554], [13107, 65535]]


def test_monochrome1_is_the_negative(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (9, 7), dtype=np.uint16)
    tags = {"WindowCenter": 2000, "WindowWidth": 1000}
    plain = read(write(tmp_path / "2.dcm", values, 12, **tags), None, AUTO)
    negative = read(write(tmp_path / "1.dcm", values, 12, "MONOCHROME1", **tags), None, AUTO)
    assert np.array_equal(negative, 65535 - plain)


def test_a_voi_table_is_looked_up_as_pydicom_does_it(tmp_path):
    entries = np.sort(np.random.default_rng(0).integers(0, 4096, 300)).tolist()
    tags = {"VOILUTSequence": table(5, 12, entries), "WindowCenter": 1, "WindowWidth": 9}
    values = np.arange(400, dtype=np.uint16).reshape(20, 20)
    path = write(tmp_path / "x.dcm", values, 12, **tags)
    expected = apply_voi_lut(values, dcmread(path)) / 4095 * 65535
    assert np.abs(read(path, None, AUTO) - expected).max() <= 0.5


@pytest.mark.parametrize("first", [-2, 0, 3])
def test_a_modality_table_may_have_any_depth_and_first_value(tmp_path, first):
    tags = {"ModalityLUTSequence": table(first, 10, [0, 100, 200, 1023])}
    values = np.arange(-4, 8, dtype=np.int16)[None]
    path = write(tmp_path / "x.dcm", values, **tags)
    expected = np.array([0, 100, 200, 1023])[np.clip(values - first, 0, 3)]
    assert np.abs(read(path, None, AUTO) - expected / 1023 * 65535).max() <= 0.5


def test_each_frame_has_its_own_scale_window_and_spacing(tmp_path):
    def groups(slope, center):
        return item(
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=0)],
            FrameVOILUTSequence=[item(WindowCenter=center, WindowWidth=101)],
        )

    tags = {
        "PerFrameFunctionalGroupsSequence": [groups(1, 50.5), groups(10, 500.5)],
        "SharedFunctionalGroupsSequence": [
            item(PixelMeasuresSequence=[item(PixelSpacing=[0.5, 0.25])])
        ],
    }
    path = write(tmp_path / "x.dcm", np.array([[[0, 50, 100]]] * 2, np.uint16), **tags)
    first, second = (read(path, frame, AUTO)[0].tolist() for frame in (0, 1))
    assert first == [0, 32768, 65535]
    assert second == [0, 32768, 65535]
    tags["PerFrameFunctionalGroupsSequence"][1] = groups(10, 50.5)
    path = write(tmp_path / "y.dcm", np.array([[[0, 50, 100]]] * 2, np.uint16), **tags)
    assert read(path, 1, AUTO)[0].tolist() == [0, 65535, 65535]
    assert spacing(path, 1, AUTO) == (0.5, 0.25)


def test_frames_are_images_and_one_is_none(tmp_path):
    values = np.arange(5, dtype=np.uint16)[:, None, None] * np.ones((2, 3), np.uint16)
    path = write(tmp_path / "x.dcm", values)
    assert frames(path, AUTO) == (0, 1, 2, 3, 4)
    assert frames(path, Reading(step=2)) == (0, 2, 4)
    assert [read(path, i, AUTO).max() for i in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"x.dcm' has 5 frames, and so none 5"):
        read(path, 5, AUTO)
    with pytest.raises(DataError, match=r"x.dcm' holds 5 frames, and one image is expected"):
        read(path, None, AUTO)
    assert frames(write(tmp_path / "y.dcm", values[:1]), AUTO) is None


def test_a_file_is_loaded_once_for_its_frames_and_again_when_it_changes(tmp_path, monkeypatch):
    values = np.arange(4, dtype=np.uint16)[:, None, None] * np.ones((2, 3), np.uint16)
    path = write(tmp_path / "x.dcm", values)
    loads = []
    monkeypatch.setattr(dicom, "dcmread", lambda *a, **k: loads.append(a) or dcmread(*a, **k))
    for i in range(4):
        read(path, i, AUTO)
    assert len(loads) == 1
    write(path, np.repeat(values + 100, 2, axis=0))
    assert read(path, 0, AUTO).max() == 100


@pytest.mark.parametrize("name", ["implicit", "bigendian", "expb", "padded", "RLE", "jp2klossless"])
def test_the_transfer_syntax_does_not_change_the_image(name):
    expected = read(given("MR_small.dcm"), None, AUTO)
    assert np.array_equal(read(given(f"MR_small_{name}.dcm"), None, AUTO), expected)


def test_deflated_files_are_read():
    data = dcmread(given("image_dfl.dcm"))
    assert np.array_equal(read(given("image_dfl.dcm"), None, AUTO), pixel_array(data))


def test_luma_and_chroma_become_colours():
    path = given("examples_ybr_color.dcm")
    assert frames(path, Reading(step=10)) == (0, 10, 20)
    assert np.array_equal(read(path, 20, AUTO), pixel_array(path, index=20))
    # the same picture in both kinds
    ybr = read(given("SC_ybr_full_422_uncompressed.dcm"), None, AUTO).astype(int)
    rgb = read(given("SC_rgb_rle.dcm"), None, AUTO)
    assert np.abs(ybr - rgb).mean() < 3


def test_colours_stay_as_they_are_whatever_the_window():
    path = given("examples_rgb_color.dcm")
    for reading in (AUTO, FULL, Reading(window=(0, 5))):
        assert np.array_equal(read(path, None, reading), pixel_array(path))


def test_deep_colours_fill_16_bits(tmp_path):
    expected = read(given("SC_rgb_rle.dcm"), None, AUTO).astype(int)
    for name in ("SC_rgb_rle_16bit.dcm", "SC_rgb_rle_32bit.dcm"):
        image = read(given(name), None, AUTO)
        assert image.dtype == np.uint16
        assert np.array_equal(image // 257, expected)
    ten = write(tmp_path / "x.dcm", np.full((2, 2, 3), 1023, np.uint16), 10, "RGB")
    assert (read(ten, None, AUTO) == 65535).all()


def test_a_palette_gives_colours():
    path = given("examples_palette.dcm")
    data = dcmread(path)
    assert np.array_equal(read(path, None, AUTO), apply_color_lut(pixel_array(data), data))


@pytest.mark.parametrize("wide", [False, True])
def test_a_palette_of_8_bits_fills_them_in_words_too(tmp_path, wide):
    tags = {}
    for i, colour in enumerate(("Red", "Green", "Blue")):
        entries = [0, 10 * i, 255]
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, 8]
        tags[f"{colour}PaletteColorLookupTableData"] = struct.pack(
            "<4H" if wide else "4B", *entries, 0
        )
    path = write(tmp_path / "x.dcm", np.array([[0, 1, 2]], np.uint8), 8, "PALETTE COLOR", **tags)
    image = read(path, None, AUTO)
    assert image.dtype == np.uint8
    assert image.tolist() == [[[0, 0, 0], [0, 10, 20], [255, 255, 255]]]


def test_one_bit_is_black_and_white():
    image = read(given("liver_1frame.dcm"), None, AUTO)
    assert image.dtype == np.uint8
    assert np.unique(image).tolist() == [0, 255]


def test_values_of_32_bits_need_a_window():
    path = given("rtdose.dcm")
    with pytest.raises(DataError, match=r"frame 3 of image .* has 32 bits for each pixel"):
        read(path, 3, AUTO)
    values = pixel_array(dcmread(path)) * float(dcmread(path).get("RescaleSlope", 1))
    ends = values.min(), values.max()
    expected = (values[3] - ends[0]) / (ends[1] - ends[0]) * 65535
    assert np.abs(read(path, 3, FULL) - expected).max() <= 1
    assert np.array_equal(read(path, 3, Reading(window=ends)), read(path, 3, FULL))


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing"])
def test_the_spacing_is_that_between_rows_and_between_columns(tmp_path, keyword):
    path = write(tmp_path / "x.dcm", np.zeros((2, 2), np.uint16), **{keyword: [0.7, 0.3]})
    assert spacing(path, None, AUTO) == (0.7, 0.3)
    assert spacing(write(path, np.zeros((2, 2), np.uint16)), None, AUTO) is None
    assert spacing(write(path, np.zeros((2, 2), "u2"), **{keyword: [0, 1]}), None, AUTO) is None


def test_a_header_tells_patient_exam_and_view_and_no_more(tmp_path):
    tags = {
        "PatientID": " 4711 ",
        "PatientName": "Doe^Jane",
        "StudyInstanceUID": "1.2.3",
        "ViewPosition": "CC",
        "SeriesDescription": "left breast of Jane",
    }
    path = write(tmp_path / "x.dcm", np.zeros((2, 2), np.uint16), **tags)
    assert identity(path) == Identity("4711", "1.2.3", "CC")
    assert identity(write(path, np.zeros((2, 2), np.uint16))) == Identity("", "", "")
    path.write_text("x")
    assert identity(path) is None


@pytest.mark.parametrize("name", ["noname", "1.2.840.113", "x.IMA", "x.DICOM"])
def test_files_are_known_by_suffix_or_by_what_they_begin_with(tmp_path, name):
    path = write(tmp_path / name, np.ones((2, 2), np.uint16), PatientID="7")
    assert read(path, None, AUTO).tolist() == [[1, 1], [1, 1]]
    assert identity(path).patient == "7"


def text(path):
    path.write_text("x" * 1000)


def no_pixels(path):
    write(path, np.zeros((2, 2), np.uint16))
    data = dcmread(path)
    del data.PixelData
    data.save_as(path)


def cut(path):
    write(path, np.zeros((64, 64), np.uint16))
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(path):
    write(path, np.zeros((64, 64), np.uint16))
    path.write_bytes(path.read_bytes()[:400])


def changed(**tags):
    def make(path):
        write(path, np.zeros((2, 2), np.uint16))
        data = dcmread(path)
        for keyword, value in tags.items():
            setattr(data, keyword, value)
        data.save_as(path)

    return make


def not_finite(path):
    changed()(path)
    data = dcmread(path)
    del data.PixelData
    data.BitsAllocated = data.BitsStored = 32
    data.FloatPixelData = np.array([1, np.nan, 2, 3], np.float32).tobytes()
    data.save_as(path)


@pytest.mark.parametrize(
    ("write_to", "message"),
    [
        (text, r"x.dcm' is not a DICOM file, whatever"),
        (lambda path: path.touch(), r"x.dcm' is not an image, .* it is empty"),
        (no_pixels, r"x.dcm' has no pixels"),
        (cut, r"x.dcm' cannot be decoded: .*cut off"),
        (cut_header, r"x.dcm' (cannot be decoded|has no pixels)"),
        (changed(Rows=3), r"x.dcm' cannot be decoded"),
        (changed(Rows=65535, Columns=65535), r"x.dcm' cannot be decoded: .*exceeds limit"),
        (changed(NumberOfFrames=10**9), r"x.dcm' cannot be decoded: .*exceeds limit"),
        (changed(NumberOfFrames=10**6), r"x.dcm' cannot be decoded: it claims 1000000 frames"),
        (changed(PhotometricInterpretation="HSV"), r"x.dcm' has a photometric interpretation"),
        (not_finite, r"x.dcm' has 1 values that are NaN"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, write_to, message):
    path = tmp_path / "x.dcm"
    write_to(path)
    assert frames(path, AUTO) is None
    with pytest.raises(DataError, match=message) as caught:
        read(path, None, AUTO)
    assert "dataset.on_error=skip" in caught.value.remedy


def test_many_frames_are_no_bomb_and_one_that_is_too_large_is(tmp_path, monkeypatch):
    path = write(tmp_path / "x.dcm", np.ones((20, 10, 10), np.uint16))
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 50)
    assert read(path, 19, AUTO).max() == 1
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 49)
    write(path, np.ones((20, 10, 10), np.uint16))
    with pytest.raises(DataError, match="exceeds limit of 98 pixels"):
        read(path, 19, AUTO)


@pytest.mark.parametrize("name", ["rtplan.dcm", "test-SR.dcm", "waveform_ecg.dcm"])
def test_files_of_other_kinds_have_no_pixels(name):
    with pytest.raises(DataError, match="has no pixels: it is a DICOM file of another kind"):
        read(given(name), None, AUTO)


def test_a_codec_that_is_missing_is_named_with_what_to_install(monkeypatch):
    path = given("MR_small_jpeg_ls_lossless.dcm")
    missing = SimpleNamespace(is_available=False, missing_dependencies=["pyjpegls"])
    monkeypatch.setattr(dicom, "get_decoder", lambda _: missing)
    with pytest.raises(DataError, match="its transfer syntax is JPEG-LS Lossless") as caught:
        read(path, None, AUTO)
    assert "medtransfer[dicom]" in caught.value.remedy
    assert "pyjpegls" in caught.value.remedy


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"])
def test_compressed_files_are_what_they_were_with_the_codecs_of_the_extra(name):
    np.testing.assert_array_equal(
        read(given(name), None, AUTO), read(given("MR_small.dcm"), None, AUTO)
    )


def test_a_kind_that_no_codec_knows_is_not_called_missing(tmp_path):
    video = dcmread(given("SC_rgb_jpeg_dcmtk.dcm"))
    video.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    video.save_as(tmp_path / "x.dcm")
    with pytest.raises(DataError, match="its transfer syntax is MPEG2") as caught:
        read(tmp_path / "x.dcm", None, AUTO)
    assert "install" not in caught.value.remedy


def broken(path, keyword, value):
    """Put a text into a field of numbers."""
    data = dcmread(path)
    data.PatientName = "SECRET^NAME"
    data.PatientID = "SECRET"
    data.ImageComments = "SECRET"
    setattr(data, keyword, "1.2345678")
    data.save_as(path)
    content = path.read_bytes()
    assert content.count(b"1.2345678") == 1
    path.write_bytes(content.replace(b"1.2345678", value.ljust(9)))


@pytest.mark.parametrize(
    "keyword", ["RescaleSlope", "WindowCenter", "PixelSpacing", "StudyInstanceUID"]
)
def test_no_word_of_a_header_is_in_an_error_a_warning_or_a_log(tmp_path, caplog, keyword):
    tags = {"RescaleSlope": 1, "RescaleIntercept": 0, "WindowCenter": 1, "WindowWidth": 5}
    path = write(tmp_path / "x.dcm", np.zeros((2, 2), np.uint16), **tags)
    broken(path, keyword, b"SECRET")
    said = []
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        assert frames(path, AUTO) is None
        assert spacing(path, None, AUTO) is None
        assert identity(path).patient == "SECRET"
        for reading in (AUTO, FULL):
            try:
                read(path, None, reading)
            except DataError as error:
                said.append(str(error))
    assert bool(said) == (keyword in {"RescaleSlope", "WindowCenter"})
    assert not warned
    assert "SECRET" not in "".join(said) + caplog.text

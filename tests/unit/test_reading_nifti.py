from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from PIL import Image as PILImage

from medtransfer.data.mask_folder import MaskFolder, read_mask
from medtransfer.data.reading import nifti
from medtransfer.data.reading.base import Reading, frames, identity, read, spacing
from medtransfer.data.splits import Split
from medtransfer.errors import DataError

AUTO = Reading()
FULL = Reading(window="full")
ORIENTATIONS = [
    "".join(code) for axes in permutations(("RL", "AP", "SI")) for code in product(*axes)
]


def save(path, values, affine=None, **header):
    image = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)
    for key, value in header.items():
        getattr(image.header, f"set_{key}")(*value)
    nibabel.save(image, path)
    return path


def volume(*shape, kind=np.int16):
    return np.random.default_rng(0).integers(0, 100, shape).astype(kind)


def patient():
    """Return a volume in RAS+ with 3, 4 and 5 voxels of 2, 3 and 4 mm."""
    return nibabel.Nifti1Image(volume(3, 4, 5), np.diag([2.0, 3, 4, 1]))


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_slices_do_not_depend_on_how_the_volume_is_stored(tmp_path, code):
    stored = patient().as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(code))))
    assert "".join(nibabel.aff2axcodes(stored.affine)) == code
    nibabel.save(stored, tmp_path / "x.nii")
    values = np.asarray(patient().dataobj)
    sides = (2, 3, 4)
    for axis in range(3):
        reading = Reading(axis=axis, window=(0, 65535))
        assert frames(tmp_path / "x.nii", reading) == tuple(range(values.shape[axis]))
        across, down = (side for i, side in enumerate(sides) if i != axis)
        assert spacing(tmp_path / "x.nii", 0, reading) == (down, across)
        for i in range(values.shape[axis]):
            expected = np.rot90(values.take(i, axis))
            assert np.array_equal(read(tmp_path / "x.nii", i, reading), expected)


@pytest.mark.parametrize(
    ("axis", "bright"),
    [(0, (0, -1)), (1, (0, -1)), (2, (0, -1))],
    ids=["sagittal", "coronal", "axial"],
)
def test_front_and_head_are_on_top_and_the_patients_right_on_the_right(tmp_path, axis, bright):
    values = np.zeros((4, 4, 4), np.int16)
    values[3, 3, 3] = 1  # right, front, head
    image = read(save(tmp_path / "x.nii.gz", values), 3, Reading(axis=axis, window="full"))
    assert image[bright] == 65535
    assert (image > 0).sum() == 1


def test_a_volume_in_no_known_place_is_cut_as_it_is_stored(tmp_path):
    values = volume(3, 4, 5)
    path = save(tmp_path / "x.nii", values)
    content = bytearray(path.read_bytes())
    content[252:256] = (0).to_bytes(2, "little") + (1).to_bytes(2, "little")  # sform alone
    content[280:328] = bytes(48)  # that tells nothing
    path.write_bytes(content)
    found = read(path, 1, Reading(window=(0, 65535)))
    assert np.array_equal(found, np.rot90(values[:, :, 1]))


@pytest.mark.parametrize("step", [1, 2, 3])
def test_every_so_many_slices_are_taken(tmp_path, step):
    path = save(tmp_path / "x.nii.gz", volume(3, 4, 7))
    assert frames(path, Reading(step=step)) == tuple(range(0, 7, step))
    with pytest.raises(DataError, match=r"x.nii.gz' has 7 frames, and so none 7"):
        read(path, 7, AUTO)
    with pytest.raises(DataError, match=r"x.nii.gz' holds 7 frames, and one image"):
        read(path, None, AUTO)


def test_the_window_is_that_of_the_whole_volume(tmp_path):
    values = np.random.default_rng(0).normal(0, 100, (8, 9, 10)).astype(np.float32)
    path = save(tmp_path / "x.nii", values)
    for reading, (low, high) in [
        (AUTO, np.percentile(values, [0.5, 99.5])),
        (FULL, (values.min(), values.max())),
        (Reading(window=(-50, 150)), (-50, 150)),
    ]:
        expected = np.clip((np.rot90(values[:, :, 4]) - low) / (high - low), 0, 1) * 65535
        image = read(path, 4, reading)
        assert image.dtype == np.uint16
        assert np.abs(image - expected).max() <= 1


def test_a_window_is_in_the_units_that_the_file_scales_to(tmp_path):
    image = nibabel.Nifti1Image(np.array([[[0]], [[2000]]], np.int16), np.eye(4))
    image.header.set_slope_inter(1, -1000)
    # nibabel would scale back what it is given
    image = nibabel.Nifti1Image(np.array([[[-1000.0]], [[1000.0]]]), np.eye(4), image.header)
    nibabel.save(image, tmp_path / "x.nii")
    assert read(tmp_path / "x.nii", 0, Reading(window=(-1000, 3000))).tolist() == [[0, 32768]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("u1", np.uint8), ("i1", np.uint8), ("u2", np.uint16), ("i4", np.uint16), ("f8", np.uint16)],
)
def test_8_bits_stay_8_and_others_become_16(tmp_path, kind, expected):
    image = nibabel.Nifti1Image(volume(3, 4, 5, kind=kind), np.eye(4), dtype=kind)
    nibabel.save(image, tmp_path / "x.nii")
    assert read(tmp_path / "x.nii", 0, FULL).dtype == expected


@pytest.mark.parametrize("opacity", [False, True])
def test_colours_are_kept(tmp_path, opacity):
    names = "RGBA" if opacity else "RGB"
    pixels = volume(3, 4, 5, len(names), kind=np.uint8)
    stored = np.ascontiguousarray(pixels).view([(name, "u1") for name in names])[..., 0]
    path = save(tmp_path / "x.nii.gz", stored)
    image = read(path, 2, FULL)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.rot90(pixels[:, :, 2, :3]))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_file_of_two_dimensions_is_one_image(tmp_path, axis):
    values = volume(3, 4)
    path = save(tmp_path / "x.nii", values, np.diag([2.0, 3, 4, 1]))
    reading = Reading(axis=axis, window=(0, 65535))
    assert frames(path, reading) is None
    assert np.array_equal(read(path, None, reading), np.rot90(values))
    assert spacing(path, None, reading) == (3, 2)


def test_dimensions_of_one_value_do_not_count(tmp_path):
    values = volume(3, 4, 5, 1, 1)
    path = save(tmp_path / "x.nii", values)
    assert frames(path, AUTO) == (0, 1, 2, 3, 4)
    expected = np.rot90(values[:, :, 2, 0, 0])
    assert np.array_equal(read(path, 2, Reading(window=(0, 65535))), expected)


@pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("micron", 0.001), ("meter", 1000)])
def test_the_spacing_is_in_millimetres(tmp_path, unit, factor):
    affine = np.diag([2.0, 3, 4, 1])
    path = save(tmp_path / "x.nii", volume(3, 4, 5), affine, xyzt_units=(unit,))
    assert spacing(path, 0, AUTO) == pytest.approx((3 * factor, 2 * factor))
    assert identity(path) is None


def test_a_volume_is_decoded_once_for_its_slices_and_again_when_it_changes(tmp_path, monkeypatch):
    path = save(tmp_path / "x.nii.gz", volume(6, 6, 6))
    turns = []
    plain = nifti.apply_orientation
    monkeypatch.setattr(nifti, "apply_orientation", lambda *a: turns.append(1) or plain(*a))
    for axis in range(3):
        for i in range(6):
            read(path, i, Reading(axis=axis))
    assert len(turns) == 1
    save(path, volume(6, 6, 7) + 1)
    assert frames(path, AUTO) == tuple(range(7))
    assert len(np.unique(read(path, 6, FULL))) > 1
    assert len(turns) == 2


def wrong(value):
    def make(path):
        values = volume(3, 4, 5, kind=np.float32)
        values[1, 2, 3] = value
        save(path, values)

    return make


def cut(path):
    save(path, np.random.default_rng(0).normal(size=(20, 20, 20)))
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize(
    ("write", "message", "sliced"),
    [
        (wrong(np.nan), r"has 1 values that are NaN or infinite", True),
        (wrong(-np.inf), r"has 1 values that are NaN or infinite", True),
        (lambda p: save(p, volume(3, 4, 5, 6)), r"has 4 dimensions of 3 x 4 x 5 x 6", False),
        (lambda p: save(p, volume(3)), r"has 1 dimensions of 3 values", False),
        (lambda p: save(p, volume(3, 4, 5, kind=np.complex64)), r"of type complex64", True),
        (lambda p: p.write_text("x" * 500), r"is not a NIfTI image, whatever", False),
        (lambda p: p.touch(), r"is not an image, .* it is empty", False),
        (lambda _: None, r"does not exist", False),
        (cut, r"cannot be decoded: ", True),
    ],
    ids=["nan", "inf", "4d", "1d", "complex", "text", "empty", "missing", "cut"],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, suffix, write, message, sliced):
    path = tmp_path / f"x.{suffix}"
    write(path)
    assert (frames(path, AUTO) is not None) == sliced
    with pytest.raises(DataError, match=rf"x\.{suffix}' .*{message}|x\.{suffix}' {message}") as e:
        read(path, 1 if sliced else None, AUTO)
    assert "dataset.on_error=skip" in e.value.remedy


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "x.nii.gz", np.zeros((30, 30, 30), np.uint8))
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 1000)
    assert frames(path, AUTO) is None
    with pytest.raises(DataError, match=r"x.nii.gz' cannot be decoded: .*exceeds limit of 8000"):
        read(path, 0, AUTO)


@pytest.fixture
def folder(tmp_path):
    """Return a dataset of one volume and its mask, which is stored from right to left."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    values = np.zeros((6, 5, 4), np.int16)
    values[1, 2, :] = (0, 0, 7, 7)
    save(tmp_path / "images" / "p1.a.nii.gz", values)
    mask = nibabel.Nifti1Image((values > 0).astype(np.float32), np.eye(4))
    codes = axcodes2ornt(("L", "A", "S"))
    nibabel.save(
        mask.as_reoriented(ornt_transform(axcodes2ornt("RAS"), codes)),
        tmp_path / "masks" / "p1.a.nii",
    )

    def make(**keys):
        usual = {
            "images": "images",
            "masks": "masks",
            "values": {"lesion": 1},
            "background": 0,
            "ignored": None,
            "group": None,
            "boxes_from_masks": True,
            "min_area": 1,
            "note": None,
            "image_size": 16,
            "channels": 1,
            "fraction": 1,
            "shots": None,
            "on_error": "raise",
            "split": Split(kind="holdout", seed=0, file=None, ratios=(0.6, 0.2, 0.2)),
        }
        return MaskFolder(root=tmp_path, **usual | keys)

    return make


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_masks_are_cut_as_their_volumes_are(folder, axis):
    dataset = folder(reading=Reading(axis=axis, window="full"))
    _, records = dataset.records()
    assert len(records) == (6, 5, 4)[axis]
    assert {record.group_id for record in records} == {"images/p1.a.nii.gz"}
    shown = 0
    for record in records:
        mask = dataset.mask(record)
        assert np.array_equal(mask > 0, dataset.read(record) > 0)
        assert len(dataset.boxes(record).labels) == mask.any()
        shown += mask.sum()
    assert shown == 2
    assert dataset.spacing(records[0]) == (1, 1)


def test_a_mask_of_a_volume_must_be_of_whole_numbers_and_long_enough(folder, tmp_path):
    with pytest.raises(DataError, match=r"p1.a.nii' has 4 frames, and so none 4"):
        read_mask(tmp_path / "masks" / "p1.a.nii", 4)
    save(tmp_path / "masks" / "p1.a.nii", np.full((6, 5, 4), 0.5, np.float32))
    with pytest.raises(DataError, match=r"p1.a.nii' has values that are no whole numbers"):
        folder().mask(folder().records()[1][0])

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PILImage

from annotated import noise, save_mask, write_masks
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data.base import IGNORED, Dataset
from medtransfer.data.loading import Data
from medtransfer.data.mask_folder import read_mask
from medtransfer.errors import ConfigError, DataError


@pytest.fixture
def folder(compose, tmp_path):
    def make(*keys, count=9, values="{lesion: 255}"):
        root = write_masks(tmp_path / "data", count)
        needs = [f"dataset.root={root}", f"dataset.values={values}"]
        config = compose("dataset=mask_folder", *needs, *keys).typed(TrainConfig)
        return build(config.dataset, Dataset)

    return make


def first(dataset):
    return dataset.records()[1][0]


def test_images_meet_the_masks_of_their_stems_at_any_depth(folder):
    dataset = folder(count=2)
    noise(dataset.root / "images" / "deep" / "x.png", 7)
    deep = save_mask(dataset.root, "deep/x", np.full((12, 16), 255, np.uint8))
    deep.rename(deep.with_suffix(".bmp"))
    names, records = dataset.records()
    assert names == ("image",)
    ids = ["images/0.png", "images/1.png", "images/deep/x.png"]
    assert [r.sample_id for r in records] == [r.group_id for r in records] == ids
    assert {record.target for record in records} == {0}
    assert dataset.foreground() == ("lesion",)
    assert (dataset.mask(records[2]) == 1).all()
    expected = np.zeros((12, 16), np.uint8)
    expected[3:9, 2:6] = 1
    assert np.array_equal(dataset.mask(records[1]), expected)


def test_values_become_classes_in_their_order(folder):
    dataset = folder("dataset.background=3", "dataset.ignored=9", values="{b: 200, a: 0}", count=1)
    save_mask(dataset.root, 0, np.array([[200, 0], [3, 9]], np.uint8))
    assert dataset.foreground() == ("b", "a")
    assert dataset.mask(first(dataset)).tolist() == [[1, 2], [0, IGNORED]]


def test_without_a_background_every_pixel_has_a_class(folder):
    dataset = folder("dataset.background=null", count=1)
    with pytest.raises(DataError, match=r"0.png' has the value 0 in \d+ pixels, and no class"):
        dataset.mask(first(dataset))


def test_an_unknown_value_is_named_with_its_file(folder):
    dataset = folder(count=1)
    save_mask(dataset.root, 0, np.array([[0, 255, 254]], np.uint8))
    with pytest.raises(DataError, match=r"masks/0.png' has the value 254 in 1 pixels") as caught:
        dataset.mask(first(dataset))
    assert caught.value.choices == ("lesion=255",)


@pytest.mark.parametrize("values", ["{a: 1, b: 1}", "{a: 0}", "{}"])
def test_values_that_tell_no_classes_apart_are_the_users_mistake(folder, values):
    with pytest.raises(ConfigError, match="does not tell classes apart"):
        folder(values=values)


@pytest.mark.parametrize("key", ["images", "masks"])
@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "sub-folder 'nowhere' is not in"), ("../x", "leads out"), ("/etc", "leads out")],
)
def test_a_folder_that_is_missing_or_elsewhere_is_refused(folder, key, name, message):
    dataset = folder(f"dataset.{key}={name}")
    with pytest.raises(DataError, match=message):
        dataset.records()


def test_an_image_without_a_mask_ends_the_trial_or_is_left_out(folder, tmp_path):
    dataset = folder()
    (dataset.root / "masks" / "3.png").unlink()
    with pytest.raises(DataError, match=r"images/3.png' has no mask: 'masks' holds no file '3.\*'"):
        Data.open(dataset, "mask", cache=tmp_path / "cache", seed=0)
    data = Data.open(replace(dataset, on_error="skip"), "mask", cache=tmp_path / "cache", seed=0)
    assert len(data.decoded.records) == 8
    assert "3.png' has no mask" in data.decoded.skipped[0]


def test_two_masks_of_one_image_are_refused(folder):
    dataset = folder(count=1)
    save_mask(dataset.root, 0, np.zeros((12, 16), np.uint8)).rename(
        dataset.root / "masks" / "0.bmp"
    )
    save_mask(dataset.root, 0, np.zeros((12, 16), np.uint8))
    with pytest.raises(DataError, match=r"0.bmp' and '.*0.png' are of one image"):
        dataset.mask(first(dataset))


def test_an_empty_folder_is_named(folder):
    dataset = folder(count=1)
    (dataset.root / "images" / "0.png").unlink()
    with pytest.raises(DataError, match="images' is empty"):
        dataset.records()


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [(r"^p\d+", ["p1", "p1", "p2"]), (r"p(\d+)_", ["1", "1", "2"])],
    ids=["whole", "group"],
)
def test_a_pattern_finds_the_patient_in_the_name(folder, pattern, groups):
    dataset = folder(f"dataset.group='{pattern}'", "dataset.identifiers=plain", count=0)
    for i, name in enumerate(["p1_a", "p1_b", "p2_a"]):
        noise(dataset.root / "images" / f"{name}.png", i)
    (dataset.root / "masks").mkdir()
    assert [record.group_id for record in dataset.records()[1]] == groups
    noise(dataset.root / "images" / "x.png", 9)
    with pytest.raises(DataError, match=r"name of image 'images/x.png' tells no patient"):
        dataset.records()


def test_a_pattern_that_is_none_is_the_users_mistake(folder):
    with pytest.raises(ConfigError, match=r"dataset.group='\(' does not fit"):
        folder("dataset.group='('")


def test_the_fingerprint_follows_masks_and_what_they_are_taken_for(folder):
    dataset = folder(count=2)
    _, records = dataset.records()
    before = dataset.fingerprint(records)
    assert replace(dataset, values={"lesion": 254}).fingerprint(records) != before
    assert replace(dataset, note="x").fingerprint(records) == before
    save_mask(dataset.root, 1, np.zeros((12, 15), np.uint8))
    assert dataset.fingerprint(records) != before


def test_boxes_are_made_on_request_around_each_region(folder):
    assert folder(count=1).provides == {"mask"}
    mask = np.zeros((12, 16), np.uint8)
    mask[1:3, 1:5] = 255
    mask[3, 5] = 255  # touches the corner of the former
    mask[8:11, 2:4] = 255
    mask[8, 15] = 255
    for area, rows in [
        (1, [[1, 1, 6, 4], [2, 8, 4, 11], [15, 8, 16, 9]]),
        (2, [[1, 1, 6, 4], [2, 8, 4, 11]]),
        (9, [[1, 1, 6, 4]]),
        (10, []),
    ]:
        dataset = folder("dataset.boxes_from_masks=true", f"dataset.min_area={area}", count=1)
        save_mask(dataset.root, 0, mask)
        assert dataset.provides == {"mask", "boxes"}
        found = dataset.boxes(first(dataset))
        assert sorted(found.boxes.tolist()) == rows
        assert found.labels.tolist() == [0] * len(rows)


def test_regions_of_classes_that_touch_are_apart(folder):
    dataset = folder("dataset.boxes_from_masks=true", values="{a: 1, b: 2}", count=1)
    save_mask(dataset.root, 0, np.array([[1, 1, 2, 2, 1]], np.uint8))
    found = dataset.boxes(first(dataset))
    assert found.boxes.tolist() == [[0, 0, 2, 1], [4, 0, 5, 1], [2, 0, 4, 1]]
    assert found.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_values_are_read_from_every_usual_mode(tmp_path, mode):
    values = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    if mode == "P":
        image = PILImage.fromarray(values, "L").convert("P")
        image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
        image.putdata(values.ravel())
    elif mode == "I;16":
        image = PILImage.fromarray(values.astype(np.uint16) * 300)
        values = values.astype(int) * 300
    else:
        image = PILImage.fromarray(values).convert(mode)
    image.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == values.tolist()


def test_black_and_white_is_0_and_255(tmp_path):
    PILImage.fromarray(np.array([[0, 255]], np.uint8)).convert("1").save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[0, 255]]


def colour(path):
    PILImage.fromarray(np.array([[[0, 1, 0]]], np.uint8)).save(path)


def fractions(path):
    PILImage.fromarray(np.zeros((2, 2), np.float32)).save(path, format="TIFF")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_text("x"), r"mask '.*m.png' is not an image"),
        (colour, r"mask '.*m.png' is in colour"),
        (fractions, r"mask '.*m.png' has values that are no whole numbers"),
    ],
)
def test_a_mask_that_cannot_be_used_is_named(tmp_path, write, message):
    write(tmp_path / "m.png")
    with pytest.raises(DataError, match=message):
        read_mask(tmp_path / "m.png")


@pytest.mark.real_data("isbi2012")
def test_neighbouring_sections_are_not_shuffled_and_the_user_is_told(compose, tmp_path):
    config = compose("dataset=isbi2012", "dataset.image_size=64").typed(TrainConfig)
    with pytest.warns(UserWarning, match="neighbours in one specimen"):
        data = Data.open(build(config.dataset, Dataset), "mask", cache=tmp_path, seed=0)
    ids = data.division.ids([record.sample_id for record in data.decoded.records])
    numbers = {name: sorted(int(i[6:-4]) for i in listed) for name, listed in ids.items()}
    assert numbers == {"train": [*range(16)], "val": [*range(16, 20)], "test": [*range(20, 30)]}
    assert data.spec.class_names == ("membrane", "interior")
    share = (data.decoded.foreground.masks == 1).mean()
    assert 0.15 < share < 0.35  # membranes are the smaller part
    assert (data.decoded.foreground.masks > 0).all()

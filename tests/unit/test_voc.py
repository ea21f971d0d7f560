from dataclasses import replace

import pytest

from annotated import SQUARE, voc_xml, write_voc
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data.base import Dataset
from medtransfer.data.loading import Data
from medtransfer.errors import ConfigError, DataError

BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""
OUTSIDE = """<!DOCTYPE annotation [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<annotation><object><name>&a;</name></object></annotation>"""


@pytest.fixture
def voc(compose, tmp_path):
    def make(*keys, images=([SQUARE],) * 9):
        root = write_voc(tmp_path / "data", images)
        needs = [f"dataset.root={root}", "dataset.classes=[cell,spot]"]
        config = compose("dataset=voc", *needs, *keys).typed(TrainConfig)
        return build(config.dataset, Dataset)

    return make


def annotate(dataset, text, name="i0"):
    (dataset.root / "Annotations" / f"{name}.xml").write_text(text)


def first(dataset):
    return dataset.boxes(dataset.records()[1][0])


def open_data(dataset, tmp_path):
    return Data.open(dataset, "boxes", cache=tmp_path / "cache", seed=0)


def test_boxes_are_counted_from_one_and_end_with_their_last_pixel(voc):
    dataset = voc()
    found = first(dataset)
    assert found.boxes.tolist() == [list(SQUARE[:4])]
    assert found.labels.tolist() == [0]
    assert found.size == (12, 16)
    plain = replace(dataset, first_pixel=0)
    assert first(plain).boxes.tolist() == [[3, 4, 8, 9]]
    _, records = dataset.records()
    assert dataset.fingerprint(records) != plain.fingerprint(records)


def test_the_datasets_own_lists_divide_it(voc, tmp_path):
    data = open_data(voc(), tmp_path)
    ids = data.division.ids([record.sample_id for record in data.decoded.records])
    assert ids == {
        name: [f"JPEGImages/i{i}.png" for i in range(k, 9, 3)]
        for k, name in enumerate(("train", "val", "test"))
    }


def test_images_that_no_list_names_are_passed_over(voc):
    dataset = voc()
    (dataset.root / "ImageSets" / "Main" / "val.txt").write_text("i4\n\ni1\n")
    ids = [record.sample_id for record in dataset.records()[1]]
    assert ids == [f"JPEGImages/i{i}.png" for i in (0, 1, 2, 3, 4, 5, 6, 8)]


def test_without_lists_all_images_are_divided_by_lot(voc, tmp_path):
    keys = ("dataset.sets=null", "dataset.split.kind=holdout")
    dataset = voc(*keys)
    (dataset.root / "ImageSets" / "Main" / "val.txt").unlink()
    assert len(open_data(dataset, tmp_path).decoded.records) == 9
    with pytest.raises(DataError, match=r"split.kind=own, and the dataset brings no lists"):
        open_data(voc("dataset.sets=null"), tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("i12", r"val.txt' lists 'i12', and '.*JPEGImages' has no such image"),
        ("../../secret", r"'../../secret' in '.*val.txt' leads out"),
        ("/etc/passwd", "leads out"),
        ("..\\\\secret", "leads out"),
        ("i0", "'JPEGImages/i0.png' is in two splits of the dataset's lists: train and val"),
    ],
)
def test_a_list_that_names_what_it_must_not_is_refused(voc, tmp_path, line, message):
    dataset = voc()
    (dataset.root / "ImageSets" / "Main" / "val.txt").write_text(f"i1\n{line}\n")
    with pytest.raises(DataError, match=message):
        open_data(dataset, tmp_path)


def test_a_list_that_is_missing_is_named(voc):
    dataset = voc()
    (dataset.root / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"test.txt' cannot be read") as caught:
        dataset.records()
    assert "dataset.sets=null" in caught.value.remedy


def test_an_image_without_objects_or_without_a_file_is_a_negative_and_counted(voc, tmp_path):
    dataset = voc(images=[[SQUARE], [SQUARE], [SQUARE], [], [], [], [SQUARE], [], []])
    (dataset.root / "Annotations" / "i3.xml").unlink()
    data = open_data(dataset, tmp_path)
    assert data.decoded.foreground.negatives == 5
    assert data.spec.train_counts == (2, 0)
    batch = next(iter(data.loader("val", batch_size=3)))
    assert [len(boxes) for boxes in batch["boxes"]] == [1, 0, 0]


def test_no_object_in_the_whole_training_set_is_refused(voc, tmp_path):
    dataset = voc(images=[[], [SQUARE], [SQUARE]] * 3)
    with pytest.raises(DataError, match="none of the 3 training images shows any of cell, spot"):
        open_data(dataset, tmp_path)


def test_an_unknown_class_is_never_skipped(voc, tmp_path):
    dataset = voc("dataset.on_error=skip")
    annotate(dataset, voc_xml([(1, 1, 2, 2, "spott")]))
    with pytest.raises(ConfigError, match=r"i0.xml' names class 'spott'; did you mean 'spot'"):
        open_data(dataset, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"i0.xml' defines entities \(EntitiesForbidden\)"),
        (OUTSIDE, r"i0.xml' defines entities"),
        ("hello", r"i0.xml' is not XML"),
        ("", r"i0.xml' is not XML"),
        ("<annotation><object></object></annotation>", "an <object> has no name"),
        (voc_xml([SQUARE]).replace("bndbox", "polygon"), "an <object> has no bndbox/xmin"),
        (voc_xml([SQUARE]).replace("<ymax>9<", "<ymax>nine<"), "bndbox/ymax is 'nine' and not"),
        (voc_xml([SQUARE]).replace("<ymax>9<", "<ymax>inf<"), "bndbox/ymax is 'inf' and not"),
        (voc_xml([SQUARE], size=(16, 12)), r"i0.xml' annotates has 12 x 16 pixels"),
    ],
)
def test_a_file_that_cannot_be_used_ends_the_trial_or_leaves_its_image_out(
    voc, tmp_path, text, message
):
    dataset = voc()
    annotate(dataset, text)
    with pytest.raises(DataError, match=message) as caught:
        open_data(dataset, tmp_path)
    assert caught.value.remedy
    data = open_data(replace(dataset, on_error="skip"), tmp_path)
    assert len(data.decoded.records) == 8
    assert len(data.decoded.skipped) == 1
    assert len(data.division.train) == 2  # the list is one shorter


def test_a_size_of_zeros_says_nothing(voc):
    dataset = voc()
    annotate(dataset, voc_xml([SQUARE], size=(0, 0)))
    assert first(dataset).size is None


def test_a_box_that_cannot_be_is_left_out_and_its_image_stays(voc, tmp_path):
    dataset = voc("dataset.on_error=skip")
    annotate(dataset, voc_xml([(0, 0, 17, 5, "spot"), SQUARE, (5, 5, 5, 6, "cell")]))
    data = open_data(dataset, tmp_path)
    assert len(data.decoded.records) == 9
    assert [len(found.labels) for found in data.decoded.foreground.boxes] == [1] * 9
    outside, empty = data.decoded.skipped
    assert "box 1 (spot: 0, 0, 17, 5) of '" in outside
    assert "reaches outside of its image of 16 x 12 pixels" in outside
    assert "box 3 (cell: 5, 5, 5, 6) of '" in empty


def test_two_images_of_one_annotation_are_refused(voc):
    dataset = voc()
    image = dataset.root / "JPEGImages" / "i0.png"
    image.with_suffix(".bmp").write_bytes(image.read_bytes())
    with pytest.raises(DataError, match="have one name, and so one annotation"):
        dataset.records()


@pytest.mark.parametrize("key", ["images", "annotations", "sets"])
def test_a_folder_that_is_missing_is_named(voc, key):
    with pytest.raises(DataError, match=f"sub-folder 'nowhere' .*\n.*\n.*dataset.{key}"):
        voc(f"dataset.{key}=nowhere").records()


@pytest.mark.real_data("bccd")
def test_blood_cells_come_as_they_were_published(compose, tmp_path):
    config = compose("dataset=bccd", "dataset.image_size=64").typed(TrainConfig)
    data = Data.open(build(config.dataset, Dataset), "boxes", cache=tmp_path, seed=0)
    sides = (data.division.train, data.division.val, data.division.test)
    # 205 and 87 were published: two and two show a field that lies in a later list too
    assert [len(side) for side in sides] == [203, 85, 72]
    assert data.division.dropped == 4
    assert data.spec.class_names == ("RBC", "WBC", "Platelets")
    found = data.decoded.foreground.boxes
    labels = [label for boxes in found for label in boxes.labels.tolist()]
    assert [labels.count(k) for k in range(3)] == [4153, 372, 361]
    assert len(data.decoded.skipped) == 2
    assert all("is empty or inverted" in told for told in data.decoded.skipped)

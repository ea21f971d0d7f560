import json
from dataclasses import replace

import pytest

from annotated import SQUARE, coco_content, write_coco
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data.base import Dataset
from medtransfer.data.loading import Data
from medtransfer.errors import ConfigError, DataError

SPOT = (0.5, 0, 16, 12, "spot")
IMAGES = [[SQUARE, SPOT], [], [SQUARE]] * 3


@pytest.fixture
def coco(compose, tmp_path):
    def make(*keys, change=None):
        root = write_coco(tmp_path / "data", IMAGES, ["spot", "cell"])
        if change is not None:
            content = coco_content(IMAGES, ["spot", "cell"])
            text = change(content) or json.dumps(content)
            (root / "annotations.json").write_text(text)
        config = compose("dataset=coco", f"dataset.root={root}", *keys).typed(TrainConfig)
        return build(config.dataset, Dataset)

    return make


def open_data(dataset, tmp_path):
    return Data.open(dataset, "boxes", cache=tmp_path / "cache", seed=0)


def test_boxes_come_with_width_and_height_and_categories_by_their_number(coco, tmp_path):
    dataset = coco()
    names, records = dataset.records()
    assert names == ("image",)
    assert [record.sample_id for record in records] == [f"images/i{i}.png" for i in range(9)]
    assert dataset.foreground() == ("spot", "cell")
    found = dataset.boxes(records[0])
    assert found.boxes.tolist() == [list(SQUARE[:4]), list(SPOT[:4])]
    assert found.labels.tolist() == [1, 0]
    assert found.size == (12, 16)
    assert len(dataset.boxes(records[1]).labels) == 0
    data = open_data(dataset, tmp_path)
    assert data.decoded.foreground.negatives == 3


def test_named_classes_come_in_the_order_given(coco):
    dataset = coco("dataset.classes=[cell,spot]")
    assert dataset.foreground() == ("cell", "spot")
    assert dataset.boxes(dataset.records()[1][0]).labels.tolist() == [0, 1]
    every = coco()
    _, records = every.records()
    assert every.fingerprint(records) != dataset.fingerprint(records)


def test_a_category_without_boxes_may_be_left_out_and_one_with_boxes_not(coco):
    def unused(content):
        content["categories"].append({"id": 0, "name": "all"})

    dataset = coco("dataset.classes=[cell,spot]", change=unused)
    assert dataset.boxes(dataset.records()[1][0]).labels.tolist() == [0, 1]
    with pytest.raises(ConfigError, match="has boxes of category 'spot'"):
        coco("dataset.classes=[cell]").records()
    with pytest.raises(ConfigError, match=r"'sell' of dataset.classes .* did you mean 'cell'"):
        coco("dataset.classes=[sell,spot]").records()


def test_crowds_are_left_out_and_told(coco, tmp_path):
    def crowd(content):
        content["annotations"][0]["iscrowd"] = 1

    dataset = coco(change=crowd)
    assert dataset.boxes(dataset.records()[1][0]).labels.tolist() == [0]
    with pytest.warns(UserWarning, match=r"1 crowds of '.*annotations.json' are left out"):
        open_data(dataset, tmp_path)


def put(kind, key, value, index=0):
    def change(content):
        content[kind][index][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("annotations", "image_id", 7), "annotation 0 has image_id=7, which is not in"),
        (put("annotations", "category_id", 7), "annotation 0 has category_id=7, which is not"),
        (put("annotations", "category_id", [1]), r"annotation 0 has category_id=\[1\]"),
        (put("annotations", "bbox", [1, 2, 3]), r"annotation 0 has bbox=\[1, 2, 3\], not"),
        (put("annotations", "bbox", [1, 2, None, 3]), "annotation 0 has bbox="),
        (put("annotations", "bbox", [1, 2, 10**400, 3]), "annotation 0 has bbox="),
        (put("annotations", "bbox", [1, 2, float("nan"), 3]), "annotation 0 has bbox="),
        (put("images", "id", 101), "two entries in 'images' with id 101"),
        (put("images", "id", "x"), "an entry in 'images' without a number 'id'"),
        (put("images", "file_name", "i1.png"), "lists one image under two ids"),
        (put("images", "file_name", "../secret.png"), "'../secret.png' in .* leads out"),
        (put("images", "file_name", "/etc/passwd"), "leads out"),
        (put("images", "file_name", ""), "without a number 'id' or a 'file_name'"),
        (put("categories", "name", "cell"), "two categories of one name"),
        (lambda content: content.pop("images") and None, "has no list 'images' of objects"),
        (lambda content: content.update(categories=[]), "has no categories"),
        (lambda content: content.update(images=[], annotations=[]), "lists no image"),
        (lambda _: "[]", "has no list 'images'"),
        (lambda _: "{", r"annotations.json' is not JSON"),
        (lambda _: "[" * 100_000, r"annotations.json' is not JSON"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(coco, tmp_path, change, message):
    dataset = coco("dataset.on_error=skip", change=change)
    with pytest.raises(DataError, match=message) as caught:
        open_data(dataset, tmp_path)
    assert "annotations.json" in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([10, 2, 8, 2], "box 1 (cell: 10, 2, 18, 4) of '.*i0.png' reaches outside"),
        ([10, 2, -3, 2], "box 1 (cell: 10, 2, 7, 4) of '.*i0.png' is empty or inverted"),
    ],
)
def test_a_box_that_cannot_be_ends_the_trial_or_is_left_out(coco, tmp_path, box, message):
    dataset = coco(change=put("annotations", "bbox", box))
    message = message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(DataError, match=message):
        open_data(dataset, tmp_path)
    data = open_data(replace(dataset, on_error="skip"), tmp_path)
    assert len(data.decoded.records) == 9
    assert len(data.decoded.skipped) == 1


def test_an_image_that_is_missing_ends_the_trial_or_is_left_out(coco, tmp_path):
    dataset = coco()
    (dataset.root / "images" / "i4.png").unlink()
    with pytest.raises(DataError, match=r"image '.*images/i4.png' does not exist"):
        open_data(dataset, tmp_path)
    data = open_data(replace(dataset, on_error="skip"), tmp_path)
    assert len(data.decoded.records) == 8


def test_an_image_of_another_size_than_the_file_says_is_refused(coco, tmp_path):
    with pytest.raises(DataError, match=r"i0.png' annotates has 17 x 12 pixels, and its image 16"):
        open_data(coco(change=put("images", "width", 17)), tmp_path)


def test_a_size_is_not_needed(coco):
    def sizeless(content):
        for row in content["images"]:
            del row["width"], row["height"]

    dataset = coco(change=sizeless)
    assert dataset.boxes(dataset.records()[1][0]).size is None


@pytest.mark.parametrize("key", ["images", "annotations"])
def test_what_is_missing_is_named(coco, key):
    with pytest.raises(DataError, match=f"'nowhere' is not in .*\n.*\n.*dataset.{key}"):
        coco(f"dataset.{key}=nowhere").records()

"""Mistakes with masks, boxes and what learns them: one clear error, before any run is opened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from annotated import SQUARE, save_mask, write_coco, write_masks, write_voc

NETWORK = (
    *("backbone=timm", "backbone.name=test_resnet", "trainer.threads=1"),
    *("trainer.max_steps=1", "trainer.batch_size=2", "trainer.precision=fp32"),
)
SEGMENT = ("task=segmentation", "head.widths=[16,16,8,8,8]")
DETECT = ("task=detection", "head=retinanet", "head.levels.width=32", "head.levels.extra=0")
PHANTOM = ("dataset.patients=18", "dataset.size=32", "dataset.image_size=32")
LARGER = ("dataset.patients=18", "dataset.size=32", "dataset.image_size=64")
BOMB = """<?xml version="1.0"?>
<!DOCTYPE annotation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""


@pytest.fixture
def voc(tmp_path):
    """Return a function that writes images with a box each, but for every third, and one other."""

    def write(rows=(SQUARE,), xml=None):
        images = [[SQUARE], [], [SQUARE]] * 4
        images[3] = list(rows)
        write_voc(tmp_path, images)
        if xml is not None:
            (tmp_path / "Annotations" / "i3.xml").write_text(xml)
        keys = (f"dataset.root={tmp_path}", "dataset.classes=[cell]", "dataset.image_size=32")
        return (*DETECT, "dataset=voc", *keys)

    return write


@pytest.fixture
def coco(tmp_path):
    """Return a function that writes images with a box each, and changes the first of a list."""

    def write(kind, **changes):
        write_coco(tmp_path, [[SQUARE]] * 12, ["cell"])
        file = tmp_path / "annotations.json"
        content = json.loads(file.read_text())
        content[kind][0] |= changes
        file.write_text(json.dumps(content))
        return (*DETECT, "dataset=coco", f"dataset.root={tmp_path}", "dataset.image_size=32")

    return write


@pytest.fixture
def masks(tmp_path):
    """Return a function that writes images with a mask each, some of them other ones."""

    def write(mask, which=(3,)):
        write_masks(tmp_path, 12)
        for number in which:
            save_mask(tmp_path, number, mask)
        keys = ("dataset.values={lesion: 255}", "dataset.image_size=32")
        return (*SEGMENT, "dataset=mask_folder", f"dataset.root={tmp_path}", *keys)

    return write


@pytest.fixture
def train(cli):
    """Return a function that runs a trial on a tiny network."""

    def run(*arguments):
        given = {argument.partition("=")[0] for argument in arguments}
        own = {"backbone.name"} if "backbone" in given else set()
        kept = [each for each in NETWORK if each.partition("=")[0] not in given | own]
        return cli("train", *kept, *arguments)

    return run


@pytest.fixture
def refused(train, list_runs, home):
    """Return a function that runs a trial and sees it refused in these words."""

    def run(arguments, *said):
        done = train(*arguments)
        assert done.code == 2, done
        assert done.err.startswith("error: ")
        assert "Traceback" not in done.out + done.err
        for part in said:
            assert part in done.err
        assert done.out == ""
        assert list_runs() == []
        assert not (home / "checkpoints").exists()

    return run


def test_a_box_outside_of_its_image(refused, voc):
    said = ("i3.xml", "cell: 2, 3, 20, 9", "outside", "16 x 12", "dataset.on_error=skip")
    refused(voc(rows=[(2, 3, 20, 9, "cell")]), *said)


def test_an_inverted_box(refused, voc):
    refused(voc(rows=[(8, 3, 2, 9, "cell")]), "i3.xml", "cell: 8, 3, 2, 9", "inverted")


def test_an_unknown_class(refused, voc):
    said = ("i3.xml", "'cel'", "did you mean 'cell'", "dataset.classes")
    refused(voc(rows=[(2, 3, 8, 9, "cel")]), *said)


def test_xml_that_would_fill_the_memory(refused, voc):
    refused(voc(xml=BOMB), "i3.xml", "defines entities")


def test_xml_that_ends_too_soon(refused, voc):
    refused(voc(xml="<annotation><object>"), "i3.xml", "not XML", "dataset.on_error=skip")


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_an_id_that_points_nowhere(refused, coco, key):
    refused(coco("annotations", **{key: 999}), "annotations.json", f"{key}=999", "remedy")


def test_a_box_of_negative_width(refused, coco):
    refused(coco("annotations", bbox=[2, 2, -3, 4]), "i0.png", "inverted")


def test_a_mask_of_another_size(refused, masks):
    said = ("masks/3.png", "16 x 10", "16 x 12", "dataset.on_error=skip")
    refused(masks(np.zeros((10, 16), np.uint8)), *said)


def test_a_mask_with_a_value_that_no_class_has(refused, masks):
    refused(masks(np.full((12, 16), 7, np.uint8)), "masks/3.png", "value 7", "lesion=255")


def test_masks_that_show_nothing(refused, masks):
    arguments = masks(np.zeros((12, 16), np.uint8), range(12))
    refused(arguments, "none of the 7 training images shows any of lesion")


def test_boxes_that_are_not_there(refused, tmp_path):
    write_voc(tmp_path, [[]] * 12)
    keys = (f"dataset.root={tmp_path}", "dataset.classes=[cell]")
    refused((*DETECT, "dataset=voc", *keys), "none of the 4 training images shows any of cell")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (("task=segmentation", "head=linear"), ("head Linear", "unet", "fpn", "upernet")),
        (("task=segmentation", "head=fcos"), ("head FCOS", "unet")),
        (("task=detection", "head=unet"), ("head UNet", "faster_rcnn, fcos, retinanet")),
        (("task=classification", "head=unet"), ("head UNet", "choices: linear")),
        (("task=classification", "loss=dice"), ("loss", "cross_entropy", "focal")),
        ((*SEGMENT, "loss=cross_entropy"), ("loss CrossEntropy", "dice_cross_entropy", "lovasz")),
        ((*DETECT, "loss=cross_entropy"), ("losses of its own", "leave loss=... out")),
        ((*SEGMENT, "~loss"), ("wants a loss", "medtransfer list loss")),
        ((*SEGMENT, "strategy=linear_probe"), ("one vector for each image", "feature_extraction")),
        ((*DETECT, "strategy=linear_probe"), ("one vector for each image", "feature_extraction")),
        ((*SEGMENT, "strategy=classic_head"), ("one vector for each image", "feature_extraction")),
        ((*DETECT, "strategy=classic_head"), ("one vector for each image", "feature_extraction")),
        ((*SEGMENT, "backbone=dense_encoder"), ("no feature maps", "backbone=resnet18")),
        ((*DETECT, "backbone=dense_encoder"), ("no feature maps", "backbone=resnet18")),
        (
            ("task=segmentation", "head=fpn", "head.upsampling=transposed"),
            ("head.upsampling='transposed'", "'interpolation'"),
        ),
        (("task=segmentation", "head=pan"), ("'pan'", "32 x 32 px", "at least 97 px", "head=unet")),
        ((*DETECT, "head.nms.kind=sof"), ("head.nms.kind='sof'", "'soft'")),
        ((*DETECT, "~head.weights.box"), ("head.weights", "box, classification")),
        ((*DETECT, "head.anchors=[[8],[16]]"), ("2 levels", "8, 16, 32", "head.anchors=auto")),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_parts_that_do_not_fit_together(refused, chosen, said):
    refused((*PHANTOM, *chosen), *said)


@pytest.mark.parametrize(
    ("chosen", "metric", "said"),
    [
        (SEGMENT, "auroc", ("'auroc'", "dice, jaccard, nsd, hd95")),
        (SEGMENT, "dice_benig", ("'benig'", "did you mean 'dice_benign'", "dice_malignant")),
        (SEGMENT, "loss_benign", ("'loss'", "dice")),
        (DETECT, "auroc", ("'auroc'", "map, ap50, ap75, froc")),
        (DETECT, "loss", ("'loss'", "map")),
        (DETECT, "ap50_benig", ("'benig'", "ap50_benign, ap50_malignant")),
        (DETECT, "map_benign", ("'map_benign'", "ap50")),
        (DETECT, "sensitivity", ("'sensitivity'", "sensitivity_0.5")),
    ],
)
def test_a_metric_that_is_not_measured(refused, chosen, metric, said):
    refused((*PHANTOM, *chosen, f"trainer.selection.metric={metric}"), *said)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (("task.patch=16",), ("task.patch=16", "32")),
        (("task.overlap=1",), ("task.overlap=1", "less than 1")),
        (("task.patch=40", "backbone.name=test_vit"), ("patches of 40 px", "task.patch")),
        (("task.patch=32", "features.mode=cached"), ("features.mode=cached", "patches")),
        (
            ("task.patch=64", "dataset.image_size=128", "head=pan"),
            ("64 x 64 px", "at least 97 px"),
        ),
    ],
)
def test_patches_that_cannot_be(refused, chosen, said):
    refused((*LARGER, "task=segmentation", *chosen), *said)


def test_a_sweep_with_patches_that_cannot_be_does_not_start(cli, list_runs):
    chosen = (*NETWORK, *LARGER, *SEGMENT, "backbone.name=test_vit", "task.patch=32,40")
    done = cli("train", "-m", *chosen)
    assert done.code == 2
    assert "patches of 40 px" in done.err
    assert list_runs() == []


@pytest.mark.parametrize("task", [SEGMENT, DETECT])
@pytest.mark.parametrize(("network", "size"), [("test_vit", 8), ("test_convnext", 16)])
def test_images_that_are_too_small_for_the_network(refused, task, network, size):
    chosen = (*PHANTOM[:2], f"dataset.image_size={size}", *task, f"backbone.name={network}")
    refused(chosen, f"'{network}' cannot take images of {size} px", "dataset.image_size")


def outcome(list_runs) -> tuple[dict[str, float], Path]:
    (run,) = list_runs()
    assert run.info.status == "FINISHED"
    return run.data.metrics, Path(run.info.artifact_uri.removeprefix("file://"))


@pytest.mark.parametrize("task", [SEGMENT, DETECT])
def test_images_smaller_than_the_coarsest_stride_are_filled_up(train, list_runs, task):
    done = train(*PHANTOM[:2], "dataset.image_size=16", *task)
    assert done.code == 0, done.err
    outcome(list_runs)


def test_images_without_boxes_are_learned_from_and_counted(train, voc, list_runs):
    write = voc(rows=[])  # of four training images, i0 to i9, one is empty now
    steps = ("trainer.max_steps=4", "strategy=fine_tuning", "trainer.batch_size=2")
    done = train(*write, *steps)
    assert done.code == 0, done.err
    metrics, folder = outcome(list_runs)
    assert metrics["cost/steps"] == 4
    assert json.loads((folder / "data.json").read_text())["train_counts"] == [3]
    frame = pd.read_parquet(folder / "predictions" / "val.parquet")
    assert frame["truths_cell"].tolist() == [0, 0, 0, 0]


def test_batches_without_any_box_are_learned_from(train, tmp_path, list_runs):
    write_voc(tmp_path, [[SQUARE], [SQUARE], [SQUARE], *[[]] * 15])  # one of six to train on
    keys = (f"dataset.root={tmp_path}", "dataset.classes=[cell]", "dataset.image_size=32")
    steps = ("trainer.max_steps=3", "strategy=fine_tuning")  # three batches of two
    done = train(*DETECT, "dataset=voc", *keys, *steps)
    assert done.code == 0, done.err
    metrics, _ = outcome(list_runs)
    assert metrics["cost/steps"] == 3
    assert np.isfinite(metrics["train/loss"])


def test_a_box_outside_of_its_image_can_be_left_out_and_is_counted(train, voc, list_runs):
    done = train(*voc(rows=[SQUARE, (2, 3, 20, 9, "cell")]), "dataset.on_error=skip")
    assert done.code == 0, done.err
    _, folder = outcome(list_runs)
    (skipped,) = json.loads((folder / "data.json").read_text())["skipped"]
    assert "cell: 2, 3, 20, 9" in skipped

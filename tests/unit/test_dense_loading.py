"""Masks and boxes on their way from a dataset to a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medtransfer.data.base import IGNORED
from medtransfer.data.decoded import decode
from medtransfer.data.loading import Data
from medtransfer.data.transforms import Augment, augmented
from medtransfer.errors import DataError

STRENGTHS = ("rotation", "translation", "scale", "brightness", "contrast", "blur", "erasing")
ZERO = {"flip": False, **dict.fromkeys(STRENGTHS, 0.0)}
STRONG = Augment(flip=True, **dict.fromkeys(STRENGTHS, 0.4) | {"rotation": 30.0})
FLIP = Augment(**ZERO | {"flip": True})
MOVES = Augment(**ZERO | {"rotation": 30.0, "translation": 0.2, "scale": 0.3})


@pytest.fixture(scope="module")
def opened(phantom, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def open_data(annotation, seed=0, **keys):
        dataset = replace(phantom, patients=36, **keys)
        return Data.open(dataset, annotation, cache=cache, seed=seed)

    return open_data


def batches(data, transform=STRONG, workers=0, number=0):
    loader = data.train_loader(transform, batch_size=4, workers=workers, sampler="shuffle")
    loader.sampler.set_epoch(number)
    return list(loader)


def same(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b)


def test_the_image_is_augmented_alike_whatever_comes_with_it(opened):
    alone, *others = (batches(opened(kind)) for kind in ("class", "mask", "boxes"))
    for other in others:
        for a, b in zip(alone, other, strict=True):
            assert all(torch.equal(a[key], b[key]) for key in ("image", "index", "target"))


@pytest.mark.parametrize("annotation", ["mask", "boxes"])
def test_the_seed_and_the_epoch_decide_the_annotation_whoever_loads(opened, annotation):
    data = opened(annotation)
    first = batches(data)
    torch.manual_seed(7)
    for again in (batches(data), batches(data, workers=1)):
        for a, b in zip(first, again, strict=True):
            assert a.keys() == b.keys()
            assert all(same(a[key], b[key]) for key in a)
    other = batches(data, number=1)
    assert not all(same(a[annotation], b[annotation]) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("annotation", ["mask", "boxes"])
def test_the_annotation_of_a_view_can_be_drawn_again_alone(opened, annotation):
    data = opened(annotation, seed=3)
    views = data.views(data.train[:4], STRONG, count=3, batch_size=5, workers=0)
    keys = [(view, index) for index in data.train[:4] for view in range(3)]
    seen = [
        (batch["index"][i], {k: v[i] for k, v in batch.items()})
        for batch in views
        for i in range(len(batch["index"]))
    ]
    order = np.random.default_rng(0).permutation(len(keys))
    truth = data.truth([keys[i][1] for i in order], [keys[i][0] for i in order], STRONG)
    assert set(truth) == ({"mask"} if annotation == "mask" else {"boxes", "labels"})
    for place, i in enumerate(order):
        index, view = seen[i]
        assert index == keys[i][1]
        assert all(torch.equal(truth[key][place], view[key]) for key in truth)


def test_a_class_has_no_more_truth_than_its_target(opened):
    assert opened("class").truth([0], [0], STRONG) == {}


def test_untouched_masks_and_boxes_are_those_of_the_dataset(opened, phantom):
    dataset = replace(phantom, patients=36)  # as large as its images are
    masks, boxes = opened("mask"), opened("boxes")
    records = dataset.records()[1]
    for batch, other in zip(
        masks.loader("val", batch_size=3), boxes.loader("val", batch_size=3), strict=True
    ):
        for i, index in enumerate(batch["index"]):
            assert np.array_equal(batch["mask"][i], dataset.mask(records[index]))
            found = dataset.boxes(records[index])
            assert np.array_equal(other["boxes"][i], found.boxes)
            assert np.array_equal(other["labels"][i], found.labels)
            assert other["boxes"][i].dtype == torch.float32


def test_what_a_task_may_know_counts_the_images_that_show_a_class(opened):
    for kind in ("mask", "boxes"):
        data = opened(kind)
        assert data.spec.annotation == kind
        assert data.spec.class_names == ("benign", "malignant")
        targets = data.targets[data.train]
        assert data.spec.train_counts == ((targets == 1).sum(), (targets == 2).sum())
        assert data.decoded.foreground.negatives == 12
    assert opened("class").spec.annotation == "class"
    assert opened("class").decoded.foreground is None


def test_the_same_split_whatever_is_learned_and_a_hash_of_its_own(opened):
    specs = [opened(kind).spec for kind in ("class", "mask", "boxes")]
    assert len({spec.split_hash for spec in specs}) == 1
    assert len({spec.data_hash for spec in specs}) == 3


def test_a_training_set_without_foreground_is_refused(opened, monkeypatch, phantom, tmp_path):
    changed(phantom, monkeypatch, "mask", np.zeros_like)
    with pytest.raises(DataError, match="none of the 9 training images shows any of benign, mal"):
        Data.open(phantom, "mask", cache=tmp_path, seed=0)


def changed(dataset, monkeypatch, name, change):
    method = getattr(type(dataset), name)
    monkeypatch.setattr(type(dataset), name, lambda self, record: change(method(self, record)))


def test_the_hash_of_the_data_covers_masks_and_boxes(phantom, monkeypatch, tmp_path):
    def hashes(cache):
        return [decode(phantom, tmp_path / cache, kind).data_hash for kind in ("mask", "boxes")]

    def one_pixel(mask):
        mask = mask.copy()
        mask[0, 0] = 1
        return mask

    first = hashes("a")
    assert hashes("a") == hashes("b") == first
    changed(phantom, monkeypatch, "mask", one_pixel)
    changed(phantom, monkeypatch, "boxes", lambda found: replace(found, labels=1 - found.labels))
    assert all(a != b for a, b in zip(first, hashes("c"), strict=True))


def test_a_box_that_cannot_be_is_left_out_and_counted_and_its_image_stays(
    phantom, monkeypatch, tmp_path
):
    def outside(found):
        return replace(found, boxes=np.where(found.labels[:, None] == 1, -found.boxes, found.boxes))

    changed(phantom, monkeypatch, "boxes", outside)
    with pytest.raises(DataError, match=r"box 1 \(malignant: .* of 'patient00002_view0' is empty"):
        decode(phantom, tmp_path, "boxes")
    decoded = decode(replace(phantom, on_error="skip"), tmp_path, "boxes")
    assert len(decoded.records) == 18
    assert len(decoded.skipped) == 6
    assert decoded.foreground.negatives == 12
    labels = [found.labels.tolist() for found in decoded.foreground.boxes]
    assert labels == [[0] if record.target == 1 else [] for record in decoded.records]
    # what was left out once does not slip through later
    with pytest.raises(DataError, match=r"box 1 \(malignant"):
        decode(phantom, tmp_path, "boxes")


def test_an_image_whose_mask_is_wrong_is_left_out_with_it(phantom, monkeypatch, tmp_path):
    changed(phantom, monkeypatch, "mask", lambda mask: mask if mask.max() < 2 else mask[1:])
    message = "mask 'patient00002_view0' has 32 x 31 pixels, and its image 32 x 32"
    with pytest.raises(DataError, match=message):
        decode(phantom, tmp_path, "mask")
    kept = replace(phantom, on_error="skip", split=phantom.split)
    with pytest.raises(DataError, match="class 'malignant' has no image"):
        decode(kept, tmp_path, "mask")
    changed(phantom, monkeypatch, "mask", lambda mask: mask)
    monkeypatch.undo()

    broken = {"patient00002_view0", "patient00007_view0"}
    method = type(phantom).mask

    def some(self, record):
        mask = method(self, record)
        return mask[1:] if record.sample_id in broken else mask

    monkeypatch.setattr(type(phantom), "mask", some)
    decoded = decode(kept, tmp_path / "other", "mask")
    assert len(decoded.skipped) == 2
    assert not broken & {record.sample_id for record in decoded.records}
    for record, mask, image in zip(
        decoded.records, decoded.foreground.masks, decoded.images, strict=False
    ):
        assert np.array_equal(mask, method(phantom, record))
        assert np.array_equal(image[0], phantom.read(record))


def square(size=64, box=(20, 10, 44, 50)):
    x0, y0, x1, y1 = box
    image = torch.zeros(1, size, size)
    image[:, y0:y1, x0:x1] = 1
    return image, (image[0] > 0).to(torch.uint8)


def together(transform, seed, **sample):
    torch.manual_seed(seed)
    return augmented(transform, sample)


@pytest.mark.parametrize("seed", range(12))
def test_a_mask_moves_with_its_image(seed):
    image, mask = square()
    moved = together(MOVES, seed, image=image, mask=mask)
    assert set(moved["mask"].unique().tolist()) <= {0, 1, IGNORED}
    inside = moved["mask"] == 1
    # of the four pixels that a value is made of, the nearest weighs a quarter or more
    assert (moved["image"][0][inside] > 0.24).all()
    assert (moved["image"][0][moved["mask"] == 0] < 0.76).all()
    assert (moved["image"][0][inside] > 0.99).float().mean() > 0.8


def test_what_the_image_does_not_fill_is_ignored():
    white = torch.ones(1, 32, 32)
    mask = torch.zeros(32, 32, dtype=torch.uint8)
    moved = together(MOVES, 1, image=white, mask=mask)
    assert (moved["mask"] == IGNORED).any()
    assert (moved["image"][0][moved["mask"] == IGNORED] < 0.76).all()
    assert (moved["image"][0][moved["mask"] == 0] > 0.24).all()


@pytest.mark.parametrize("seed", range(12))
def test_a_box_frames_its_object_after_as_before(seed):
    image, mask = square()
    box, label = torch.tensor([[20.0, 10, 44, 50]]), torch.tensor([1])
    shape = together(MOVES, seed, image=image, mask=mask)
    moved = together(MOVES, seed, image=image, boxes=box, labels=label)
    assert torch.equal(moved["image"], shape["image"])
    assert moved["labels"].tolist() == [1]
    rows, columns = torch.nonzero(shape["mask"] == 1, as_tuple=True)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    # a rectangle touches all sides of the box around it, however it is turned
    assert (moved["boxes"][0] - torch.tensor(seen)).abs().max() <= 1.5


def test_a_mirrored_image_has_mirrored_boxes_and_masks():
    image, mask = square(box=(0, 10, 8, 50))
    box, label = torch.tensor([[0.0, 10, 8, 50]]), torch.tensor([0])
    for seed in range(6):
        moved = together(FLIP, seed, image=image, boxes=box, labels=label)
        masked = together(FLIP, seed, image=image, mask=mask)
        mirrored = not torch.equal(moved["image"], image)
        assert moved["boxes"].tolist() == [[56, 10, 64, 50] if mirrored else [0, 10, 8, 50]]
        assert torch.equal(masked["mask"], mask.flip(1) if mirrored else mask)


class Shift(Augment):
    """Move everything by a fixed number of pixels to the left."""

    def __call__(self, sample):
        from torchvision.transforms.v2 import functional

        move = {"angle": 0.0, "translate": [-20, 0], "scale": 1.0, "shear": [0.0, 0.0]}
        return {name: functional.affine(value, **move) for name, value in sample.items()}


@pytest.mark.parametrize(
    ("box", "left"),
    [
        ([10, 0, 30, 10], [0, 0, 10, 10]),  # half of it is left
        ([19, 0, 29, 10], [0, 0, 9, 10]),
        ([0, 0, 20, 10], None),  # outside
        ([1, 0, 21, 10], None),  # a pixel wide, and a twentieth of it
        ([11, 0, 21, 10], [0, 0, 1, 10]),  # a pixel wide, and just a tenth
        ([19.5, 0, 20.5, 10], None),  # half a pixel wide
        ([30, 0, 30.5, 10], [10, 0, 10.5, 10]),  # whole, as thin as it was before
        ([0, 0, 22, 60], None),  # less than a tenth
        ([0, 0, 5, 5], None),
    ],
)
def test_a_box_is_cut_at_the_border_and_dropped_when_little_is_left(box, left):
    boxes = torch.tensor([[40.0, 5, 50, 9], box, [50, 2, 60, 60]])
    moved = augmented(
        Shift(**ZERO),
        {"image": torch.zeros(1, 64, 64), "boxes": boxes, "labels": torch.tensor([3, 4, 5])},
    )
    rows = [[20, 5, 30, 9], *([left] if left else []), [30, 2, 40, 60]]
    assert moved["boxes"].tolist() == rows
    assert moved["labels"].tolist() == ([3, 4, 5] if left else [3, 5])


def test_an_image_without_boxes_stays_without():
    sample = {
        "image": torch.rand(3, 16, 16),
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
    }
    moved = together(STRONG, 0, **sample)
    assert moved["boxes"].shape == (0, 4)
    assert moved["labels"].shape == (0,)
    assert moved["labels"].dtype == torch.int64
    assert {type(value) for value in moved.values()} == {torch.Tensor}

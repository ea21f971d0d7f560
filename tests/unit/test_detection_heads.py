"""Every detector on networks of each kind: what it learns from, what it finds, what it refuses."""

import copy

import numpy as np
import pytest
import torch
import yaml
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou

from medtransfer.app import config_dir
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.components import build, locate
from medtransfer.errors import ConfigError
from medtransfer.heads.base import Head
from medtransfer.heads.detection import DetectionHead
from medtransfer.heads.fpn import Anchors, FeaturePyramid, Levels, anchor_sizes
from medtransfer.tasks.box_metrics import Truth, coco_metrics

NODES = {
    path.stem: node
    for path in sorted((config_dir() / "head").glob("*.yaml"))
    if (node := yaml.safe_load(path.read_text(encoding="utf-8")))
    and issubclass(locate(node["_target_"], Head), DetectionHead)
}
HEADS = sorted(NODES)
BACKBONES = ["test_resnet", "test_convnext", "test_vit"]
SIZE = (64, 64)
# two images: squares of two classes and brightnesses, pixels end-exclusive
BOXES = [
    torch.tensor([[8.0, 8, 24, 24], [36, 30, 56, 50]]),
    torch.tensor([[30.0, 10, 54, 34]]),
]
LABELS = [torch.tensor([0, 1]), torch.tensor([0])]
EMPTY = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2


def images(size=64):
    drawn = torch.full((2, 3, size, size), 0.1)
    for image, boxes, labels in zip(drawn, BOXES, LABELS, strict=True):
        for (x0, y0, x1, y1), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            image[:, y0:y1, x0:x1] = 0.9 if label else 0.5
    return drawn


def small(choice, **changed):
    """The keys of a choice, for a head as small as its kind allows."""
    node = copy.deepcopy(NODES[choice])
    node["levels"] |= {"width": 32, "extra": 1}
    if "regions" in node:
        node["regions"] |= {"hidden": 64, "sampled": 64}
        node["proposals"] |= {"kept": 100}
    return node | changed


def make(choice, backbone, size=64, **changed):
    return build(
        small(choice, **changed),
        DetectionHead,
        channels=backbone.channels,
        strides=backbone.strides,
        outputs=2,
        image_size=size,
        boxes_seen=torch.cat(BOXES).numpy(),
    )


def both(choice, name="test_resnet", size=64, **changed):
    torch.manual_seed(0)
    backbone = TimmBackbone(name, 3, size)
    return backbone, make(choice, backbone, size, **changed)


def learn(backbone, head, pictures, steps):
    """Fit the two images; return the loss of the first and the last step."""
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    seen = []
    for _ in range(steps):
        losses = head.losses(backbone.pyramid(pictures), pictures.shape[-2:], BOXES, LABELS)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen[0], seen[-1]


def test_there_are_detectors_to_test():
    assert {"faster_rcnn", "retinanet", "fcos"} <= set(HEADS)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("choice", HEADS)
def test_every_parameter_learns(choice, name):
    backbone, head = both(choice, name)
    losses = head.losses(backbone.pyramid(images()), SIZE, BOXES, LABELS)
    assert sorted(losses) == sorted(NODES[choice]["weights"])
    assert all(torch.isfinite(each) and each > 0 and not each.ndim for each in losses.values())
    sum(losses.values()).backward()
    without = {name for name, each in head.named_parameters() if each.grad is None}
    assert not without
    touched = [each for each in backbone.parameters() if each.grad is not None]
    assert all(torch.isfinite(each.grad).all() for each in touched)
    # dense heads never use a network's closing norm
    assert len(touched) >= len([*backbone.parameters()]) - 2
    assert sum(bool(each.grad.any()) for each in touched) > len(touched) / 2


@pytest.mark.parametrize("choice", HEADS)
@pytest.mark.parametrize(("name", "size"), [("test_resnet", 66), ("test_vit", 64)])
def test_two_images_are_learned_by_heart(choice, name, size):
    backbone, head = both(choice, name, size)
    pictures = images(size)
    first, last = learn(backbone, head, pictures, 45)
    assert last < first / 2
    found = head.eval().detect(backbone.eval().pyramid(pictures), (size, size))
    truths = [Truth(*each) for each in zip(BOXES, LABELS, strict=True)]
    assert coco_metrics(found, truths, ["dark", "bright"])["ap50"] > 0.9


@pytest.mark.parametrize("choice", HEADS)
def test_images_without_boxes_are_learned_from(choice):
    backbone, head = both(choice)
    losses = head.losses(backbone.pyramid(images()), SIZE, *EMPTY)
    assert all(torch.isfinite(each) for each in losses.values())
    assert losses["classification"] > 0
    assert losses["box"] == 0
    sum(losses.values()).backward()
    grads = [each.grad for each in head.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
    assert any(grad.any() for grad in grads)


@pytest.mark.parametrize("choice", HEADS)
def test_one_image_without_boxes_beside_another(choice):
    backbone, head = both(choice)
    boxes, labels = [BOXES[0], EMPTY[0][0]], [LABELS[0], EMPTY[1][0]]
    losses = head.losses(backbone.pyramid(images()), SIZE, boxes, labels)
    assert all(torch.isfinite(each) for each in losses.values())
    assert losses["box"] > 0


@pytest.mark.parametrize("choice", HEADS)
def test_a_box_without_area_is_no_truth(choice):
    backbone, head = both(choice)
    levels = backbone.pyramid(images())
    flat = [torch.cat([each, torch.tensor([[5.0, 5, 5, 9]])]) for each in BOXES]
    labels = [torch.cat([each, torch.tensor([1])]) for each in LABELS]
    values = []
    for boxes, classes in ((BOXES, LABELS), (flat, labels)):
        torch.manual_seed(1)
        values.append(head.losses(levels, SIZE, boxes, classes))
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize("size", [64, 72])
@pytest.mark.parametrize("choice", HEADS)
def test_what_is_found_lies_in_the_image(choice, size):
    backbone, head = both(choice, size=size, min_score=0.0, max_detections=30)
    # large steps from the anchors, so that boxes want to leave the image
    for parameter in head.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    found = head.detect(backbone.pyramid(images(size)), (size, size))
    assert len(found) == 2
    for each in found:
        assert 0 < len(each.scores) == len(each.labels) == len(each.boxes) <= 30
        assert each.boxes.dtype == each.scores.dtype == torch.float32
        assert (each.boxes >= 0).all()
        assert (each.boxes <= size).all()
        assert (each.boxes[:, 2:] > each.boxes[:, :2]).all()
        assert set(each.labels.tolist()) <= {0, 1}
        assert ((each.scores >= 0) & (each.scores <= 1)).all()
        assert (each.scores.diff() <= 0).all()
        assert not each.scores.requires_grad


@pytest.mark.parametrize("choice", HEADS)
def test_nothing_is_found_above_the_highest_score(choice):
    backbone, head = both(choice, min_score=1.0)
    for each in head.detect(backbone.pyramid(images()), SIZE):
        assert each.boxes.shape == (0, 4)
        assert len(each.labels) == len(each.scores) == 0


@pytest.mark.parametrize("choice", HEADS)
def test_only_our_own_suppression_acts(choice):
    """Without any, boxes of a class overlap almost wholly; with it, by no more than it allows."""
    overlaps = []
    for iou in (1.0, 0.3):
        nms = {"kind": "hard", "iou": iou, "sigma": 0.5, "score": "auto"}
        backbone, head = both(choice, nms=nms, min_score=0.0, max_detections=1000)
        learn(backbone, head, images(), 10)
        found = head.detect(backbone.pyramid(images()), SIZE)[0]
        boxes = found.boxes[found.labels == found.labels[0]]
        overlaps.append(box_iou(boxes, boxes).fill_diagonal_(0).max().item())
    assert overlaps[0] > 0.8
    assert overlaps[1] <= 0.3


@pytest.mark.parametrize("choice", HEADS)
def test_losses_and_detections_are_those_of_torchvision(choice):
    """Its whole detector, around our parts, with images and labels as it takes them."""
    backbone, head = both(choice)
    head.train()
    levels = backbone.pyramid(images())
    detector = head.detector
    features = head.pyramid(levels, SIZE)
    names = {str(k): level for k, level in enumerate(features)}
    # its transform draws random numbers, even for a single size
    detector.backbone.forward = lambda _: torch.manual_seed(1) and names
    black, white = [0.0] * 3, [1.0] * 3
    detector.transform = GeneralizedRCNNTransform(64, 64, black, white, size_divisible=1)
    first = {"faster_rcnn": 1}.get(choice, 0)
    pairs = zip(BOXES, LABELS, strict=True)
    targets = [{"boxes": boxes, "labels": labels + first} for boxes, labels in pairs]
    theirs = detector(list(images()), targets)
    torch.manual_seed(1)
    ours = head.losses(levels, SIZE, BOXES, LABELS)
    assert sorted(ours.values()) == sorted(theirs.values())
    candidates = head.candidates(features, SIZE)
    expected = detector.eval()(list(images()))
    for mine, yours in zip(candidates, expected, strict=True):
        torch.testing.assert_close(mine, yours)


def test_regions_are_taken_at_the_strides_of_their_levels():
    """Of 66 px filled up to 96, where torchvision would guess strides of 2, 4 and so on."""
    backbone, head = both("faster_rcnn", size=66)
    pooling = head.detector.roi_heads.box_roi_pool
    seen = []
    pooling.register_forward_hook(lambda _, args, out: seen.append((args, out)))
    head.detect(backbone.pyramid(images(66)), (66, 66))
    (features, boxes, _), regions = seen[0]
    corner = torch.tensor([[0.0, 0, 4, 4]])  # the first pixel of the finest level
    flat = {name: level * 0 for name, level in features.items()}
    flat["0"][0, :, :2, :2] = 1  # and those that it is interpolated with
    assert (pooling(flat, [corner, corner], [(66, 66)] * 2)[0] > 0.99).all()
    assert not pooling(flat, [corner + 8, corner], [(66, 66)] * 2)[0].any()
    assert len(regions) == len(boxes[0]) + len(boxes[1])


@pytest.mark.parametrize("choice", HEADS)
def test_losses_have_their_weights(choice):
    weights = {name: 2.0 + k for k, name in enumerate(NODES[choice]["weights"])}
    plain, heavy = [
        both(choice, weights=each)[1] for each in (dict.fromkeys(weights, 1.0), weights)
    ]
    levels = TimmBackbone("test_resnet", 3, 64).pyramid(images())
    values = []
    for head in (plain, heavy):
        torch.manual_seed(1)
        values.append(head.losses(levels, SIZE, BOXES, LABELS))
    for name, weight in weights.items():
        torch.testing.assert_close(values[1][name], weight * values[0][name])


@pytest.mark.parametrize("choice", HEADS)
def test_the_mode_decides_nothing_and_stays(choice):
    backbone, head = both(choice)
    levels = backbone.pyramid(images())
    values, found = [], []
    for training in (True, False):
        head.train(training)
        torch.manual_seed(1)
        values.append(head.losses(levels, SIZE, BOXES, LABELS))
        found.append(head.detect(levels, SIZE))
        assert all(module.training == training for module in head.modules())
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("choice", HEADS)
def test_losses_are_computed_in_full_precision(choice):
    backbone, head = both(choice)
    seen = []

    def watch(owner, name):
        function = getattr(owner, name)

        def watched(*given):
            seen.extend(each.dtype for each in tree_leaves(given) if isinstance(each, torch.Tensor))
            return function(*given)

        setattr(owner, name, watched)

    watch(head, "raw_losses")
    watch(getattr(head.detector, "rpn", head.detector), "compute_loss")
    if hasattr(head.detector, "roi_heads"):
        roi_heads = head.detector.roi_heads
        roi_heads.box_predictor.register_forward_hook(
            lambda *given: seen.extend(each.dtype for each in given[-1])
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        levels = backbone.pyramid(images())
        losses = head.losses(levels, SIZE, BOXES, LABELS)
        found = head.detect(levels, SIZE)
    assert {dtype for dtype in seen if dtype.is_floating_point} == {torch.float32}
    assert {each.dtype for each in losses.values()} == {torch.float32}
    assert all(torch.isfinite(each) for each in losses.values())
    assert all(each.boxes.dtype == torch.float32 for each in found)


@pytest.mark.parametrize("choice", HEADS)
@pytest.mark.parametrize("weights", [{}, {"classification": 1.0, "boxes": 1.0}])
def test_losses_without_a_weight_are_refused(choice, weights):
    with pytest.raises(ConfigError, match=r"head\.weights has .*\n.*classification"):
        both(choice, weights=weights)


@pytest.mark.parametrize(
    ("key", "changed"),
    [
        ("levels.width", {"levels": {"width": 48, "finest": 8, "extra": 0}}),
        ("levels.finest", {"levels": {"width": 32, "finest": 2, "extra": 0}}),
        ("min_score", {"min_score": 2.0}),
        ("nms.kind", {"nms": {"kind": "none", "iou": 0.5, "sigma": 0.5, "score": 0.5}}),
        ("nms.iou", {"nms": {"kind": "hard", "iou": 1.5, "sigma": 0.5, "score": 0.5}}),
        ("nms.score", {"nms": {"kind": "hard", "iou": 0.5, "sigma": 0.5, "score": "best"}}),
    ],
)
def test_values_without_meaning_are_refused(key, changed):
    with pytest.raises(ConfigError, match=key):
        both("fcos", **changed)


@pytest.mark.parametrize("choice", HEADS)
def test_every_detector_has_the_keys_that_others_rely_on(choice):
    assert {"kind", "iou", "score"} <= set(NODES[choice]["nms"])


def test_levels_coarser_than_the_image_are_left_out():
    levels = Levels(width=32, finest=8, extra=2)
    strides = {
        size: FeaturePyramid((8, 8), (8, 16), size, levels, "pooling").strides
        for size in (32, 64, 127, 128)
    }
    assert strides[32] == (8, 16, 32)
    assert strides[64] == strides[127] == (8, 16, 32, 64)
    assert strides[128] == (8, 16, 32, 64, 128)


def test_levels_lie_at_their_strides():
    pyramid = FeaturePyramid((8, 8), (8, 16), 72, Levels(width=32, finest=8, extra=1), "pooling")
    maps = pyramid([torch.rand(1, 8, 9, 9), torch.rand(1, 8, 5, 5)], (72, 72))
    assert [tuple(each.shape[1:]) for each in maps] == [
        *((32, 12, 12), (32, 6, 6), (32, 3, 3)),  # of 96 px, the image filled up
        (32, 2, 2),
    ]


def test_anchors_lie_on_the_centres_of_pixels():
    anchors = Anchors((8, 16), ((6.0,), (20.0,)), (0.25, 1.0))
    boxes = anchors(type("", (), {"image_sizes": [SIZE] * 2}), [torch.zeros(2, 1, 3, 3)] * 2)
    assert len(boxes) == 2
    torch.testing.assert_close(boxes[0], boxes[1])
    centres = (boxes[0][:, :2] + boxes[0][:, 2:]) / 2
    assert centres[:4].tolist() == [[4, 4], [4, 4], [12, 4], [12, 4]]
    assert centres[18:22].tolist() == [[8, 8], [8, 8], [24, 8], [24, 8]]
    width, height = (boxes[0][:, 2:] - boxes[0][:, :2]).unbind(1)
    assert (height / width)[:2].tolist() == [0.25, 1.0]

    sides = (width * height).sqrt()[[0, 1, 18, 19]]
    torch.testing.assert_close(sides, torch.tensor([6.0, 6, 20, 20]))


def test_automatic_anchors_are_quantiles_of_the_boxes_that_belong_to_a_level():
    sides = np.array([5, 10, 20, 30, 40, 500.0])
    boxes = np.stack([0 * sides, 0 * sides, sides / 2, 2 * sides], 1)
    sizes = anchor_sizes((4, 8, 16), "auto", 1, boxes)
    # belongs: about 16, 32 and 64 pixels
    np.testing.assert_allclose(sizes, [[np.median([5, 10, 20])], [35], [500]])
    three = anchor_sizes((4,), "auto", 3, boxes[:3])
    np.testing.assert_allclose(three, [np.quantile([5, 10, 20], [1 / 6, 1 / 2, 5 / 6])])


@pytest.mark.parametrize("boxes", [None, np.zeros((0, 4)), np.array([[3.0, 3, 3, 9]])])
def test_without_boxes_automatic_anchors_are_four_strides(boxes):
    assert anchor_sizes((4, 8), "auto", 1, boxes) == ((16.0,), (32.0,))
    ((low, high),) = anchor_sizes((8,), "auto", 2, boxes)
    assert low < 32 < high
    assert low * high == pytest.approx(32**2)


def test_anchors_may_be_given():
    _, head = both("retinanet", anchors=[[8, 10], [16, 20], [32, 40], [64, 80]])
    assert head.detector.anchor_generator.sizes == ((8, 10), (16, 20), (32, 40), (64, 80))


@pytest.mark.parametrize("anchors", [[[8], [16]], [[8], [16], [32], [64, 80]]])
def test_anchors_for_other_levels_are_refused(anchors):
    with pytest.raises(ConfigError, match=r"(?s)head\.anchors.*strides are 8, 16, 32, 64.*auto"):
        both("retinanet", anchors=anchors)

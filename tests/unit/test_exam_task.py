"""Exam classification: metrics of exams and of their images, tables and heat maps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from medtransfer.backbones.encoder import DenseEncoder
from medtransfer.backbones.pixels import Pixels
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.components import build
from medtransfer.data.base import DataSpec
from medtransfer.errors import ConfigError
from medtransfer.heads.exam import ExamPooling
from medtransfer.strategies.base import Strategy
from medtransfer.strategies.classic_head import Fitted
from medtransfer.tasks.classification import Classification
from medtransfer.tasks.exam_classification import OF_IMAGES, ExamClassification
from medtransfer.tasks.heat import grad_cam
from medtransfer.tasks.losses import CrossEntropy

SIZE, VIEWS = 16, ("CC", "MLO")
SIZES = (3, 1, 2, 8, 1, 4)  # images of each exam
NAMES = ("normal", "benign", "malignant")
POOLINGS = ("mean", "max", "attention", "gated_attention", "late_fusion")


class Half(nn.Module):
    """Its embedding is the mean of each half of the level, left and right, of one channel."""

    embedding_size = 2

    def __init__(self):
        super().__init__()
        self.level = nn.AvgPool2d(4)

    def place(self):
        return "level", 1

    def features(self, images):
        level = self.level(images)
        halves = [half.mean((1, 2, 3)) for half in level.chunk(2, dim=3)]
        return torch.stack(halves, 1), [images, level]

    def embed(self, images):
        return self.features(images)[0]


def made(pooling="gated_attention", backbone=None, names=NAMES, **keys) -> ExamClassification:
    torch.manual_seed(0)
    backbone = backbone or Half()
    head = ExamPooling(
        in_features=backbone.embedding_size,
        outputs=len(names),
        views=VIEWS,
        pooling=pooling,
        attention_size=4,
        norm="none",
        dropout=0.0,
    )
    counts = (1,) * len(names)
    return ExamClassification(
        backbone=backbone,
        head=head,
        loss=CrossEntropy(counts, "none", 0.0),
        strategy=SimpleNamespace(distils=False),
        spec=DataSpec(names, 1, SIZE, counts, "data", "split", "exam", VIEWS),
        **dict.fromkeys(("schedule", "optimizer", "make_optimizer")),
        **keys,
    ).eval()


def batch(sizes=SIZES, classes=3, seed=0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    exam = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    target = (torch.arange(len(sizes)) % classes)[exam]
    image = torch.rand(len(exam), 1, SIZE, SIZE, generator=generator)
    return {
        "image": image + target[:, None, None, None] * 0.1 * torch.linspace(0, 1, SIZE),
        "index": torch.randperm(100, generator=generator)[: len(exam)],
        "target": target,
        "exam": exam,
        "view": torch.randint(-1, 2, (len(exam),), generator=generator),
    }


def stepped(task: ExamClassification, cases: dict) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return task.step(cases)[1]


class Store:
    """Stands in for data: the images of a batch, by their index."""

    def __init__(self, cases: dict) -> None:
        self.images = dict(zip(cases["index"].tolist(), cases["image"], strict=True))
        self.seen: list[int] = []

    def views(self, indices, transform, *, count, batch_size, workers):
        assert transform is None
        assert (count, workers) == (1, 0)
        self.seen += indices.tolist()
        for start in range(0, len(indices), batch_size):
            some = indices[start : start + batch_size].tolist()
            yield {"image": torch.stack([self.images[i] for i in some])}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_exams_are_judged_by_all_their_images_and_images_by_themselves(pooling):
    task, cases = made(pooling), batch()
    kept = stepped(task, cases)
    starts = np.cumsum((0, *SIZES[:-1]))
    assert kept["index"].tolist() == cases["index"][starts].tolist()
    assert kept["target"].tolist() == [k % 3 for k in range(len(SIZES))]
    torch.testing.assert_close(
        kept["scores"], task(cases["image"], cases["exam"], cases["view"]).softmax(1)
    )
    assert torch.equal(kept["image_index"], cases["index"])
    assert torch.equal(kept["image_exam"], kept["index"][cases["exam"]])
    assert torch.equal(kept["image_target"], cases["target"])
    for row in range(len(cases["exam"])):
        one, view = cases["image"][row : row + 1], cases["view"][row : row + 1]
        alone = task(one, torch.zeros(1, dtype=torch.int64), view).softmax(1)
        torch.testing.assert_close(kept["image_scores"][row : row + 1], alone)
    single = (torch.tensor(SIZES) == 1).nonzero()[:, 0]
    rows = torch.tensor(starts)[single]
    torch.testing.assert_close(kept["image_scores"][rows], kept["scores"][single])
    assert (kept["image_weight"][rows] == 1).all()


def test_the_loss_is_that_of_exams_and_training_keeps_nothing():
    task, cases = made(), batch()
    loss, kept = task.step(cases)
    torch.testing.assert_close(loss, kept["nll"].mean())
    learning, nothing = task.train().step(cases)
    torch.testing.assert_close(learning, loss)
    assert nothing == {}


def test_training_looks_at_each_image_once():
    task, cases = made("mean"), batch()
    task.head.classifier.norm = nn.BatchNorm1d(2, affine=False)
    task.train().step(cases)
    assert task.head.classifier.norm.num_batches_tracked == 1


def together(task: ExamClassification, batches: list[dict]) -> dict[str, torch.Tensor]:
    parts = [stepped(task, cases) for cases in batches]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def numbered(classes: int) -> list[dict]:
    batches = [batch(classes=classes, seed=seed) for seed in range(5)]
    for k, cases in enumerate(batches):
        cases["index"] = cases["index"] + 100 * k
    return batches


def test_exams_come_first_and_images_second():
    task = made()
    kept = together(task, numbered(3))
    found = task.evaluate("test", kept)
    expected = Classification.evaluate(task, "test", kept)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    target, scores = kept["image_target"].numpy(), kept["image_scores"].numpy()
    oracle = {
        "image_auroc": metrics.roc_auc_score(target, scores, multi_class="ovr", average="macro"),
        "image_average_precision": metrics.average_precision_score(np.eye(3)[target], scores),
        "image_accuracy": metrics.accuracy_score(target, scores.argmax(1)),
        "image_balanced_accuracy": metrics.balanced_accuracy_score(target, scores.argmax(1)),
    }
    assert found.keys() - expected.keys() == oracle.keys()
    assert {name: found[name] for name in oracle} == pytest.approx(oracle, abs=1e-5)


def test_the_threshold_is_chosen_by_exams():
    task, other = (made(names=NAMES[:2]) for _ in range(2))
    kept = together(task, numbered(2))
    task.evaluate("val", kept)
    Classification.evaluate(other, "val", kept)
    assert float(task.threshold) == float(other.threshold) != 0.5


def test_every_metric_has_a_direction():
    task = made(ordinal=True)
    for name in task.evaluate("val", together(task, numbered(3))):
        assert ExamClassification.direction(name) in {"min", "max"}
    assert {ExamClassification.direction(f"image_{name}") for name in OF_IMAGES} == {"max"}
    for name in ("image_loss", "image_", "image_image_auroc"):
        with pytest.raises(ConfigError):
            ExamClassification.direction(name)


def test_the_table_of_images_says_how_much_each_counted():
    task = made()
    kept = together(task, numbered(3))
    table = task.tables(kept)["images"]
    assert list(table) == ["index", "exam", "weight", *(f"score_{name}" for name in NAMES)]
    exams = kept["index"].numpy()[table["exam"]]
    np.testing.assert_array_equal(exams, kept["image_exam"])
    np.testing.assert_allclose(np.bincount(table["exam"], table["weight"]), 1, atol=1e-5)
    np.testing.assert_array_equal(table["score_benign"], kept["image_scores"][:, 1])
    assert len(task.columns(kept)["target"]) == 5 * len(SIZES)


def test_an_exam_is_shown_with_the_images_that_counted_most():
    task, cases = made(), batch()
    kept, store = stepped(task, cases), Store(cases)
    kept["target"] = (kept["scores"].argmax(1) + 1) % 3  # all wrong, so that all are shown
    with torch.no_grad():
        examples = task.examples(store, kept)
    (shown,) = examples.groups.values()
    assert "test exams" in examples.title
    assert "Grad-CAM" in examples.heat
    by_index = {case.index: case for case in shown}
    assert by_index.keys() == set(kept["index"].tolist())
    for row, index in enumerate(kept["index"].tolist()):
        mine = kept["image_exam"] == index
        weights = dict(
            zip(kept["image_index"][mine].tolist(), kept["image_weight"][mine], strict=True)
        )
        panels = by_index[index].panels
        assert len(panels) == min(6, SIZES[row])
        order = [float(weights[panel.index]) for panel in panels]
        assert order == sorted(weights.values(), reverse=True)[:6]
        rest = by_index[index].words[2:]
        assert bool(rest) == (SIZES[row] > 6)
        assert all("2 more images" in words for words in rest)
        for panel, weight in zip(panels, order, strict=True):
            view = int(cases["view"][cases["index"].tolist().index(panel.index)])
            name = f"{VIEWS[view]}, " if view >= 0 else ""
            assert panel.heading == f"{name}weight {weight:.2f}"
            assert panel.heat.shape == (4, 4)
        hottest = max(panel.heat.max() for panel in panels)
        assert hottest == 0 or hottest == pytest.approx(1)


def test_heat_lies_where_the_predicted_class_comes_from():
    task, cases = made("mean", names=NAMES[:2]), batch((2, 1))
    task.head.assign(torch.tensor([[0.0, 0.0], [-4.0, 4.0]]), torch.tensor([0.0, 9.0]))
    heat = task._heat(Store(cases), cases["index"][:2], cases["view"][:2], 1)
    weights = torch.tensor([[-1.0, 1.0]])  # of left and right, and the level is their mean
    level = nn.functional.avg_pool2d(cases["image"][:2], 4)
    slope = weights.mean()  # channel weights are means over places: here they cancel
    assert slope == 0
    assert (heat == 0).all()
    task.head.assign(torch.tensor([[0.0, 0.0], [1.0, 3.0]]), torch.zeros(2))
    heat = task._heat(Store(cases), cases["index"][:2], cases["view"][:2], 1)
    torch.testing.assert_close(heat, level[:, 0] / level.max())
    against = task._heat(Store(cases), cases["index"][:2], cases["view"][:2], 0)
    assert (against == 0).all()


def test_heat_of_the_first_images_is_the_same_with_the_rest_of_the_exam_in_one_pass():
    network = TimmBackbone("test_resnet", 1, 96).eval()
    task = made("gated_attention", network, names=tuple("abcdef"))
    images = torch.rand(8, 1, 96, 96)
    cases = {"index": torch.arange(8), "image": images}
    for parameter in task.parameters():
        parameter.requires_grad_(False)  # as a strategy leaves them
    unknown, exam = torch.full((8,), -1), torch.zeros(8, dtype=torch.int64)
    embedding, levels = network.features(images.clone().requires_grad_())
    scores, hottest = task.head(embedding, exam, unknown)[0], []
    for k in range(6):
        with torch.no_grad():
            heat = task._heat(Store(cases), torch.arange(8), unknown, k)
        (slopes,) = torch.autograd.grad(scores[k], levels[-1], retain_graph=True)
        maps = (slopes.mean((2, 3), keepdim=True) * levels[-1]).sum(1).relu()[:6].detach()
        hottest.append(float(maps.max()))
        expected = maps / maps.max() if hottest[-1] else maps
        torch.testing.assert_close(heat, expected, atol=1e-4, rtol=1e-3)
    assert max(hottest) > 0


@pytest.mark.parametrize("kind", ["pixels", "dense", "fitted"])
def test_what_has_no_gradient_by_place_has_no_heat_map(kind):
    backbone = {
        "pixels": lambda: Pixels(channels=1, size=2, image_size=SIZE),
        "dense": lambda: DenseEncoder(
            channels=1, size=4, widths=(3,), units="relu", image_size=SIZE
        ),
        "fitted": Half,
    }[kind]()
    task, cases = made("mean", backbone), batch((2, 1))
    if kind == "fitted":
        head = Fitted(3)
        settings = {"kind": "knn", "seed": 0, "neighbours": 1}
        head.fit(torch.rand(6, 2), torch.arange(6) % 3, None, settings)
        task.head.classifier = head
    kept = stepped(task.eval(), cases)
    (shown,) = task.examples(Store(cases), kept).groups.values()
    assert {panel.heat is None for case in shown for panel in case.panels} == {True}


def test_a_level_of_one_place_has_no_heat_map():
    backbone = Half()
    backbone.level = nn.AvgPool2d(SIZE)
    images = torch.rand(2, 1, SIZE, SIZE)
    assert grad_cam(backbone, images, lambda x: backbone.level(x)[:, 0, 0], 0) is None


def test_a_score_that_does_not_pass_the_level_has_no_heat_map():
    images = torch.rand(2, 1, SIZE, SIZE)
    assert grad_cam(Half(), images, lambda x: x.mean((2, 3)), 0) is None


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext"])
def test_heat_has_the_grid_of_the_network_and_leaves_it_as_it_was(name):
    torch.manual_seed(0)
    backbone = TimmBackbone(name, 1, 96).eval()
    images = torch.rand(2, 1, 96, 96)
    before = repr(backbone), backbone.embed(images)
    heat = grad_cam(backbone, images, backbone.embed, 3)
    assert heat.shape[0] == 2
    assert heat.shape[1] == heat.shape[2] > 1
    assert heat.max() == pytest.approx(1)
    assert repr(backbone) == before[0]
    torch.testing.assert_close(backbone.embed(images), before[1], rtol=0, atol=0)


CHOICES = {"neighbours": (3,), "C": (1.0,), "max_features": (1.0,), "trees": 5}
CLASSIC = {"_target_": "medtransfer.strategies.classic_head.ClassicHead", **CHOICES}
PROBE = {"_target_": "medtransfer.strategies.linear_probe.LinearProbe", "C": (1.0, 100.0)}
SOLVED = [PROBE, *({**CLASSIC, "kind": kind} for kind in ("knn", "svm", "random_forest"))]


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("node", SOLVED)
def test_heads_are_solved_from_pooled_features(pooling, node):
    strategy = build({**node, "batchnorm": "auto", "search_space": {}}, Strategy)
    network = Pixels(channels=1, size=2, image_size=SIZE)
    task, cases = made(pooling, network), batch((2, 1) * 12)
    strategy.trainable(task)
    strategy.setup(task, [], statistics=True)
    with torch.no_grad():
        pooled = task.head.pool(network.embed(cases["image"]), cases["exam"])
    targets = cases["target"][(cases["exam"].diff(prepend=torch.tensor([-1])) > 0)]
    strategy.fit_head(task, pooled, targets, None, lambda: 0.0)
    kept = stepped(task.eval(), cases)
    alone = task.head.classifier(pooled).softmax(1)
    torch.testing.assert_close(kept["scores"], alone)
    assert (kept["scores"].argmax(1) == targets).float().mean() > 0.6

    copy = made(pooling, network)
    strategy.begin(copy)
    copy.load_state_dict(task.state_dict())
    torch.testing.assert_close(stepped(copy.eval(), cases)["scores"], alone)

"""Contrastive learning: its loss against a plain one, and that a backbone learns from it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity

from medtransfer.backbones.timm import TimmBackbone
from medtransfer.components import build
from medtransfer.errors import ConfigError
from medtransfer.pretrain.base import Source
from medtransfer.pretrain.simclr import ContrastiveLearner, SimClr, nt_xent
from medtransfer.pretrain.views import Views


@pytest.fixture(scope="module")
def node(request):
    """Return the source as its YAML says it."""
    from medtransfer.app import App

    with App.open("pretrain", None) as app:
        return app.compose(["source=simclr", "dataset=phantom"]).plain()["source"]


@pytest.fixture
def learner(node) -> ContrastiveLearner:
    torch.manual_seed(0)
    return build(node, Source).learner(TimmBackbone("test_resnet", 1, 32), None)


def draw(n: int, width: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, n, width, generator=generator))


def spots(n: int = 16, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return images that differ in where their spot is, and how large."""
    generator = torch.Generator().manual_seed(seed)
    x, y, radius = torch.rand(3, n, 1, 1, generator=generator)
    axis = torch.linspace(0, 1, 32)
    distance = (axis.view(1, 1, -1) - x) ** 2 + (axis.view(1, -1, 1) - y) ** 2
    image = torch.exp(-distance / (0.01 + 0.1 * radius**2))
    return {"image": image[:, None], "target": torch.zeros(n, dtype=torch.int64)}


def plainly(first, second, temperature, same) -> tuple[float, float]:
    """Compute the loss and accuracy one view after another."""
    n = len(first)
    views = [*first.double(), *second.double()]
    losses, hits = [], []
    for i in range(2 * n):
        twin = (i + n) % (2 * n)
        similar = {
            j: math.exp(float(cosine_similarity(views[i], views[j], dim=0)) / temperature)
            for j in range(2 * n)
            if j == twin or same[i % n] != same[j % n]
        }
        losses.append(-math.log(similar[twin] / sum(similar.values())))
        hits.append(max(similar, key=similar.get) == twin)
    return sum(losses) / (2 * n), sum(hits) / (2 * n)


@given(
    n=st.integers(2, 7),
    temperature=st.sampled_from([0.1, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_the_loss_is_that_of_a_plain_loop(n, temperature, seed):
    first, second = draw(n, seed=seed)
    loss, accuracy = nt_xent(first, second, temperature)
    expected = plainly(first, second, temperature, range(n))
    assert float(loss) == pytest.approx(expected[0], rel=1e-6, abs=1e-6)
    assert float(accuracy) == pytest.approx(expected[1])


def test_what_is_the_same_image_is_not_told_apart():
    first, second = draw(6)
    same = torch.tensor([0, 1, 0, 2, 1, 0])
    loss, accuracy = nt_xent(first, second, 0.2, same)
    expected = plainly(first, second, 0.2, same.tolist())
    assert float(loss) == pytest.approx(expected[0], rel=1e-6)
    assert float(accuracy) == pytest.approx(expected[1])
    assert float(loss) < float(nt_xent(first, second, 0.2)[0])


def test_the_order_of_the_views_does_not_matter():
    first, second = draw(8)
    there, back = nt_xent(first, second, 0.2), nt_xent(second, first, 0.2)
    assert torch.allclose(torch.stack(there), torch.stack(back), atol=1e-6)


def test_twins_that_are_alike_cost_nothing_and_others_much():
    axes = torch.eye(8)
    loss, accuracy = nt_xent(axes, 3 * axes, 0.05)  # lengths do not count
    assert float(loss) < 1e-6
    assert float(accuracy) == 1
    loss, accuracy = nt_xent(axes, axes.roll(1, 0), 0.05)
    assert float(loss) > 10
    assert float(accuracy) == 0


def test_the_loss_is_computed_in_full_precision():
    first, second = draw(8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = nt_xent(first, second, 0.1)[0]
    assert torch.equal(mixed, nt_xent(first, second, 0.1)[0])


def test_every_parameter_of_the_backbone_and_the_projection_has_a_gradient(learner):
    learner(spots())["loss"].backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
    moved = [p for p in learner.backbone.parameters() if p.grad.abs().max() > 1e-6]
    assert len(moved) > 0.5 * len(list(learner.backbone.parameters()))


def test_views_without_strength_are_told_from_others_at_once(node, learner):
    torch.manual_seed(0)
    values = learner(spots())
    assert float(values["accuracy"]) < 1
    learner.views = Views(**{name: 0 * value for name, value in node["views"].items()})
    assert float(learner(spots())["accuracy"]) == 1


def test_an_image_that_a_batch_holds_twice_is_no_negative_of_itself(learner):
    twice = {"image": spots(1)["image"].repeat(4, 1, 1, 1)}
    values = learner(twice)
    assert values["loss"].item() == pytest.approx(0, abs=1e-6)  # nothing else is there
    assert float(learner(spots(4))["loss"]) > 0.1


def test_the_images_of_a_toy_set_are_told_apart(node):
    torch.manual_seed(0)
    mild = {**node["views"], "crop": 0.1, "rotation": 5.0, "flip": False}
    learner = build({**node, "views": mild}, SimClr).learner(
        TimmBackbone("test_resnet", 1, 32), None
    )
    optimizer = torch.optim.Adam(learner.parameters(), lr=2e-3)
    seen = []
    for _ in range(40):
        values = learner(spots())
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        seen.append([float(values["loss"]), float(values["accuracy"])])
    (before, poor), (after, good) = (torch.tensor(s).mean(0) for s in (seen[:5], seen[-5:]))
    assert after < before - 0.5
    assert good > poor + 0.2


def test_a_batch_of_one_image_is_refused(learner):
    with pytest.raises(ConfigError, match=r"trainer\.batch_size"):
        learner(spots(1))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"temperature": 0.0}, "source.temperature"),
        ({"projection": 0}, "source.projection"),
        ({"views": {"crop": 1.0}}, "source.views.crop"),
        ({"views": {"zoom": 0.1}}, "source.views.zoom"),
        ({"queue": 10}, "source.queue"),
    ],
)
def test_wrong_values_are_refused(node, wrong, said):
    views = {**node["views"], **wrong.pop("views", {})}
    with pytest.raises(ConfigError, match=said):
        build({**node, "views": views, **wrong}, Source)


def test_a_missing_strength_is_refused(node):
    views = {key: value for key, value in node["views"].items() if key != "blur"}
    with pytest.raises(ConfigError, match=r"source\.views\.blur"):
        build({**node, "views": views}, Source)


def test_no_dataset_is_refused(node):
    with pytest.raises(ConfigError, match="dataset=NAME"):
        build(node, Source).material(None)


def test_one_step_of_pretraining_moves_the_backbone(node, one_step):
    made = []
    for _ in range(2):
        learner, moved, logged = one_step(build(node, Source))
        assert set(logged) == {"train/loss", "train/accuracy"}
        after = dict(learner.backbone.named_parameters())
        assert len(moved) > 0.5 * len(after)
        made.append(after)
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])

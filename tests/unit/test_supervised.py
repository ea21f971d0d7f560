"""Supervised pre-training: classes are learnt, by the backbone too."""

import pytest
import torch

from medtransfer.backbones.timm import TimmBackbone
from medtransfer.components import build
from medtransfer.errors import ConfigError
from medtransfer.pretrain.base import Source
from medtransfer.pretrain.supervised import ClassLearner, Supervised


@pytest.fixture(scope="module")
def node():
    """Return the source as its YAML says it."""
    from medtransfer.app import App

    with App.open("pretrain", None) as app:
        return app.compose(["source=supervised", "dataset=phantom"]).plain()["source"]


def stripes(n: int, seed: int) -> dict[str, torch.Tensor]:
    """Return images of two classes: stripes that lie, and stripes that stand."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % 2
    phase = 6.3 * torch.rand(n, 1, 1, generator=generator)
    wave = torch.sin(torch.arange(32.0).view(1, 1, -1) * 0.8 + phase).expand(n, 32, 32)
    image = torch.where(target.view(-1, 1, 1).bool(), wave, wave.transpose(1, 2))
    noise = 0.1 * torch.randn(n, 32, 32, generator=generator)
    return {"image": (0.5 + 0.3 * image + noise).clamp(0, 1)[:, None], "target": target}


def test_a_separable_toy_set_is_learnt(node):
    torch.manual_seed(0)
    backbone = TimmBackbone("test_resnet", 1, 32)
    learner = ClassLearner(backbone, build(node, Supervised).views, 2)
    optimizer = torch.optim.Adam(learner.parameters(), lr=2e-3)
    losses = []
    for step in range(30):
        values = learner(stripes(32, step))
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        losses.append(float(values["loss"]))
    assert losses[-1] < 0.3 * losses[0]
    learner.eval()
    with torch.no_grad():
        assert float(learner(stripes(200, 1000))["accuracy"]) > 0.95


def test_loss_and_accuracy_are_of_the_targets(node):
    torch.manual_seed(0)
    learner = ClassLearner(TimmBackbone("test_resnet", 1, 32), build(node, Supervised).views, 3)
    torch.nn.init.zeros_(learner.classify[1].weight)
    learner.classify[1].bias.data = torch.tensor([0.0, 2.0, 0.0])
    images = stripes(8, 0)["image"]
    values = learner({"image": images, "target": torch.tensor([1, 1, 1, 1, 1, 1, 0, 2])})
    assert float(values["accuracy"]) == 0.75
    odds = torch.tensor([0.0, 2.0, 0.0]).log_softmax(0)
    assert float(values["loss"]) == pytest.approx(float(-0.75 * odds[1] - 0.25 * odds[0]))


def test_the_backbone_sees_views_and_not_the_images():
    learner = ClassLearner(TimmBackbone("test_resnet", 1, 32), torch.zeros_like, 2).eval()
    losses = [learner({**stripes(4, 0), "image": x})["loss"] for x in torch.rand(2, 4, 1, 32, 32)]
    assert torch.equal(*losses)
    learner.views = torch.clone
    losses = [learner({**stripes(4, 0), "image": x})["loss"] for x in torch.rand(2, 4, 1, 32, 32)]
    assert not torch.equal(*losses)


def test_the_gradient_reaches_the_backbone(node):
    torch.manual_seed(0)
    learner = ClassLearner(TimmBackbone("test_resnet", 1, 32), build(node, Supervised).views, 2)
    learner(stripes(8, 0))["loss"].backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
    assert max(float(p.grad.abs().max()) for p in learner.backbone.parameters()) > 1e-3


def test_one_step_of_pretraining_moves_the_backbone(node, one_step):
    learner, moved, logged = one_step(build(node, Source))
    assert learner.classify[1].out_features == 3
    assert set(logged) == {"train/loss", "train/accuracy"}
    assert len(moved) > 0.5 * len(list(learner.backbone.parameters()))


@pytest.mark.parametrize(
    ("views", "said"),
    [({"blur": 2.0}, "source.views.blur"), ({"erasing": 0.1}, "source.views.erasing")],
)
def test_wrong_values_are_refused(node, views, said):
    with pytest.raises(ConfigError, match=said):
        build({**node, "views": {**node["views"], **views}}, Source)


def test_no_dataset_is_refused(node):
    with pytest.raises(ConfigError, match="dataset=NAME"):
        build(node, Source).material(None)

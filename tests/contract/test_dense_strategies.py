"""What every strategy that trains in steps keeps to where masks and boxes are learned."""

from __future__ import annotations

from functools import cache

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from test_strategies import NETWORKS, STEPPED
from torch.utils.data import DataLoader

from medtransfer.app import App
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.certificate import Certificate
from medtransfer.components import build, locate
from medtransfer.config import TrainConfig
from medtransfer.data.base import DataSpec
from medtransfer.data.loading import collate
from medtransfer.quiet import quiet_libraries
from medtransfer.strategies.base import Strategy
from medtransfer.tasks.base import Task
from medtransfer.tasks.optimizing import optimizer_factory
from medtransfer.tasks.schedulers import Constant
from medtransfer.testing.small import ADAM, SIGN_STEPS
from medtransfer.testing.watching import Modes, awake_by_step, changed, copies

SIZE = 64  # two pixels at stride 32: one would be normalised to nothing
EPOCHS = 2
# What comes after the last feature map has no part in a dense task, and so no gradient.
AFTER_THE_MAPS = {
    "test_resnet": (),
    "test_convnext": ("backbone.model.head.norm.",),
    "test_vit": ("backbone.model.norm.", "backbone.model.fc_norm."),
}
SMALL = {
    "segmentation": ("head.widths=[16,16,8,8,8]",),
    "detection": ("head=retinanet", "head.levels.width=32", "head.levels.extra=0"),
}
# One of each kind: frozen, all, by phases, pulled back by values and by maps, adapters, rates.
KINDS = ("feature_extraction", "fine_tuning", "lp_ft", "l2_sp", "delta", "lora", "auto_rgn")

every_dense = pytest.mark.parametrize("dense", sorted(SMALL))
every_network = pytest.mark.parametrize("network", NETWORKS)
every_stepped = pytest.mark.parametrize("name", STEPPED)


@pytest.fixture
def loader():
    """Return one batch of four images: three with a square that is one of two classes."""
    generator = torch.Generator().manual_seed(1)
    cases = []
    for k in range(4):
        case = {
            "image": torch.rand(3, SIZE, SIZE, generator=generator),
            "mask": torch.zeros(SIZE, SIZE, dtype=torch.int64),
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "target": torch.tensor(0),
            "index": torch.tensor(k),
        }
        case["mask"][:, :4] = 255
        if k:
            case["mask"][8 : 24 + 8 * k, 8 : 24 + 8 * k] = 1 + k % 2
            case["boxes"] = torch.tensor([[8.0, 8, 24 + 8 * k, 24 + 8 * k]])
            case["labels"] = torch.tensor([k % 2])
        cases.append(case)
    return DataLoader(cases, batch_size=4, collate_fn=collate)


@cache
def chosen(dense: str) -> TrainConfig:
    """Return what `conf/` says of a task, with a small head."""
    with App.open("train", None) as app:
        return app.compose([f"task={dense}", *SMALL[dense]]).typed(TrainConfig)


@pytest.fixture
def begun(component):
    """Return a function that makes a small dense task and has its strategy set it up."""

    def make(dense: str, name: str, network: str, optimizer=SIGN_STEPS) -> Task:
        torch.manual_seed(0)
        config = chosen(dense)
        kind = locate(config.task["_target_"], Task)
        spec = DataSpec(("benign", "malignant"), 3, SIZE, (2, 1), "data", "split", kind.requires)
        backbone = TimmBackbone(network, 3, SIZE)
        with torch.no_grad():  # layers that begin at zero would keep others from learning
            for parameter in backbone.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        task = build(
            config.task,
            Task,
            backbone=backbone,
            head=build(
                config.head,
                kind.head_base,
                channels=backbone.channels,
                strides=backbone.strides,
                image_size=SIZE,
                outputs=3 if dense == "segmentation" else 2,
            ),
            loss=config.loss and build(config.loss, kind.loss_base, counts=spec.train_counts),
            strategy=build(component("strategy", name), Strategy),
            schedule=Constant(),
            optimizer=optimizer,
            make_optimizer=optimizer_factory(dict(optimizer), ()),
            spec=spec,
        )
        task.strategy_.setup(task, [torch.rand(4, 3, SIZE, SIZE)], statistics=True)
        return task

    return make


@every_network
@every_stepped
@every_dense
def test_two_steps_change_what_is_declared_and_nothing_else(dense, name, network, begun, fit):
    task = begun(dense, name, network)
    strategy = task.strategy_
    declared = strategy.trainable(task)
    head = {n for n, _ in task.named_parameters() if n.startswith("head.")}
    assert head <= declared
    certificate = Certificate.of(task, strategy)
    parameters, buffers = copies(task.named_parameters()), copies(task.named_buffers())
    modes = Modes()

    trainer = fit(task, modes)

    idle = {n for n in declared if n.startswith(AFTER_THE_MAPS[network])}
    assert changed(parameters, dict(task.named_parameters())) == declared - idle
    assert {n for n, p in task.named_parameters() if p.requires_grad} == declared
    held = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(task.get_parameter(n)) for n in declared)
    certificate.verify(task)

    expected = awake_by_step(task, strategy, strategy.policy)
    assert modes.seen == expected
    moved = changed(buffers, dict(task.named_buffers())) - {"threshold"}
    awake = expected[0] | expected[1]
    counted = {n for n in buffers if "running" in n or "tracked" in n}
    assert moved == {n for n in counted if n.rpartition(".")[0] in awake}


@every_network
@every_dense
def test_a_frozen_backbone_is_the_same_to_the_bit(dense, network, begun, fit):
    task = begun(dense, "feature_extraction", network)
    before = copies(task.backbone.state_dict().items())
    images = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        maps = task.backbone.pyramid(images)
    fit(task)
    assert not changed(before, task.backbone.state_dict())
    with torch.no_grad():
        again = task.backbone.pyramid(images)
    assert all(torch.equal(a, b) for a, b in zip(maps, again, strict=True))


@every_network
@pytest.mark.parametrize("name", ["lora", "ssf"])
@every_dense
def test_what_was_added_is_merged_into_the_maps(dense, name, network, begun, fit):
    task = begun(dense, name, network)
    plain = TimmBackbone(network, 3, SIZE)
    images = torch.rand(2, 3, SIZE, SIZE)
    fit(task)
    task.eval()
    with torch.no_grad():
        before = task.backbone.pyramid(images)
        task.strategy_.finish(task, lambda: 0.0)
        plain.load_state_dict(task.backbone.state_dict())
        after = plain.eval().pyramid(images)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
@every_dense
def test_resumed_after_an_epoch_it_ends_where_it_would_have(dense, name, begun, loader, tmp_path):
    def train(task, *callbacks, resume=None):
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            callbacks=list(callbacks),
            enable_checkpointing=bool(callbacks),
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, loader, loader, ckpt_path=resume, weights_only=True)
        return task.state_dict()

    quiet_libraries()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = train(begun(dense, name, "test_resnet", ADAM), keep)
    fresh = begun(dense, name, "test_resnet", ADAM)
    assert changed(whole, fresh.state_dict())
    again = train(fresh, resume=tmp_path / "epoch=0.ckpt")
    assert whole.keys() == again.keys()
    assert not changed(whole, again)

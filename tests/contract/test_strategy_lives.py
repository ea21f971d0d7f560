"""How every strategy begins, goes on after an interruption, and ends."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from test_strategies import every_network, every_stepped, every_strategy

from medtransfer.backbones.timm import TimmBackbone
from medtransfer.certificate import Certificate
from medtransfer.errors import CertificateError
from medtransfer.quiet import quiet_libraries
from medtransfer.strategies.solved import Solved

ADAM = {"_target_": "torch.optim.AdamW", "lr": 0.003, "weight_decay": 0.01}
EPOCHS = 4


@pytest.fixture
def train(loader):
    """Return a function that trains a task from its start, or on from a checkpoint."""

    def run(task, folder=None, resume=None):
        quiet_libraries()
        keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1) if folder else None
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            callbacks=[keep] if keep else [],
            enable_checkpointing=keep is not None,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, loader, loader, ckpt_path=resume, weights_only=True)

    return run


@pytest.fixture
def begun(make_task):
    """Return a function that makes a task and has its strategy set it up, always alike."""

    def make(name, network, optimizer=ADAM):
        task = make_task(name, network, optimizer)
        torch.manual_seed(1)
        task.strategy_.setup(task, [torch.rand(8, 3, 32, 32)], statistics=True)
        return task

    return make


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@every_network
@every_stepped
def test_resumed_after_any_epoch_it_ends_where_it_would_have(name, network, begun, train, tmp_path):
    whole = begun(name, network)
    train(whole, tmp_path)
    for epoch in range(EPOCHS - 1):
        again = begun(name, network)
        train(again, resume=tmp_path / f"epoch={epoch}.ckpt")
        assert equal(again.state_dict(), whole.state_dict()), f"after epoch {epoch}"


@every_network
@every_strategy
def test_what_is_kept_at_the_end_is_a_plain_network(name, network, begun, train):
    task = begun(name, network)
    plain = TimmBackbone(network, 3, 32)
    images = torch.rand(4, 3, 32, 32)
    if not isinstance(task.strategy_, Solved):
        train(task)
    task.eval()
    with torch.no_grad():
        before = task.backbone.embed(images)
        task.strategy_.finish(task, lambda: 0.0)
        after = task.backbone.embed(images)

    plain.load_state_dict(task.backbone.state_dict())
    with torch.no_grad():
        loaded = plain.eval().embed(images)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loaded, after, rtol=0, atol=0)


@every_network
@every_strategy
def test_the_certificate_lists_every_number_once(name, network, begun):
    task = begun(name, network)
    certificate = Certificate.of(task, task.strategy_)

    learn = sum(p.numel() for n, p in task.named_parameters() if n in certificate.trainable)
    assert sum(part.learn for part in certificate.parts) == learn
    of_model = sum(p.numel() for p in task.parameters())
    assert sum(part.parameters for part in certificate.parts) == of_model
    assert all((part.begin is None) == (part.learn == 0) for part in certificate.parts)


@every_network
@every_stepped
def test_the_certificate_holds_over_a_training(name, network, begun, train):
    task = begun(name, network)
    certificate = Certificate.of(task, task.strategy_)
    train(task)
    certificate.verify(task)
    assert certificate.describe()["frozen"]["equal"]


@every_network
@every_strategy
def test_the_certificate_finds_any_frozen_value_that_changed(name, network, begun):
    task = begun(name, network)
    certificate = Certificate.of(task, task.strategy_)
    values = {n: v for n, v in task.state_dict().items() if n in certificate.frozen}
    assert values
    for name_, value in values.items():
        kept = value.clone()
        value.view(-1)[0] += 1
        with pytest.raises(CertificateError, match=f"1 of .* first '{name_}'"):
            certificate.verify(task)
        assert not certificate.describe()["frozen"]["equal"]
        value.copy_(kept)

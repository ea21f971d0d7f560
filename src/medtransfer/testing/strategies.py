"""What every strategy keeps: what it declares learns, and nothing else changes.

A check takes a small task, or what makes one anew, and raises `AssertionError` in words.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from medtransfer.backbones.timm import TimmBackbone
from medtransfer.certificate import Certificate
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.errors import CertificateError
from medtransfer.strategies.base import Strategy, names_under
from medtransfer.strategies.solved import Solved
from medtransfer.tasks.classification import Classification
from medtransfer.testing.composing import composed
from medtransfer.testing.requiring import require, require_same
from medtransfer.testing.small import ADAM, SIGN_STEPS, SIZE, begin, small_loader, small_task, train
from medtransfer.testing.watching import (
    STEPS,
    Modes,
    Waker,
    awake_by_step,
    changed,
    copies,
    training,
)
from medtransfer.tuning import Tuner

NETWORKS = ("test_resnet", "test_vit")
EPOCHS = 4  # of a training that is interrupted
ROUND_OFF = 1e-5  # merging sums two products that were apart

Make = Callable[[Mapping[str, Any]], Classification]
"""Returns a new small task for the keys of an optimizer, its strategy not set up."""


def check_strategy(
    name: str,
    *overrides: str,
    config_dir: Path | str | None = None,
    trusted: Sequence[str] = (),
    networks: Sequence[str] = NETWORKS,
) -> None:
    """Check a choice of the group `strategy` on small networks, in some seconds each.

    What is declared to learn does, each parameter in one group of the optimizer; all else stays as
    it is to the bit, and in eval mode; an interrupted training ends as one that was not; the
    certificate holds; the result is a plain network.

    Args:
        name: The choice.
        *overrides: Keys of it, as on the command line, such as `strategy.groups=2`.
        config_dir: The folder that you give as --config-dir.
        trusted: The modules that you trust on the command line; they must be importable.
        networks: Names of timm models that take images of 32 px.

    Raises:
        AssertionError: If it does not keep one of these; it says which.
        ConfigError: If it cannot be composed or built.
    """
    found = composed([f"strategy={name}", *overrides], config_dir, trusted)
    config = found.typed(TrainConfig)
    require_tunable(config.strategy, found.plain())
    for network in networks:

        def make(optimizer: Mapping[str, Any], network: str = network) -> Classification:
            strategy = build(config.strategy, Strategy, trusted=trusted)
            return small_task(strategy, network, optimizer)

        fresh = partial(make, SIGN_STEPS)
        declares(begin(fresh()))
        rests_in_train_mode(begin(fresh()))
        is_certified(begin(fresh()))
        certificate_finds_changes(begin(fresh()))
        ends_as_a_plain_network(begin(make(ADAM)))
        if isinstance(fresh().strategy_, Solved):
            solves_the_head(begin(fresh()))
            continue
        changes_what_it_declares(begin(fresh()))
        cannot_be_woken(begin(fresh()))
        certificate_holds(begin(make(ADAM)))
        goes_on_where_it_stopped(make)


def require_tunable(node: Mapping[str, Any], plain: Mapping[str, Any]) -> None:
    """Require of a search space that its keys are there and its values can be drawn.

    Args:
        node: The strategy as its YAML has it.
        plain: The configuration around it.

    Raises:
        AssertionError: If a key is not there.
        ConfigError: If nothing can be drawn.
    """
    space = node["search_space"]
    for key in space:
        values: Any = plain
        for part in key.split("."):
            there = isinstance(values, Mapping) and part in values
            require(there, f"strategy.search_space names '{key}', and there is no such key")
            values = values[part]
    Tuner(space, trials=0, sampler="random", seed=0)


def declares(task: Classification) -> None:
    """Require that the head learns, and in the end all that is declared to learn."""
    strategy = task.strategy_
    trainable = strategy.trainable(task)
    require_same(
        trainable & {n for n, _ in task.named_parameters()},
        trainable,
        "trainable() names parameters of the model, and these are not",
    )
    head = set(names_under(task, "head"))
    require_same(trainable & head, head, "the head is new and has to learn")
    seen: set[str] = set()
    for progress in (0.0, 0.25, 0.5, 0.75, 1.0):
        now = strategy.trainable_in(task, strategy.phase(progress))
        require(seen <= now, f"what once learns has to learn to the end, and not at {progress:.0%}")
        seen = now
    require_same(seen, trainable, "what learns at the end is what trainable() returns")


def changes_what_it_declares(task: Classification) -> None:
    """Require of two steps that they change what is declared to learn then, and nothing else.

    The network must be one of which every parameter takes part in the embedding.
    """
    strategy = task.strategy_
    learning = strategy.trainable_in(task, strategy.phase(STEPS[-1]))
    parameters, buffers = copies(task.named_parameters()), copies(task.named_buffers())
    modes = Modes()

    trainer = train(task, small_loader(), [modes])

    moved = changed(parameters, dict(task.named_parameters()))
    require_same(moved, learning, "parameters that changed are those that learn")
    with_gradient = {n for n, p in task.named_parameters() if p.requires_grad}
    require_same(with_gradient, learning, "parameters with a gradient are those that learn")
    require_grouped(task, trainer.optimizers[0].param_groups)

    expected = awake_by_step(task, strategy, strategy.policy)
    for step, (seen, wanted) in enumerate(zip(modes.seen, expected, strict=True)):
        require_same(seen, wanted, f"modules in train mode at step {step}")
    of_batches = {n for n in buffers if "running" in n or "tracked" in n}
    wanted = {n for n in of_batches if n.rpartition(".")[0] in expected[0] | expected[1]}
    # the threshold is chosen on validation data
    counted = changed(buffers, dict(task.named_buffers())) - {"threshold"}
    require_same(counted, wanted, "buffers that changed are statistics of layers that train")


def require_grouped(task: Classification, groups: Sequence[Mapping[str, Any]]) -> None:
    """Require of an optimizer's groups that they hold what learns at some time, each once."""
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    held = [id(parameter) for group in groups for parameter in group["params"]]
    learning = {id(task.get_parameter(name)) for name in task.strategy_.trainable(task)}
    require(len(held) == len(set(held)), "a parameter is in two groups of the optimizer")
    require_same(
        {names.get(each, "one that is not the model's") for each in held},
        {names[each] for each in learning},
        "parameters in the optimizer's groups are those that learn",
    )


def rests_in_train_mode(task: Classification) -> None:
    """Require that what is frozen stays in eval mode when the model is put to train mode."""
    strategy = task.strategy_
    expected = awake_by_step(task, strategy, strategy.policy)[0]
    task.eval()
    require(not training(task), "all modules are in eval mode after eval()")
    task.train()
    require_same(training(task), expected, "modules in train mode after train()")


def cannot_be_woken(task: Classification) -> None:
    """Require that what rests does so in each step, even if a callback puts it to train mode."""
    modes = Modes()
    train(task, small_loader(), [Waker(), modes])
    expected = awake_by_step(task, task.strategy_, task.strategy_.policy)
    for step, (seen, wanted) in enumerate(zip(modes.seen, expected, strict=True)):
        require_same(seen, wanted, f"modules in train mode at step {step}, after a callback")


def solves_the_head(task: Classification) -> None:
    """Require of a solved head that it parts two clusters, and that the backbone stays."""
    strategy = task.strategy_
    assert isinstance(strategy, Solved)
    before = copies(task.backbone.state_dict().items())
    features = torch.randn(40, task.backbone.embedding_size)
    targets = torch.arange(40) % 2
    features[:, 0] += 5 * targets  # two clusters

    def score() -> float:
        return float((task.head.eval()(features).argmax(1) == targets).float().mean())

    chosen = strategy.fit_head(task, features, targets, None, score)
    require(bool(chosen), "fit_head() returns what was chosen on validation data")
    require(score() == 1, f"two clusters are told apart, and {score():.0%} of the cases are")
    moved = changed(before, task.backbone.state_dict())
    require_same(moved, (), "solving the head changes nothing of the backbone")


def goes_on_where_it_stopped(make: Make) -> None:
    """Require of a training that goes on after any epoch that it ends where it would have."""
    with tempfile.TemporaryDirectory() as folder:
        whole = begin(make(ADAM))
        train(whole, small_loader(), epochs=EPOCHS, keep=Path(folder))
        for epoch in range(EPOCHS - 1):
            again = begin(make(ADAM))
            state = Path(folder, f"epoch={epoch}.ckpt")
            train(again, small_loader(), epochs=EPOCHS, resume=state)
            require_same(again.state_dict(), whole.state_dict(), "tensors of a resumed model")
            moved = changed(whole.state_dict(), again.state_dict())
            require_same(moved, (), f"resumed after epoch {epoch}, tensors end as they would have")


def ends_as_a_plain_network(task: Classification) -> None:
    """Require that `finish` leaves what the plain backbone loads, and what gives the same."""
    plain = TimmBackbone(task.backbone.name, 3, SIZE)
    images = torch.rand(4, 3, SIZE, SIZE)
    if not isinstance(task.strategy_, Solved):
        train(task, small_loader(), epochs=EPOCHS)
    task.eval()
    with torch.no_grad():
        before = task.backbone.embed(images)
        task.strategy_.finish(task, lambda: 0.0)
        after = task.backbone.embed(images)
    require_same(task.backbone.state_dict(), plain.state_dict(), "tensors after finish()")
    plain.load_state_dict(task.backbone.state_dict())
    with torch.no_grad():
        loaded = plain.eval().embed(images)
    same = torch.allclose(after, before, rtol=ROUND_OFF, atol=ROUND_OFF)
    require(same, "finish() leaves the outputs as they are when nothing scores better")
    require(torch.equal(loaded, after), "the plain network gives what the finished one gives")


def is_certified(task: Classification) -> None:
    """Require of a certificate that it lists every number once."""
    found = Certificate.of(task, task.strategy_)
    learn = sum(p.numel() for n, p in task.named_parameters() if n in found.trainable)
    told = sum(part.learn for part in found.parts)
    require(told == learn, f"{learn} numbers learn, and the certificate has {told}")
    of_model = sum(p.numel() for p in task.parameters())
    told = sum(part.parameters for part in found.parts)
    require(told == of_model, f"the model has {of_model} numbers, and the certificate {told}")
    for part in found.parts:
        plain = (part.begin is None) == (part.learn == 0)
        require(plain, f"'{part.name}' has numbers that learn, and no step from which they do")


def certificate_holds(task: Classification) -> None:
    """Require of a training that it leaves what the certificate says is frozen."""
    found = Certificate.of(task, task.strategy_)
    train(task, small_loader(), epochs=EPOCHS)
    try:
        found.verify(task)
    except CertificateError as error:
        raise AssertionError(error.problem) from None
    require(bool(found.describe()["frozen"]["equal"]), "the certificate says that it holds")


def certificate_finds_changes(task: Classification) -> None:
    """Require of a certificate that it finds any frozen value that changed."""
    found = Certificate.of(task, task.strategy_)
    for name, value in task.state_dict().items():
        if name not in found.frozen:
            continue
        kept = value.clone()
        value.view(-1)[0] += 1
        try:
            found.verify(task)
        except CertificateError as error:
            require(f"first '{name}'" in error.problem, f"'{name}' changed: {error.problem}")
        else:
            require(False, f"the certificate does not see that '{name}' changed")
        value.copy_(kept)

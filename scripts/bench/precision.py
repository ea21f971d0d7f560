"""What this program chooses for the machine, against Lightning's plain defaults.

The defaults are fp32 and contiguous tensors; chosen are bf16 where the machine computes in it, and
channels last. `torch.compile` is timed too, on top of what is chosen: after how many steps it would
have paid for itself.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from measure import Figure, in_turn, median_of, prepared, run_here, settings_of

NETWORK = ("dataset=busi", "dataset.image_size=224", "dataset.channels=3", "backbone=resnet18")
BATCH, SEEDS, NEVER = 32, 5, 1e9
LEARNING = (  # small images, so that five seeds are trained in minutes
    *("train", "-m", "dataset=busi", "dataset.image_size=96", "backbone=resnet10t"),
    *(
        "weights=synthetic",
        "strategy=fine_tuning",
        "trainer.max_epochs=6",
        "trainer.checkpoint=none",
    ),
    *("optimizer.lr=1e-3", "trainer.precision=auto,fp32", f"seed=range({SEEDS})"),
)


def run(quick: bool) -> Iterator[Figure]:
    """Measure forward passes, training steps, and what the choice does to the metric."""
    with tempfile.TemporaryDirectory() as home:
        trial = prepared((*NETWORK, "strategy=fine_tuning", f"paths.output={home}"))
        sides = Sides(trial)
    pairs = 3 if quick else 9
    yield median_of(
        in_turn(lambda: sides.forward(plain=True), lambda: sides.forward(plain=False), pairs),
        name="precision.forward",
        unit="times",
        told=f"resnet18 at 224 px, forward: fp32 contiguous / {sides.told}",
        bar=2.0,
        sense="at least",
    )
    yield median_of(
        in_turn(lambda: sides.step(plain=True), lambda: sides.step(plain=False), pairs),
        name="precision.training",
        unit="times",
        told=f"resnet18 at 224 px, training steps: fp32 contiguous / {sides.told}",
        bar=1.5,
        sense="at least",
    )
    if not quick:
        yield sides.compiled()
        yield difference()


class Sides:
    """The same network as Lightning would have it by default, and as this program has it."""

    def __init__(self, trial: Any) -> None:
        import torch

        from medtransfer.feed import device_of

        settings = settings_of(trial.config)
        torch.set_num_threads(int(settings.threads.value))
        self.device = device_of(settings)
        self.bf16 = settings.precision.value == "bf16"
        self.told = f"{settings.precision.value} channels last"
        self.images = torch.rand(BATCH, 3, 224, 224, device=self.device)
        self.targets = torch.randint(0, 3, (BATCH,), device=self.device)
        self.plain = Network(trial.model.backbone, trial.model.head).to(self.device)
        self.ours = copy.deepcopy(self.plain).to(memory_format=torch.channels_last)

    def forward(self, *, plain: bool) -> float:
        """Return the seconds of three forward passes without gradients."""
        import torch

        network = (self.plain if plain else self.ours).eval()
        with torch.inference_mode(), self.casting(plain):
            return self.timed(lambda: network(self.images), 3)

    def step(self, *, plain: bool, network: Any = None) -> float:
        """Return the seconds of two training steps."""
        import torch
        from torch.nn import functional

        if network is None:
            network = (self.plain if plain else self.ours).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)

        def step() -> None:
            with self.casting(plain):
                loss = functional.cross_entropy(network(self.images), self.targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return self.timed(step, 2)

    def compiled(self) -> Figure:
        """Return after how many training steps `torch.compile` has paid for itself."""
        import torch

        network = torch.compile(copy.deepcopy(self.ours).train())
        first = self.step(plain=False, network=network)
        steps = [self.step(plain=False, network=network) / 2 for _ in range(5)]
        usual = [self.step(plain=False) / 2 for _ in range(5)]
        gain = statistics.median(usual) - statistics.median(steps)
        return Figure(
            name="precision.compile",
            value=(first - 2 * statistics.median(steps)) / gain if gain > 0 else NEVER,
            unit="steps",
            told="after which torch.compile has paid for itself in training (a step takes"
            f" {statistics.median(usual):.3f} s, compiled {statistics.median(steps):.3f} s)",
        )

    def casting(self, plain: bool) -> Any:
        """Return the precision of one side."""
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16 and not plain)

    def timed(self, call: Callable[[], Any], times: int) -> float:
        """Return the seconds of calls, until the device is done with them."""
        import torch

        started = time.perf_counter()
        for _ in range(times):
            call()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


def Network(backbone: Any, head: Any) -> Any:  # noqa: N802  it stands for a class
    """Return a module of a backbone and a head."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = backbone, head

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone.embed(images))

    return Module()


def difference() -> Figure:
    """Return how far the chosen precision moves the metric, in standard deviations of seeds."""
    with tempfile.TemporaryDirectory() as home:
        run_here([*LEARNING, f"paths.output={home}"])
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{home}/mlflow.db")
        experiments = [each.experiment_id for each in client.search_experiments()]
        runs = client.search_runs(experiments, "tags.`medtransfer.phase` = 'final'")
    found: dict[str, list[float]] = {}
    for one in runs:
        if "test/auroc" in one.data.metrics:
            values = found.setdefault(one.data.params["trainer.precision"], [])
            values.append(one.data.metrics["test/auroc"])
    auto, plain = found["auto"], found["fp32"]
    noise = statistics.mean([statistics.stdev(auto), statistics.stdev(plain)])
    apart = statistics.mean(auto) - statistics.mean(plain)
    return Figure(
        name="precision.difference",
        value=abs(apart) / noise,
        unit="sd of seeds",
        told=f"between the test AUROC in the chosen precision, {statistics.mean(auto):.3f}, and in"
        f" fp32, {statistics.mean(plain):.3f}: busi at 96 px, {SEEDS} seeds with an sd of "
        f" {noise:.3f}",
        bar=1.0,
    )

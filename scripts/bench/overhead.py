"""What the framework costs: training through `medtransfer train` against a bare loop.

Both train the same network from the same loader, in the same precision, with the same optimizer,
and look at the validation images after each epoch; the bare loop logs nothing and keeps nothing.
What is counted begins with the first step and ends with the last validation.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Figure, in_turn, median_of, prepared, run_here, settings_of

COMMON = ("dataset=busi", "strategy=fine_tuning", "weights=random", "trainer.checkpoint=none")
LARGE = ("dataset.image_size=224", "dataset.channels=3", "backbone=resnet18")
SMALL = ("dataset.image_size=64", "backbone=timm", "backbone.name=test_resnet")


@dataclass(frozen=True)
class Job:
    """A training that both sides do."""

    name: str
    overrides: tuple[str, ...]
    pairs: int
    told: str
    bar: float | None


def run(quick: bool) -> Iterator[Figure]:
    """Measure a network of usual size, and one so small that each step is overhead."""
    shots = ("dataset.shots=32" if quick else "dataset.shots=64", "trainer.max_epochs=2")
    large = "resnet18 at 224 px, images a second against a bare loop"
    small = "test_resnet at 64 px, the same: hardly anything but overhead"
    yield of(Job("overhead.resnet18", (*COMMON, *LARGE, *shots), 3 if quick else 7, large, 0.97))
    if not quick:
        more = (*COMMON, *SMALL, "trainer.max_epochs=6")
        yield of(Job("overhead.tiny", more, 7, small, None))


def of(job: Job) -> Figure:
    """Return the ratio of one job."""
    with tempfile.TemporaryDirectory() as home:
        overrides = (*job.overrides, f"paths.output={Path(home)}", "test=false")
        clock = Clock()
        ratios = in_turn(lambda: bare(overrides), lambda: clock.of(overrides), job.pairs)
    return median_of(
        ratios, name=job.name, unit="times", told=job.told, bar=job.bar, sense="at least"
    )


class Clock:
    """Tells how long the fit of a `medtransfer train` takes, of which it puts a clock in."""

    def __init__(self) -> None:
        from pytorch_lightning.callbacks import Callback

        from medtransfer import training

        seconds: list[float] = []
        usual = training.trainer_of

        class Watch(Callback):
            def on_train_start(self, *_: Any) -> None:
                seconds.append(-time.perf_counter())

            def on_train_end(self, *_: Any) -> None:
                seconds[-1] += time.perf_counter()

        def watched(settings: Any, **more: Any) -> Any:
            return usual(settings, **more | {"callbacks": [*more.get("callbacks", ()), Watch()]})

        training.trainer_of = watched  # type: ignore[assignment]
        self.seconds = seconds

    def of(self, overrides: Sequence[str]) -> float:
        """Return the seconds of one training."""
        run_here(["train", *overrides])
        return self.seconds[-1]


def bare(overrides: Sequence[str]) -> float:
    """Return the seconds of the same training in plain PyTorch."""
    import torch
    from torch.nn import functional

    from medtransfer.feed import device_of

    trial = prepared(overrides)
    config, settings = trial.config.trainer, settings_of(trial.config)
    torch.set_num_threads(int(settings.threads.value))
    device, bf16 = device_of(settings), settings.precision.value == "bf16"
    model = trial.model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def network(images: torch.Tensor) -> torch.Tensor:
        return model.head(model.backbone.embed(images))

    workers = int(settings.workers.value)
    training = trial.data.train_loader(
        trial.transform, batch_size=config.batch_size, workers=workers, sampler="shuffle"
    )
    validation = trial.data.loader("val", batch_size=config.batch_size)
    started = time.perf_counter()
    for epoch in range(config.max_epochs):
        training.batch_sampler.sampler.set_epoch(epoch)
        model.train()
        for batch in training:
            images, targets = batch["image"].to(device), batch["target"].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss = functional.cross_entropy(network(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found = [network(batch["image"].to(device)).argmax(1).cpu() for batch in validation]
        torch.cat(found)
    return time.perf_counter() - started

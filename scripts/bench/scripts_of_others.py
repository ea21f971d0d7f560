"""A comparison of 12 trials, against a project written by hand and against timm's script.

Frozen or fine-tuned, from random values or a file of weights, three seeds each, on the same images
with the same division, network, batch, number of epochs and about the same light augmentation.
Every program has its own defaults, and as many threads as it likes. MEDTRANSFER_BENCH_TIMM is the
path of timm's `train.py`, which its package does not bring.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import Cost, Figure, process, program
from peers import given

BATCH = 32
WORKERS = (0, 2)  # both are tried for the others, and the faster is taken
PEERS = Path(__file__).parent / "peers"


@dataclass
class Comparison:
    """What all are to do.

    Attributes:
        images: Folder of the images.
        place: Where everything is written.
        count: How many images; None: all.
        network: timm's name of it.
        size: Pixels.
        seeds: How many.
        epochs: Of each trial.
    """

    images: Path
    place: Path
    count: int | None
    network: str
    size: int
    seeds: int
    epochs: int

    def __post_init__(self) -> None:
        rows = given.images(self.images, self.count)
        self.number = len(rows)
        self.table = given.write_table(self.place / "images.csv", rows)
        self.folder = given.lay_out(self.place / "images", self.images, rows)
        self.weights = given.write_weights(
            self.place / "weights.safetensors", self.network, self.images, rows, self.size
        )

    @property
    def said(self) -> str:
        """Return the job in words."""
        return (
            f"{4 * self.seeds} trials of {self.epochs} epochs with {self.network}, {self.number}"
            f" images at {self.size} px, batch {BATCH}, each in the precision that is its default"
        )

    def time_ours(self) -> float:
        """Return the seconds of medtransfer."""
        with tempfile.TemporaryDirectory(dir=self.place) as home:
            command = [
                *(program(), "train", "-m", *given.manifest(self.images, self.table, self.size)),
                *("backbone=timm", f"backbone.name={self.network}"),
                *("weights=random,file", f"weights.path={self.weights}"),
                "strategy=feature_extraction,fine_tuning",
                *(f"trainer.batch_size={BATCH}", f"trainer.max_epochs={self.epochs}"),
                seeds(self.seeds),
            ]
            return timed(command, MEDTRANSFER_HOME=home).seconds

    def time_template(self, workers: int, *, all_trials: bool = True) -> float:
        """Return the seconds of the project written by hand, of all its trials or of one."""
        with tempfile.TemporaryDirectory(dir=self.place) as out:
            command: list[Any] = [
                *(sys.executable, PEERS / "template" / "train.py", "-m"),
                *(f"root={self.folder}", f"out={out}"),
                *(f"data.size={self.size}", f"data.batch_size={BATCH}", f"data.workers={workers}"),
                *(f"model.network={self.network}", f"trainer.max_epochs={self.epochs}"),
            ]
            if all_trials:
                starts = f"model.weights=null,{self.weights}"
                command += ["model=frozen,whole", starts, seeds(self.seeds)]
            return timed(command).seconds

    def time_timm(self, script: Path, workers: int, *, all_trials: bool = True) -> float:
        """Return the seconds of timm's script, a process for each trial, of all or of one.

        It freezes nothing, so all trials are fine-tuned.
        """
        from torch.cuda import is_available

        command: list[Any] = [
            *(sys.executable, script, "--config", PEERS / "timm.yaml", "--data-dir", self.folder),
            *("--model", self.network, "--input-size", 3, self.size, self.size),
            *("--epochs", self.epochs, "--workers", workers),
            *("--device", "cuda" if is_available() else "cpu"),
        ]
        file: tuple[Any, ...] = ("--pretrained", "--pretrained-path", self.weights)
        starts: tuple[tuple[Any, ...], ...] = ((), file)
        trials = list(itertools.product(range(2), starts, range(self.seeds)))
        seconds = 0.0
        for _, start, seed in trials if all_trials else trials[:1]:
            with tempfile.TemporaryDirectory(dir=self.place) as out:
                seconds += timed([*command, *start, "--seed", seed, "--output", out]).seconds
        return seconds


def run(quick: bool) -> Iterator[Figure]:
    """Measure medtransfer before and after each of the others."""
    images = Path(os.environ.get("MEDTRANSFER_DATA", "data")).resolve() / "busi"
    script = Path(os.environ.get("MEDTRANSFER_BENCH_TIMM", ""))
    with tempfile.TemporaryDirectory() as place:
        all_of_it = (120, "test_resnet", 64, 1, 2) if quick else (None, "resnet18", 224, 3, 2)
        job = Comparison(images, Path(place), *all_of_it)
        before = job.time_ours()
        workers = faster(lambda n: job.time_template(n, all_trials=False))
        theirs = job.time_template(workers)
        after = job.time_ours()
        bar = None if quick else 1.0  # what is small takes as long as programs take to start
        yield ratio(
            "comparison.template",
            f"a project written by hand with Lightning and Hydra, {workers} workers / medtransfer:"
            f" {job.said}",
            theirs,
            (before, after),
            bar,
        )
        if not script.is_file():
            print(
                "comparison.timm: left out; name timm's train.py in MEDTRANSFER_BENCH_TIMM",
                file=sys.stderr,
            )
            return
        workers = faster(lambda n: job.time_timm(script, n, all_trials=False))
        theirs = job.time_timm(script, workers)
        yield ratio(
            "comparison.timm",
            f"timm's train.py, a process for each trial, all fine-tuned since it freezes nothing,"
            f" and none tested, {workers} workers / medtransfer: {job.said}",
            theirs,
            (after, job.time_ours()),
            bar,
        )


def ratio(
    name: str, told: str, theirs: float, ours: tuple[float, float], bar: float | None
) -> Figure:
    """Return theirs / ours, where ours was measured before and after."""
    low, high = theirs / max(ours), theirs / min(ours)
    value = theirs / (sum(ours) / len(ours))
    return Figure(name, value, "times", told, bar=bar, sense="at least", low=low, high=high)


def faster(seconds: Callable[[int], float]) -> int:
    """Return with how many workers a trial is done soonest."""
    return min(WORKERS, key=seconds)


def seeds(count: int) -> str:
    """Return the seeds as Hydra sweeps them."""
    return f"seed={','.join(map(str, range(count)))}"


def timed(command: list[Any], **environment: Any) -> Cost:
    """Run a command that chooses its number of threads by itself."""
    return process(command, OMP_NUM_THREADS=None, **environment)

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

from measure import Cost, Figure, median_of, process, program
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
    """Measure medtransfer before and after the others."""
    images = Path(os.environ.get("MEDTRANSFER_DATA", "data")).resolve() / "busi"
    script = Path(os.environ.get("MEDTRANSFER_BENCH_TIMM", ""))
    with tempfile.TemporaryDirectory() as place:
        all_of_it = (120, "test_resnet", 64, 1, 2) if quick else (300, "resnet18", 128, 3, 12)
        job = Comparison(images, Path(place), *all_of_it)
        ours = [job.time_ours()]
        workers = faster(lambda n: job.time_template(n, all_trials=False))
        template = job.time_template(workers)
        told = {"comparison.template": (template, f"by hand with Lightning and Hydra, {workers}")}
        if script.is_file():
            workers = faster(lambda n: job.time_timm(script, n, all_trials=False))
            said = f"timm's train.py, which freezes nothing and tests nothing, {workers}"
            told["comparison.timm"] = job.time_timm(script, workers), said
        else:
            print("comparison.timm: MEDTRANSFER_BENCH_TIMM names no train.py", file=sys.stderr)
        ours.append(job.time_ours())
        for name, (theirs, what) in told.items():
            yield median_of(
                [theirs / seconds for seconds in ours],
                name=name,
                unit="times",
                told=f"{what} workers, {theirs:.0f} s / medtransfer: {job.said}",
                bar=None if quick else 1.0,  # what is small takes as long as programs take to start
                sense="at least",
            )


def faster(seconds: Callable[[int], float]) -> int:
    """Return with how many workers a trial is done soonest."""
    return min(WORKERS, key=seconds)


def seeds(count: int) -> str:
    """Return the seeds as Hydra sweeps them."""
    return f"seed={','.join(map(str, range(count)))}"


def timed(command: list[Any], **environment: Any) -> Cost:
    """Run a command that chooses its number of threads by itself."""
    return process(command, OMP_NUM_THREADS=None, **environment)

"""Heads on frozen features: `train -m` against the offline evaluation of kaiko's eva.

Both get the same images, division, frozen network, linear head, optimizer and number of steps, of
50 epochs as is `train`'s default; each starts as a process of its own with empty caches, computes
embeddings once and fits the heads.

MEDTRANSFER_BENCH_EVA is the path of a Python that has `kaiko-eva[vision]`.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from measure import Figure, in_turn, median_of, process, program
from peers import given

SIZE, BATCH, RATE, DECAY = 224, 32, 1e-2, 1e-2
HERE = Path(__file__).parent
# apart from what is said of it, how well heads do depends on how images are scaled and on chance
ALIKE = 0.1


@dataclass
class Job:
    """What both are to do.

    Attributes:
        python: That has eva.
        images: Folder of the images.
        place: Where everything is written.
        count: How many images; None: all.
        fits: How many heads.
        epochs: Of each.
        ours: Validation AUROC of each head of ours, as measured last.
        theirs: The same of eva's.
    """

    python: str
    images: Path
    place: Path
    count: int | None
    fits: int
    epochs: int
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = given.images(self.images, self.count)
        self.number = len(rows)
        self.table = given.write_table(self.place / "images.csv", rows)
        self.weights = given.write_weights(
            self.place / "weights.safetensors", "resnet18", self.images, rows, SIZE
        )

    def time_ours(self) -> float:
        """Return the seconds of medtransfer."""
        with tempfile.TemporaryDirectory(dir=self.place) as home:
            command = [
                *(program(), "train", "-m", *given.manifest(self.images, self.table, SIZE)),
                *("backbone=resnet18", "weights=file", f"weights.path={self.weights}"),
                *("strategy=feature_extraction", "strategy.head_lr=1.0", "head.norm=none"),
                *(f"optimizer.lr={RATE}", f"optimizer.weight_decay={DECAY}", "scheduler=constant"),
                *("transform=none", "trainer.precision=fp32", f"trainer.batch_size={BATCH}"),
                *(f"trainer.max_epochs={self.epochs}", f"seed=range({self.fits})"),
            ]
            cost = process(command, OMP_NUM_THREADS=1, MEDTRANSFER_HOME=home)
            self.ours = recorded(Path(home))
        return cost.seconds

    def time_theirs(self) -> float:
        """Return the seconds of eva."""
        with tempfile.TemporaryDirectory(dir=self.place) as out:
            command = [
                *(self.python, HERE / "peers" / "eva_heads.py", "--root", self.images),
                *("--table", self.table, "--weights", self.weights, "--out", out),
                *("--size", SIZE, "--batch", BATCH, "--lr", RATE, "--decay", DECAY),
                *("--fits", self.fits, "--epochs", self.epochs),
            ]
            cost = process(command, OMP_NUM_THREADS=1)
            (found,) = Path(out).rglob("results.json")
            results = json.loads(found.read_text(encoding="utf-8"))
            self.theirs = results["metrics"]["val"][0]["val/MulticlassAUROC"]["values"]
        return cost.seconds


def run(quick: bool) -> Iterator[Figure]:
    """Measure; nothing, where eva is not installed.

    Raises:
        SystemExit: If both did not end with the same number of heads that do about equally well.
    """
    python = os.environ.get("MEDTRANSFER_BENCH_EVA", sys.executable)
    version = eva_version(python)
    if version is None:
        print(
            f"eva: {python} has none; pip install 'kaiko-eva[vision]==0.4.5' in an environment,"
            " and name its python in MEDTRANSFER_BENCH_EVA",
            file=sys.stderr,
        )
        return
    images = Path(os.environ.get("MEDTRANSFER_DATA", "data")).resolve() / "busi"
    with tempfile.TemporaryDirectory() as place:
        of = functools.partial(Job, python, images, Path(place))
        job = of(count=200, fits=4, epochs=5) if quick else of(count=None, fits=20, epochs=50)
        times = in_turn(job.time_theirs, job.time_ours, 1 if quick else 2)
        ours, theirs = statistics.mean(job.ours), statistics.mean(job.theirs)
        if len(job.ours) != len(job.theirs) or abs(ours - theirs) > ALIKE:
            raise SystemExit(f"not the same work: AUROC {job.ours} here, {job.theirs} in eva")
        yield median_of(
            times,
            name="eva.heads",
            unit="times",
            told=f"eva {version} / medtransfer: {job.number} images at {SIZE} px through a frozen"
            f" resnet18, {job.fits} linear heads of {job.epochs} epochs, fp32, one thread;"
            f" validation AUROC {theirs:.3f} and {ours:.3f}",
            bar=None if quick else 2.0,  # what is small takes as long as programs take to start
            sense="at least",
        )


def eva_version(python: str) -> str | None:
    """Return the version of eva that a Python has; None without it."""
    ask = "from importlib.metadata import version; print(version('kaiko-eva'))"
    try:
        found = process([python, "-I", "-c", ask], code=None)
    except OSError:
        return None
    return None if found.code else found.output.strip()


def recorded(home: Path) -> list[float]:
    """Return the validation AUROC of each finished trial in a home."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`medtransfer.phase` LIKE '%'")
    values = [run.data.metrics.get("val/auroc") for run in runs]
    return [value for value in values if value is not None]

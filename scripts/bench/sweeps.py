"""What trials, errors and starts cost beyond what they are for."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measure import Figure, median_of, process, program, write_weights

HERE = Path(__file__).parent
IMPORTS = "import torch, pytorch_lightning, timm, mlflow"
MISTAKES = ("task=nonsense", "strategy.nonsense=1", "trainer.max_epochs=nonsense")
FEW, MANY = 4, 24
JOB = (
    *("dataset=busi", "dataset.image_size=224", "dataset.channels=3", "backbone=resnet18"),
    *("strategy=feature_extraction", "trainer=quick", "weights=file"),
)


def run(quick: bool) -> Iterator[Figure]:
    """Measure starts of the program, then trials on features that are there already."""
    times = 1 if quick else 5
    yield median_of(
        [process([program(), "--help"]).cpu for _ in range(times)],
        name="sweeps.help",
        unit="s",
        told="of CPU for `medtransfer --help`",
        bar=0.3,
    )
    slow = [
        statistics.median(process([program(), "train", each], code=2).seconds for _ in range(times))
        for each in MISTAKES
    ]
    told = "until a wrong group, key or type is told, the slowest of the three"
    yield Figure(name="sweeps.error", value=max(slow), unit="s", told=told, bar=2.0)
    with tempfile.TemporaryDirectory() as home:
        yield first_step(Path(home), times)
    if not quick:
        with tempfile.TemporaryDirectory() as home:
            yield from trials(Path(home))


def first_step(home: Path, times: int) -> Figure:
    """Return what comes between importing the libraries and the first training step."""
    job = ["train", *JOB[:1], "dataset.image_size=64", "backbone=timm", "backbone.name=test_resnet"]
    job += ["strategy=fine_tuning", f"paths.output={home}"]
    command = [sys.executable, HERE / "first_step.py", *job]
    imports = [sys.executable, "-c", IMPORTS]
    process(command)  # decodes the images and creates the store
    more = [process(command).seconds - process(imports).seconds for _ in range(times)]
    told = "until the first training step, beyond importing torch, Lightning, timm and MLflow"
    return median_of(more, name="sweeps.first_step", unit="s", told=told, bar=1.5)


def trials(home: Path) -> Iterator[Figure]:
    """Measure trials of one sweep; their features are computed before."""
    weights = write_weights(home)
    command = [program(), "train", "-m", *JOB, f"weights.path={weights}", f"paths.output={home}"]
    process([*command, "seed=0,1"])

    def sweep(count: int) -> tuple[float, float]:
        seconds = process([*command, f"seed=range({count})"]).seconds
        return seconds, seconds - trained(home, count)

    yield median_of(
        [(sweep(MANY)[1] - sweep(FEW)[1]) / (MANY - FEW) for _ in range(3)],
        name="sweeps.trial",
        unit="s",
        told="for each further trial of a sweep, beyond its training (resnet18 at 224 px, cached)",
        bar=0.5,
    )
    yield Figure(
        name="sweeps.fifty",
        value=sweep(50)[0],
        unit="s",
        told="for 50 trials of feature extraction on cached features, 12 epochs each",
        bar=60.0,
    )


def trained(home: Path, count: int) -> float:
    """Return the seconds that the last trials of a store have trained."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiments = [each.experiment_id for each in client.search_experiments()]
    query, order = "tags.`medtransfer.phase` = 'final'", ["attributes.start_time DESC"]
    runs = client.search_runs(experiments, query, order_by=order, max_results=count)
    return sum(run.data.metrics["cost/train_seconds"] for run in runs)

"""What telling costs: the share of training in which a trial waits for its records to be written.

Each sweep is a process of its own with a fresh SQLite store. A trial counts both itself, as
`cost/tracking_seconds` and `cost/train_seconds`; the first of them counts what comes before and
after training too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from measure import Figure, median_of, process, program

TRIALS = 2
COMMON = (
    *("dataset=busi", "dataset.channels=3", "dataset.shots=32"),
    *("backbone=resnet18", "weights=random"),
)


def run(quick: bool) -> Iterator[Figure]:
    """Measure trials that train a whole network, then trials that fit a head alone."""
    size, epochs = (96, 1) if quick else (224, 3)
    with tempfile.TemporaryDirectory() as cache:
        given = (*COMMON, f"dataset.image_size={size}", f"paths.cache={cache}")
        yield median_of(
            shares((*given, "strategy=fine_tuning", f"trainer.max_epochs={epochs}")),
            name="tracking.blocked",
            unit="%",
            told=f"share of training that tracking takes: {TRIALS} trials, fine-tuning of resnet18"
            f" at {size} px, 32 images a class, epochs: {epochs}",
            bar=2.0,
        )
        if not quick:
            heads = (*given, "strategy=feature_extraction")
            shares(heads)  # computes the features, which would count as training
            yield median_of(
                shares(heads),
                name="tracking.heads",
                unit="%",
                told=f"the same of {TRIALS} trials that fit a head on features that are on the"
                " disk, 50 epochs",
            )


def shares(overrides: Sequence[str]) -> list[float]:
    """Return for each trial of a sweep the share of its training that tracking has taken, in %.

    Raises:
        SystemExit: If a trial has not finished.
    """
    seeds = f"seed={','.join(map(str, range(TRIALS)))}"
    with tempfile.TemporaryDirectory() as home:
        store = f"sqlite:///{Path(home) / 'mlflow.db'}"
        command = [program(), "train", "-m", *overrides, seeds, f"tracking.uri={store}"]
        process(command, OMP_NUM_THREADS=None, MEDTRANSFER_HOME=home)
        return told_by(store)


def told_by(store: str) -> list[float]:
    """Return the shares of the trials in a store, in %."""
    from mlflow import MlflowClient

    client = MlflowClient(store)
    experiments = [one.experiment_id for one in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`medtransfer.phase` = 'final'")
    if len(runs) != TRIALS:
        raise SystemExit(f"{len(runs)} of {TRIALS} trials have told what they cost")
    costs = [run.data.metrics for run in runs]
    return [100 * each["cost/tracking_seconds"] / each["cost/train_seconds"] for each in costs]

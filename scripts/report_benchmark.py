"""What the report of a large study costs, read from its ledger; and that a rebuild is linear.

A study of arms x datasets x fractions x seeds is made up: binary predictions of so many cases on
test data and a third as many on validation data. Its trials go into a ledger as trials do when
they end. Then a process of its own loads the study, works out its report and writes it. The store
is a real SQLite file, but holds the parent run and one trial only: a report asks it for no more
where the ledger has all.

A second store holds all runs and artifacts of a small study, whose ledger is made anew at two
sizes.

    python scripts/report_benchmark.py [--arms 20] [--seeds 10] [--cases 300] [--rebuild 150]
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medtransfer.tracking.ledger import COUNT, Ledger, ledger_path

DATASETS = ("busi", "derma", "chest", "retina", "breast")
FRACTIONS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)
ENOUGH_SECONDS, ENOUGH_MEMORY = 60, 2000  # what the report may take: s, MB
STUDY = "made-up"


def main() -> None:
    """Measure all of it and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument(
        "--rebuild", type=int, default=150, help="runs of the smaller store; 0: none"
    )
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.report:
        print(json.dumps(report(given.report)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        measure_report(Path(scratch), given.arms, given.seeds, given.cases)
    for count in (given.rebuild, 2 * given.rebuild) if given.rebuild else ():
        with tempfile.TemporaryDirectory() as scratch:
            measure_rebuild(Path(scratch), count, given.cases)


def measure_report(folder: Path, arms: int, seeds: int, cases: int) -> None:
    """Make up a study in a ledger, and time its report in a process of its own."""
    client, experiment = open_store(folder)
    parent = make_parent(client, experiment, arms)
    ledger = Ledger(ledger_path(f"sqlite:///{folder}/mlflow.db", folder, STUDY))
    started = time.perf_counter()
    count = 0
    for arm, dataset, fraction, seed in itertools.product(
        range(arms), DATASETS, FRACTIONS, range(seeds)
    ):
        tables = make_tables(dataset, 1 + 0.05 * arm + fraction, seed, cases)
        ledger.append(make_row(arm, dataset, fraction, seed, parent) | score(tables), tables)
        count += 1
    appended = time.perf_counter() - started
    started = time.perf_counter()
    ledger.consolidate()
    consolidated = time.perf_counter() - started
    size = sum(path.stat().st_size for path in ledger.folder.glob("*.parquet")) / 1e6
    client.set_tag(parent, COUNT, str(count))
    print(f"{count} trials of {cases} cases: appended at {1000 * appended / count:.1f} ms each,")
    print(f"consolidated in {consolidated:.1f} s to {size:.0f} MB", flush=True)
    command = [sys.executable, __file__, "--report", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    took = json.loads(done.stdout.splitlines()[-1])
    total = took["load"] + took["build"] + took["write"]
    print(
        f"report: {total:.1f} s (load {took['load']:.1f}, build {took['build']:.1f}, "
        f"write {took['write']:.1f}), {took['memory']:.0f} MB at most, "
        f"{took['contrasts']} contrasts: {took['headline']}"
    )
    good = total < ENOUGH_SECONDS and took["memory"] < ENOUGH_MEMORY
    print("within" if good else "NOT within", f"{ENOUGH_SECONDS} s and {ENOUGH_MEMORY} MB")


def report(folder: Path) -> dict[str, Any]:
    """Load, build and write the report of the study in a folder."""
    import mlflow

    from medtransfer.analysis.load import load_study
    from medtransfer.analysis.report.build import build
    from medtransfer.analysis.report.write import write

    uri = f"sqlite:///{folder}/mlflow.db"
    times = [time.perf_counter()]
    study = load_study(mlflow.MlflowClient(uri), STUDY, partial(ledger_path, uri, folder))
    times.append(time.perf_counter())
    results = build(study)
    times.append(time.perf_counter())
    write(results, folder / "report")
    times.append(time.perf_counter())
    load, built, written = np.diff(times).tolist()
    return {
        "load": load,
        "build": built,
        "write": written,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "contrasts": len(results.contrasts),
        "headline": results.headline,
    }


def measure_rebuild(folder: Path, count: int, cases: int) -> None:
    """Write a store of so many trials, and time how long its ledger takes to be made anew."""
    client, experiment = open_store(folder)
    parent = make_parent(client, experiment, 1)
    tables = make_tables("busi", 1.0, 0, cases)
    for name, frame in tables.items():
        frame.to_parquet(folder / f"{name}.parquet", index=False)
    for seed in range(count):
        row = make_row(0, "busi", 1.0, seed, parent) | score(tables)
        tags = {k.removeprefix("tags."): v for k, v in row.items() if k.startswith("tags.")}
        run = client.create_run(experiment, tags=tags).info.run_id
        for name, value in row.items():
            if name.startswith("metrics."):
                client.log_metric(run, name.removeprefix("metrics."), value)
        for name in tables:
            client.log_artifact(run, str(folder / f"{name}.parquet"), "predictions")
        client.set_terminated(run)
    started = time.perf_counter()
    ledger = Ledger(folder / "ledger")
    ledger.rebuild(client, [parent])
    took = time.perf_counter() - started
    assert len(ledger.trials()) == count
    print(f"rebuild of {count} trials: {took:.1f} s, {1000 * took / count:.0f} ms each")


def open_store(folder: Path) -> tuple[Any, str]:
    """Return a client of a new store in a folder, and its experiment."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client, client.create_experiment("made up", (folder / "artifacts").as_uri())


def make_parent(client: Any, experiment: str, arms: int) -> str:
    """Write the study's parent run and return its id."""
    protocol: dict[str, Any] = {
        "arms": {f"arm {k:02d}": [] for k in range(arms)},
        "primary": {"a": "arm 01", "b": "arm 00", "at": {}} if arms > 1 else None,
    }
    tags = {
        "medtransfer.study_id": STUDY,
        "medtransfer.phase": "study",
        "medtransfer.metric": "auroc",
        "medtransfer.protocol": json.dumps(protocol),
    }
    return str(client.create_run(experiment, tags=tags, run_name=STUDY).info.run_id)


def make_row(arm: int, dataset: str, fraction: float, seed: int, parent: str) -> dict[str, Any]:
    """Return a trial's row, with as many tags and metrics as a real one."""
    name = f"arm {arm:02d}"
    tags = {
        "mlflow.parentRunId": parent,
        "mlflow.runName": f"{name} seed={seed}",
        "medtransfer.study_id": STUDY,
        "medtransfer.phase": "final",
        "medtransfer.arm": name,
        "medtransfer.cell": f"{name} @ dataset={dataset}, dataset.fraction={fraction}",
        "medtransfer.seed": str(seed),
        "medtransfer.split_hash": f"split-of-{dataset}",
        "medtransfer.n_train": str(round(1000 * fraction)),
        "medtransfer.test_openings": "1",
        **{f"medtransfer.more_{k}": f"{k}" for k in range(12)},
    }
    metrics = {
        "cost/train_seconds": 10.0 + arm,
        "cost/steps": 500.0,
        "cost/validations": 20.0,
        "cost/peak_memory_mb": 900.0,
        "cost/trainable_parameters": 1e6,
        **{f"val/more_{k}": 0.5 for k in range(20)},
    }
    return {
        "run_id": f"{arm:04x}{DATASETS.index(dataset):04x}{round(1000 * fraction):04x}{seed:020x}",
        "status": "FINISHED",
        "start_time": 1000,
        **{f"tags.{key}": value for key, value in tags.items()},
        **{f"metrics.{key}": value for key, value in metrics.items()},
    }


def make_tables(dataset: str, skill: float, seed: int, cases: int) -> dict[str, pd.DataFrame]:
    """Return the predictions of a trial; its cases are those of its dataset."""
    tables = {}
    for split, count in (("test", cases), ("val", max(cases // 3, 10))):
        own = np.random.default_rng([DATASETS.index(dataset), count])
        rng = np.random.default_rng([seed, int(100 * skill), count])
        target = own.permutation(np.arange(count) % 2)
        logit = skill * (target - 0.5) + own.normal(size=count) + 0.5 * rng.normal(size=count)
        score = 1 / (1 + np.exp(-logit))
        tables[split] = pd.DataFrame(
            {
                "sample_id": [f"{dataset}-{split}-{k:05d}.png" for k in range(count)],
                "group_id": [f"patient-{k // 2:05d}" for k in range(count)],
                "exam_id": None,
                "split": split,
                "target": target,
                "score_benign": 1 - score,
                "score_malignant": score,
            }
        )
    return tables


def score(tables: dict[str, pd.DataFrame]) -> dict[str, float]:
    """Return the metrics that a trial would have logged."""
    frame = tables["test"]
    positive = frame["target"] == 1
    ranks = frame["score_malignant"].rank()[positive]
    hits, misses = int(positive.sum()), int((~positive).sum())
    area = (ranks.sum() - hits * (hits + 1) / 2) / (hits * misses)
    return {"metrics.test/auroc": float(area), "metrics.best/auroc": float(area)}


if __name__ == "__main__":
    main()

"""Studies made up for the tests: in memory, and in a real store."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from medtransfer.analysis.cases import values_of
from medtransfer.analysis.load import Study, Trial

FE, FT = "feature_extraction/file", "fine_tuning/file"
ODD = "<b>x</b>|[red]*y*[/red]`z`"


def predictions(skill, seed, n=120, k=2, per_patient=1):
    """Return a trial's predictions; cases are the same for every seed and skill."""
    cases = np.random.default_rng(0)
    target = cases.integers(0, k, n)
    hard = cases.normal(size=(n, k))
    noise = np.random.default_rng([seed, int(skill * 100)])
    logits = skill * np.eye(k)[target] + hard + 0.6 * noise.normal(size=(n, k))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    frame = pd.DataFrame(
        {
            "sample_id": [f"s{i:04d}" for i in range(n)],
            "group_id": [f"p{i // per_patient:04d}" for i in range(n)],
            "exam_id": None,
            "split": "test",
            "target": target,
        }
    )
    for column, name in enumerate(["benign", "malignant", "normal", "other"][:k]):
        frame[f"score_{name}"] = scores[:, column]
    return frame.sample(frac=1, random_state=seed)


def study(arms, seeds=range(3), *, axes=({},), metric="auroc", rope=0.01, **options):
    """Return a study in memory: `arms` maps a name to a skill."""
    frames, trials = {}, []
    for setting, arm, seed in itertools.product(axes, arms, seeds):
        run_id = f"{arm}-{sorted(setting.items())}-{seed}"
        frames[run_id] = predictions(arms[arm], seed, **options)
        trial = Trial(
            run_id=run_id,
            arm=arm,
            axes=setting,
            seed=seed,
            status="FINISHED",
            split_hash="abc",
            metrics={metric: float(values_of(frames[run_id], metric).mean())},
            cost={"train_seconds": 120.0 if "fine" in arm else 10.0},
            failure="",
            tags={},
        )
        trials.append(trial)
    return Study("id0", "made up", "run0", metric, rope, tuple(trials), stored(frames))


def stored(frames):
    """Return what reads test predictions, and those of other splits from `<split> <run>`."""

    def read(run_id, split="test"):
        return frames.get(run_id if split == "test" else f"{split} {run_id}")

    return read


def of_test(read):
    """Return what reads predictions of the test split by a function of the run id."""
    return lambda run_id, split="test": read(run_id) if split == "test" else None


def changed(made, change):
    """Return the study with its trials changed; `change` gives a trial's new fields, or None."""
    trials = [replace(t, **(change(t) or {})) for t in made.trials]
    return replace(made, trials=tuple(trials))


def log_trial(client, experiment, parent, arm, seed, *, frame=None, **given):
    """Write one trial as the tracking room does, and end it."""
    status, axes = given.get("status", "FINISHED"), given.get("axes", "")
    tags = {
        "medtransfer.study_id": "sid",
        "medtransfer.phase": given.get("phase", "final"),
        "medtransfer.arm": arm,
        "medtransfer.cell": arm + (f" @ {axes}" if axes else ""),
        "medtransfer.seed": str(seed),
        "medtransfer.split_hash": given.get("split_hash", "abc"),
    }
    if parent:
        tags["mlflow.parentRunId"] = parent
    if failure := given.get("failure"):
        tags["medtransfer.failure"] = failure
    tags |= {f"medtransfer.{name}": value for name, value in given.get("tags", {}).items()}
    run = client.create_run(
        experiment, tags=tags, run_name=f"{arm}-{seed}", start_time=given.get("start", 1000)
    ).info.run_id
    if status == "FINISHED":
        client.log_metric(run, "test/auroc", float(values_of(frame, "auroc").mean()))
        client.log_metric(run, "cost/train_seconds", 120.0 if "fine" in arm else 10.0)
        client.log_metric(run, "cost/trainable_parameters", 11_181_642 if "fine" in arm else 1026)
        client.log_metric(run, "cost/peak_memory_mb", 1812.0)
        for name, table in {"test": frame, **given.get("tables", {})}.items():
            path = Path(given["folder"]) / f"{name}.parquet"
            table.to_parquet(path)
            client.log_artifact(run, str(path), "predictions")
        for name, value in given.get("metrics", {}).items():
            client.log_metric(run, name, value)
    if status != "RUNNING":
        client.set_terminated(run, status)
    return run


def log_parent(client, experiment, name, study_id, start=1000, **given):
    tags = {
        "medtransfer.study_id": study_id,
        "medtransfer.phase": "study",
        "medtransfer.metric": "auroc",
        "medtransfer.rope": "0.02",
        **{f"medtransfer.{key}": value for key, value in given.items()},
    }
    run = client.create_run(experiment, tags=tags, run_name=name, start_time=start)
    return run.info.run_id

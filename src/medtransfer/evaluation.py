"""What a trained model is worth on a split: metrics, the predictions of each case, its latency."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device

from medtransfer import machine
from medtransfer.data.loading import Data
from medtransfer.feed import Feed, device_of
from medtransfer.run import Trial
from medtransfer.tasks.base import Task
from medtransfer.tracking.runs import Run

PASSES = 3  # of one image, when its latency is measured
_latencies: dict[tuple[object, ...], float] = {}  # in ms, of each network that was measured


def evaluate(
    trial: Trial,
    run: Run,
    trainer: pl.Trainer,
    feed: Feed,
    split: Literal["val", "test"],
    *,
    prefix: str,
) -> dict[str, float]:
    """Score one split with the selected model and log the predictions of each of its cases."""
    method = trainer.test if split == "test" else trainer.validate
    values = method(trial.model, feed.ordered(split), verbose=False)[0]
    run.frames(predictions(trial.model, trial.data, split), "predictions")
    return {f"{prefix}/{name.partition('/')[2]}": float(value) for name, value in values.items()}


def evaluate_elsewhere(
    trial: Trial, run: Run, trainer: pl.Trainer, external: Data
) -> dict[str, float]:
    """Score another site's data with the selected model, as `evaluate` does the test split."""
    external.seal.open()
    images = external.loader("test", batch_size=trial.config.trainer.batch_size)
    values = trainer.test(trial.model, images, verbose=False)[0]
    tables = predictions(trial.model, external, "test")
    tables["test"]["split"] = "external"
    renamed = {"test": "external"}
    named = {renamed.get(name, f"external_{name}"): frame for name, frame in tables.items()}
    run.frames(named, "predictions")
    return {f"external/{name.partition('/')[2]}": float(value) for name, value in values.items()}


def predictions(model: Task, data: Data, split: Literal["val", "test"]) -> dict[str, pd.DataFrame]:
    """Return the tables of a split that was just scored, by the names of their files.

    The one named after the split has a row for each case; others are of what was found in them.
    """
    records = data.decoded.records
    kept = model.kept[split]
    cases = [records[i] for i in kept["index"].tolist()]
    exams = data.spec.annotation == "exam"
    attributes = sorted({name for record in cases for name in record.attributes})
    tables: dict[str, pd.DataFrame] = {
        split: pd.DataFrame(
            {
                "sample_id": [r.exam_id if exams else r.sample_id for r in cases],
                "group_id": [record.group_id for record in cases],
                "exam_id": [record.exam_id for record in cases],
                "split": split,
                **model.columns(kept),
                **{f"attribute_{a}": [r.attributes.get(a, "") for r in cases] for a in attributes},
            }
        )
    }
    for name, columns in model.tables(kept).items():
        frame = pd.DataFrame(columns)
        ids = [records[i].sample_id for i in frame.pop("index")]
        frame.insert(0, "sample_id", pd.Series(ids, dtype=object))
        if "exam" in frame:  # the row of the case that the sample is of
            frame.insert(1, "exam_id", [cases[row].exam_id for row in frame.pop("exam")])
        tables[name if split == "test" else f"{split}_{name}"] = frame
    return tables


@torch.no_grad()
def latency_ms(trial: Trial, settings: machine.Machine) -> float:
    """Return the median time of one image through backbone and head, after a first one.

    It is measured once in a process for each network: values do not change it, and the trials of a
    sweep share theirs.
    """
    model = trial.model
    device, bf16 = device_of(settings), settings.precision.value == "bf16"
    network = (repr(model), trial.data.spec.image_size, device.type, bf16, torch.get_num_threads())
    if network not in _latencies:
        _latencies[network] = _measured_latency(trial, device, bf16=bf16)
    return _latencies[network]


def _measured_latency(trial: Trial, device: torch.device, *, bf16: bool) -> float:
    model = trial.model
    model.to(device).eval()
    index = trial.data.cases(trial.data.division.val)[:1]
    (batch,) = trial.data.views(index, None, count=1, batch_size=1, workers=0)
    batch["image"] = torch.zeros_like(batch["image"])  # it takes as long whatever it shows
    taken = []
    for _ in range(1 + PASSES):
        moved = move_data_to_device(batch, device)
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            model.step(moved)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - started))
    return float(np.median(taken[1:]))

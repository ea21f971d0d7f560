"""One prepared trial, executed inside its MLflow run: train, select, test, record."""

from __future__ import annotations

import math
import time
from collections.abc import Container, Iterator
from dataclasses import asdict
from typing import Any, Literal

import pandas as pd
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning.callbacks import Callback, EarlyStopping
from torch import Tensor

from medtransfer import machine, pictures
from medtransfer.certificate import Certificate
from medtransfer.console import Reporter
from medtransfer.feed import Feed, device_of
from medtransfer.run import Trial
from medtransfer.seeding import seed_part
from medtransfer.strategies.base import Score
from medtransfer.strategies.solved import Solved
from medtransfer.tasks.base import Task, metric_name
from medtransfer.tracking import environment
from medtransfer.tracking.runs import Run


def execute(trial: Trial, run: Run) -> dict[str, float]:
    """Train, select and test a prepared trial, and log all of it.

    Args:
        trial: What to run.
        run: The open MLflow run.

    Returns:
        All final metrics, by their full names.

    Raises:
        CertificateError: If what the strategy declared frozen has changed.
    """
    config, model = trial.config, trial.model
    settings = machine.resolve(config.trainer)
    torch.set_num_threads(int(settings.threads.value))
    _log_start(trial, run, settings)

    environment.reset_peak_memory()
    started = time.perf_counter()
    seed_part(config.seed, "training")
    model.to(memory_format=torch.channels_last)
    images = trial.data.loader("train", batch_size=config.trainer.batch_size)
    model.strategy_.setup(model, _images(images), statistics=trial.provenance.statistics)
    certificate = Certificate.of(model, model.strategy_)
    counts = {
        "cost/trainable_parameters": float(sum(part.learn for part in certificate.parts)),
        "cost/parameters": float(sum(part.parameters for part in certificate.parts)),
    }
    feed = Feed(trial, settings)
    certificate.features = feed.describe()
    _show(certificate, run)

    score = _scorer(trial, feed, settings)
    if isinstance(model.strategy_, Solved):
        trainer, epoch = _trainer(trial, settings, []), 0
        weights = model.loss.weight
        certificate.chosen = model.strategy_.fit_head(model, *feed.table(), weights, score)
    else:
        best = Best(metric_name("val", trial.metric), trial.mode, frozen=certificate.frozen)
        trainer = _trainer(trial, settings, [best, Recorder(run), LastStep()])
        trainer.fit(model, feed.train(), feed.ordered("val"))
        model.load_state_dict(best.state, strict=False)
        epoch = best.epoch
    certificate.verify(model)
    certificate.chosen |= model.strategy_.finish(model, score)
    seconds = time.perf_counter() - started
    run.json(certificate.describe(), "certificate.json")
    run.params({"chosen": certificate.chosen} if certificate.chosen else {})
    if config.trainer.checkpoint == "best":
        folder = config.paths.output / "checkpoints" / run.run_id
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": model.state_dict(), "epoch": epoch}, folder / "best.ckpt")

    final = {"best/epoch": float(epoch)}
    final |= _evaluate(trial, run, trainer, feed, "val", prefix="best")
    if config.test:
        run.tags({"test_openings": 1})
        final |= _evaluate(trial, run, trainer, feed, "test", prefix="test")
        pictures.record(trial, run, settings)
    final |= counts | {
        "cost/train_seconds": seconds,
        "cost/feature_seconds": feed.seconds,
        "cost/steps": float(trainer.global_step),
        "cost/peak_memory_mb": _peak_memory_mb(settings),
    }
    run.metrics(final)
    return final


def _scorer(trial: Trial, feed: Feed, settings: machine.Machine) -> Score:
    """Return what scores the model as it is on validation data, more being better."""
    device, bf16 = device_of(settings), settings.precision.value == "bf16"
    sign = 1.0 if trial.mode == "max" else -1.0

    @torch.no_grad()
    def score() -> float:
        model = trial.model.to(device).eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            kept = [
                model.step(move_data_to_device(batch, device))[1] for batch in feed.ordered("val")
            ]
        together = {key: torch.cat([part[key] for part in kept]).cpu() for key in kept[0]}
        value = sign * model.evaluate("val", together)[trial.metric]
        return -math.inf if math.isnan(value) else value

    return score


class Best(Callback):
    """Keeps what the model was in its best epoch, the frozen part aside, which does not change.

    Args:
        monitor: The metric.
        mode: Whether more or less of it is better.
        frozen: Names of the values that stay.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"], frozen: Container[str]) -> None:
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" else -1.0
        self.frozen = frozen
        self.score = -math.inf
        self.epoch = 0
        self.state: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See Lightning's hook of this name."""
        score = self.sign * float(trainer.callback_metrics[self.monitor])
        if self.state and not score > self.score:  # of equals, the first; of undefined ones too
            return
        self.score = -math.inf if math.isnan(score) else score
        self.epoch = trainer.current_epoch
        self.state = {
            name: value.detach().to("cpu", copy=True)
            for name, value in pl_module.state_dict().items()
            if name not in self.frozen
        }


class Recorder(Callback):
    """Sends the metrics of each validated epoch to the run and to the screen."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.validated = False

    def on_validation_end(self, *_: Any) -> None:
        """See Lightning's hook of this name."""
        self.validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See Lightning's hook of this name."""
        if not self.validated:
            return  # a tiny training set has more epochs than validations
        self.validated = False
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values["train/lr"] = trainer.optimizers[0].param_groups[-1]["lr"]
        self.run.metrics(values, step=trainer.current_epoch)
        if Reporter.active is not None:
            assert isinstance(pl_module, Task)
            shown = ("train/loss", metric_name("val", pl_module.headline))
            done, total = trainer.current_epoch + 1, trainer.max_epochs or 0
            if trainer.max_steps > 0:
                done, total = trainer.global_step, trainer.max_steps
            noted = {name: values[name] for name in shown if name in values}
            Reporter.active.advance(done, total, noted)


class LastStep(Callback):
    """Ends training in mid-epoch with a validation, so that the last steps can be selected too."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """See Lightning's hook of this name."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True  # Lightning validates when it is told to stop, not at limits


def _trainer(trial: Trial, settings: machine.Machine, callbacks: list[Callback]) -> pl.Trainer:
    config = trial.config.trainer
    if config.early_stopping.patience is not None:
        stop = EarlyStopping(
            metric_name("val", trial.metric),
            mode=trial.mode,
            patience=config.early_stopping.patience,
            min_delta=config.early_stopping.min_delta,
        )
        callbacks = [*callbacks, stop]
    return pl.Trainer(
        accelerator=str(settings.accelerator.value),
        devices=config.devices,
        precision=machine.lightning_precision(settings.precision.value),
        max_epochs=config.max_epochs,
        max_steps=config.max_steps or -1,
        # in steps, Lightning counts on from epoch to epoch only when epochs are switched off
        val_check_interval=config.validate_every,
        check_val_every_n_epoch=None if config.validate_every else 1,
        gradient_clip_val=config.gradient_clip,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def _show(certificate: Certificate, run: Run) -> None:
    run.json(certificate.describe(), "certificate.json")
    if Reporter.active is not None:
        Reporter.active.certify(certificate.describe())


def _evaluate(
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
    with run.folder("predictions") as folder:
        for name, frame in predictions(trial, split).items():
            frame.to_parquet(folder / f"{name}.parquet", index=False)
    return {f"{prefix}/{name.partition('/')[2]}": float(value) for name, value in values.items()}


def predictions(trial: Trial, split: Literal["val", "test"]) -> dict[str, pd.DataFrame]:
    """Return the tables of a split that was just scored, by the names of their files.

    The one named after the split has a row for each case; others are of what was found in them.
    """
    model, records = trial.model, trial.data.decoded.records
    kept = model.kept[split]
    cases = [records[i] for i in kept["index"].tolist()]
    exams = trial.data.spec.annotation == "exam"
    tables: dict[str, pd.DataFrame] = {
        split: pd.DataFrame(
            {
                "sample_id": [r.exam_id if exams else r.sample_id for r in cases],
                "group_id": [record.group_id for record in cases],
                "exam_id": [record.exam_id for record in cases],
                "split": split,
                **model.columns(kept),
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


def _log_start(trial: Trial, run: Run, settings: machine.Machine) -> None:
    spec = trial.data.spec
    run.tags(
        {
            "trial_id": trial.trial_id,
            "split_hash": spec.split_hash,
            "data_hash": spec.data_hash,
            "weights_sha256": trial.provenance.sha256,
            "test_openings": 0,
        }
    )
    resolved = {
        name: {"value": choice["value"], "why": choice["why"]}
        for name, choice in asdict(settings).items()
    }
    around = {**environment.describe(), "machine": resolved}
    run.store.client.set_tag(
        run.run_id, "mlflow.source.git.commit", around["git_commit"] or "not a repository"
    )
    run.json(around, "environment.json")
    run.json(asdict(trial.provenance), "weights.json")
    ids = [record.sample_id for record in trial.data.decoded.records]
    run.json(trial.data.division.ids(ids), "split.json")
    summary = {
        **asdict(spec),
        "sources": trial.data.decoded.sources,
        "bits": trial.data.decoded.images.itemsize * 8,
        "skipped": trial.data.decoded.skipped,
        "dropped": trial.data.division.dropped,
        "waived": trial.config.audit.waive,
    }
    if trial.data.decoded.foreground is not None:
        summary["negatives"] = trial.data.decoded.foreground.negatives
    run.json(summary, "data.json")


def _images(loader: torch.utils.data.DataLoader[Any]) -> Iterator[Tensor]:
    return (batch["image"] for batch in loader)


def _peak_memory_mb(settings: machine.Machine) -> float:
    if settings.accelerator.value == "gpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return environment.peak_memory_mb()

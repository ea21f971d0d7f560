"""One prepared trial, executed inside its MLflow run: train, select, test, record."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning.callbacks import Callback, EarlyStopping
from torch import Tensor

from medtransfer import machine, pictures
from medtransfer.callbacks import Best, Curve, LastStep, Median, Recorder
from medtransfer.certificate import Certificate
from medtransfer.console import Reporter
from medtransfer.evaluation import evaluate, evaluate_elsewhere, latency_ms
from medtransfer.feed import Feed, device_of
from medtransfer.run import Trial
from medtransfer.seeding import seed_part
from medtransfer.strategies.base import Score
from medtransfer.strategies.solved import Solved
from medtransfer.tasks.base import metric_name
from medtransfer.tracking import environment
from medtransfer.tracking.runs import Run


def execute(trial: Trial, run: Run, others: Sequence[Curve] | None = None) -> dict[str, float]:
    """Train, select and test a prepared trial, and log all of it.

    Args:
        trial: What to run.
        run: The open MLflow run.
        others: Curves of trials whose median this one must reach, or be given up; None: never.

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
        watching: list[Callback] = [best, Recorder(run), LastStep()]
        median = None if others is None else Median(best.monitor, trial.mode, others)
        trainer = _trainer(trial, settings, [*watching, *([median] if median else [])])
        trainer.fit(model, feed.train(), feed.ordered("val"))
        if median is not None:
            run.tags({"pruned": median.pruned})
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
    final |= evaluate(trial, run, trainer, feed, "val", prefix="best")
    if config.test:
        final |= _test(trial, run, trainer, feed, settings)
    final |= counts | {
        "cost/train_seconds": seconds,
        "cost/feature_seconds": feed.seconds,
        "cost/steps": float(trainer.global_step),
        "cost/validations": float(model.scored["val"]),
        "cost/peak_memory_mb": _peak_memory_mb(settings),
    }
    run.metrics(final)
    return final


def _test(
    trial: Trial, run: Run, trainer: pl.Trainer, feed: Feed, settings: machine.Machine
) -> dict[str, float]:
    """Open the test set, now that every choice is made, and return what the model is worth."""
    run.tags({"test_openings": trial.data.seal.open()})
    final = evaluate(trial, run, trainer, feed, "test", prefix="test")
    pictures.record(trial, run, settings)
    final["cost/latency_ms"] = latency_ms(trial, settings)
    if trial.external is not None:
        final |= evaluate_elsewhere(trial, run, trainer, trial.external)
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
        model.scored["val"] += 1
        value = sign * model.evaluate("val", together)[trial.metric]
        return -math.inf if math.isnan(value) else value

    return score


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
        max_time=None if config.max_seconds is None else timedelta(seconds=config.max_seconds),
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


def _log_start(trial: Trial, run: Run, settings: machine.Machine) -> None:
    spec = trial.data.spec
    run.tags(
        {
            "trial_id": trial.trial_id,
            "split_hash": spec.split_hash,
            "data_hash": spec.data_hash,
            "weights_sha256": trial.provenance.sha256,
            "n_train": len(trial.data.cases(trial.data.train)),
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

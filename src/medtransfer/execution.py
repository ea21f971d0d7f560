"""One prepared trial, executed inside its MLflow run: train, select, test, record."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import pytorch_lightning as pl
import torch

from medtransfer import machine, pictures
from medtransfer.callbacks import Curve
from medtransfer.certificate import Certificate
from medtransfer.checkpoint import Shelf
from medtransfer.console import Reporter
from medtransfer.errors import TooLargeError
from medtransfer.evaluation import evaluate, evaluate_elsewhere, latency_ms
from medtransfer.feed import Feed
from medtransfer.run import Trial, prepare
from medtransfer.strategies.solved import Solved
from medtransfer.tracking import environment
from medtransfer.tracking.runs import Interrupted, Run
from medtransfer.tracking.usage import sampled
from medtransfer.training import Training, fit, solve, trainer_of


def execute(trial: Trial, run: Run, others: Sequence[Curve] | None = None) -> dict[str, float]:
    """Train, select and test a prepared trial, and log all of it.

    A trial that was interrupted goes on from the end of its last epoch, or the last that was
    written, and ends as it would have.

    Args:
        trial: What to run.
        run: The open MLflow run.
        others: Curves of trials whose median this one must reach, or be given up; None: never.

    Returns:
        All final metrics, by their full names.

    Raises:
        CertificateError: If what the strategy declared frozen has changed.
        TooLargeError: If the memory of the device does not suffice, for half a batch either.
        StoreError: If what shall stay of the trial cannot be written.
    """
    settings = machine.resolve(trial.config.trainer)
    torch.set_num_threads(int(settings.threads.value))
    _log_start(trial, run, settings)
    environment.reset_peak_memory()
    shelf = Shelf(trial.config.paths.output / "checkpoints" / run.key, trial.trial_id)
    try:
        with sampled(run, trial.config.tracking.system_every):
            final = _examined(_trained(trial, run, settings, others, shelf), run)
    except BaseException as error:
        if (interrupted := _interruption(error)) is not None:
            shelf.write()
            raise interrupted from None
        if isinstance(error, Exception):
            shelf.clear()  # it would fail again
        raise
    shelf.clear()
    run.metrics(final)
    return final


@dataclass(frozen=True)
class _Learned:
    """A model that was trained and selected, in the form in which it is tested."""

    training: Training
    epoch: int
    steps: int
    seconds: float


def _trained(
    trial: Trial,
    run: Run,
    settings: machine.Machine,
    others: Sequence[Curve] | None,
    shelf: Shelf,
) -> _Learned:
    """Train, once more in smaller parts where the memory of the device does not suffice."""
    given, state = trial.config.trainer.accumulate, shelf.read()
    if state is not None:
        trial = _in_parts(trial, state["accumulate"])
    while True:
        parts = trial.config.trainer.accumulate
        try:
            return _learn(Training(trial, settings, shelf, state), run, others)
        except torch.OutOfMemoryError as error:
            batch = trial.config.trainer.batch_size
            smaller = 2 * parts <= batch
            if parts > given or not smaller:
                raise TooLargeError(
                    f"the memory of the device does not suffice for a batch of {batch} in {parts}"
                    f" part{'s' * (parts > 1)}",
                    remedy=f"trainer.accumulate={2 * parts}, or a smaller trainer.batch_size, by"
                    " which features and validation go too"
                    if smaller
                    else "a smaller backbone, or a smaller dataset.image_size",
                ) from error
            run.tags({"out_of_memory": f"batch of {batch} in {2 * parts} parts"})
        # only here does the traceback no longer hold what fills the memory
        shelf.clear()
        gc.collect()
        torch.cuda.empty_cache()
        trial, state = _in_parts(prepare(trial.config), 2 * parts), None


def _interruption(error: BaseException | None) -> Interrupted | None:
    """Return the signal that an error has come of: what is cut short may fail in its own way."""
    if error is None or isinstance(error, Interrupted):
        return error
    return _interruption(error.__context__)


def _in_parts(trial: Trial, parts: int) -> Trial:
    """Return the trial, the same one, with batches computed in so many parts."""
    trainer = trial.config.trainer.model_copy(update={"accumulate": parts})
    return replace(trial, config=trial.config.model_copy(update={"trainer": trainer}))


def _learn(training: Training, run: Run, others: Sequence[Curve] | None) -> _Learned:
    """Train, select the best epoch, and keep what shall stay of it."""
    trial, certificate = training.trial, training.certificate
    model, shelf, kept = trial.model, training.resume.shelf, trial.config.trainer.checkpoint
    _show(certificate, run)
    epoch = steps = 0
    solved = isinstance(model.strategy_, Solved)
    if solved:
        certificate.chosen = solve(training)
    else:
        fitted = fit(training, run, others)
        run.tags({"pruned": fitted.pruned})
        if kept == "last":
            shelf.keep("last", model, certificate, fitted.epochs - 1, trial.facts())
        model.load_state_dict(fitted.best.state, strict=False)
        epoch, steps = fitted.best.epoch, fitted.steps
    certificate.verify(model)
    certificate.chosen |= model.strategy_.finish(model, training.score)
    learned = _Learned(training, epoch, steps, training.seconds)
    run.json(certificate.describe(), "certificate.json")
    run.params({"chosen": certificate.chosen} if certificate.chosen else {})
    if kept == "best" or (kept == "last" and solved):
        shelf.keep(kept, model, certificate, epoch, trial.facts())
    return learned


def _examined(learned: _Learned, run: Run) -> dict[str, float]:
    """Return what a trained model is worth, and what it has cost."""
    training = learned.training
    trial, feed, settings = training.trial, training.feed, training.settings
    trainer = trainer_of(settings)
    final = {"best/epoch": float(learned.epoch)}
    final |= evaluate(trial, run, trainer, feed, "val", prefix="best")
    if trial.config.test:
        final |= _test(trial, run, trainer, feed, settings)
    training.heed.check()
    parts = training.certificate.parts
    return final | {
        "cost/trainable_parameters": float(sum(part.learn for part in parts)),
        "cost/parameters": float(sum(part.parameters for part in parts)),
        "cost/train_seconds": learned.seconds,
        "cost/feature_seconds": feed.seconds,
        "cost/steps": float(learned.steps),
        "cost/validations": float(trial.model.scored["val"]),
        "cost/peak_memory_mb": _peak_memory_mb(settings),
    }


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
    run.label({"mlflow.source.git.commit": around["git_commit"] or "not a repository"})
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


def _peak_memory_mb(settings: machine.Machine) -> float:
    if settings.accelerator.value == "gpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return environment.peak_memory_mb()

"""The program from Python: what the commands do, with results to go on with.

    import medtransfer

    config = medtransfer.compose("dataset=phantom", "strategy=fine_tuning", "trainer=quick")
    done = medtransfer.train(config)
    study = medtransfer.sweep("dataset=phantom", "strategy=fine_tuning,bitfit", "seed=0,1")
    study.results()

The command line does the same through the same functions. Errors are `MedtransferError`, with the
problem, the choices and a remedy.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from medtransfer.app import App, Composed
from medtransfer.commands.train import Finished, run_many, run_one
from medtransfer.config import TrainConfig
from medtransfer.errors import StoreError
from medtransfer.tracking.ledger import ledger_path
from medtransfer.tracking.store import open_client, resolve_uri

if TYPE_CHECKING:
    from medtransfer.analysis.load import Study as Loaded
    from medtransfer.deploy.trained import Trained


def compose(*overrides: str, config_dir: str | Path | None = None) -> Composed:
    """Return the configuration of one trial.

    Args:
        *overrides: As on the command line: `group=choice`, `key=value`.
        config_dir: A folder with config groups of your own.

    Returns:
        The configuration; its `values` are OmegaConf's, such as `.values.optimizer.lr`.

    Raises:
        ConfigError: If a choice or a key is unknown, or a value does not fit.
    """
    with App.open("train", _folder(config_dir)) as app:
        composed = app.compose(overrides)
    composed.typed(TrainConfig)
    return composed


def train(config: Composed) -> Finished:
    """Run one trial and return what came of it; it is logged as by `medtransfer train`.

    Args:
        config: What `compose` returned.

    Raises:
        MedtransferError: If it cannot be run, or has failed.
    """
    return run_one(config)


def sweep(*overrides: str, config_dir: str | Path | None = None) -> Study:
    """Run a sweep or a study, as `medtransfer train -m` does, and return its answer.

    Trials that fail do not end it; `Study.trials` names them.

    Args:
        *overrides: As on the command line, with `a,b,c` for several values, or `study=NAME`.
        config_dir: A folder with config groups of your own.

    Raises:
        MedtransferError: If it cannot be run.
        StoreError: If it was a dry run, which leaves no study.
    """
    with App.open("train", _folder(config_dir)) as app:
        ended = run_many(app, overrides)
        config = app.compose(_about_places(overrides)).typed(TrainConfig)
    if ended is None:
        raise StoreError("a dry run has no results", remedy="study.dry_run=false")
    return _load(ended.study_id, config)


class Study:
    """The answer of a study, or of a single trial, as its report states it.

    Args:
        loaded: Its trials, as the store holds them.
    """

    def __init__(self, loaded: Loaded) -> None:
        from medtransfer.analysis.report.build import build

        self._loaded = loaded
        self._built = build(loaded)

    @classmethod
    def load(cls, name: str, *overrides: str) -> Study:
        """Return a study from the store alone.

        Args:
            name: Its id or name, or the id of a run.
            *overrides: Where to look, such as `tracking.uri=URI` or `paths.output=DIR`.

        Raises:
            StoreError: If there is no such study.
        """
        return _load(name, compose(*overrides).typed(TrainConfig))

    @property
    def study_id(self) -> str:
        """Its id."""
        return self._built.study_id

    @property
    def headline(self) -> str:
        """The answer in a sentence or two."""
        return self._built.headline

    def results(self) -> pd.DataFrame:
        """Return a row for each arm: its mean metric with a 95 % interval, seeds, cases and costs.

        Settings of the data axes are columns of their own, such as `dataset.fraction`; costs begin
        with `cost/`.
        """
        rows = []
        for arm in self._built.arms:
            row = asdict(arm)
            axes, cost = row.pop("axes"), row.pop("cost")
            del row["by_seed"]
            rows.append({**row, **axes, **{f"cost/{k}": v for k, v in cost.items()}})
        return pd.DataFrame(rows)

    def contrasts(self) -> pd.DataFrame:
        """Return a row for each paired difference between arms, with interval, p and verdict."""
        rows = [asdict(contrast) for contrast in self._built.contrasts]
        return pd.DataFrame([{**row, **row.pop("axes")} for row in rows])

    def trials(self) -> pd.DataFrame:
        """Return a row for each trial: arm, seed, status, test metrics and costs."""
        return pd.DataFrame(
            {
                "run_id": trial.run_id,
                "arm": trial.arm,
                "seed": trial.seed,
                "status": trial.status,
                "failure": trial.failure,
                **trial.axes,
                **{f"test/{name}": value for name, value in trial.metrics.items()},
                **{f"cost/{name}": value for name, value in trial.cost.items()},
            }
            for trial in self._loaded.trials
        )

    def __repr__(self) -> str:
        return f"<Study {self.study_id}: {self.headline}>"


class Model:
    """A trained model that judges new images.

    Args:
        trained: The trial that it is of.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained

    @classmethod
    def load(cls, name: str, *overrides: str) -> Model:
        """Return the model of a finished trial.

        Args:
            name: Id of the trial; or id or name of a study, whose trial with the best score on
                validation data is meant.
            *overrides: Where to look, such as `tracking.uri=URI` or `paths.output=DIR`.

        Raises:
            MedtransferError: If there is no such trial, or nothing was kept of it.
        """
        from medtransfer.deploy.trained import open_trained

        config = compose(*overrides).typed(TrainConfig)
        client = open_client(resolve_uri(config.tracking.uri, config.paths.output))
        trusted = config.trusted_modules
        return cls(open_trained(client, name, config.paths.output, trusted=trusted))

    def predict(self, paths: Iterable[str | Path]) -> pd.DataFrame:
        """Return what is said of images, a row for each, or for each exam.

        Args:
            paths: Files, and folders of images.

        Raises:
            DataError: If one cannot be read.
        """
        from medtransfer.deploy.predicting import judge, open_images

        with tempfile.TemporaryDirectory() as scratch:
            data = open_images(self.trained, [Path(path) for path in paths], Path(scratch))
            records = data.decoded.records
            exams = data.spec.annotation == "exam"
            rows = []
            for found in judge(self.trained, data):
                record = records[found.index]
                name = record.exam_id if exams else record.sample_id
                rows.append({"sample_id": name, **found.values})
        return pd.DataFrame(rows)


def _load(name: str, config: TrainConfig) -> Study:
    from medtransfer.analysis.load import load_study

    uri = resolve_uri(config.tracking.uri, config.paths.output)
    ledger = partial(ledger_path, uri, config.paths.output)
    return Study(load_study(open_client(uri), name, ledger))


def _about_places(overrides: Iterable[str]) -> list[str]:
    return [each for each in overrides if each.startswith(("tracking.", "paths."))]


def _folder(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)

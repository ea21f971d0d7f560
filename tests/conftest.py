"""What every test gets: one thread, no network, a home of its own, small data, the program."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image as PILImage

DATA = os.environ.get("MEDTRANSFER_DATA")
for _name in [n for n in os.environ if n.startswith(("MLFLOW_", "MEDTRANSFER_"))]:
    del os.environ[_name]
import medtransfer  # noqa: E402, F401  switches MLflow's telemetry off, in the environment

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}  # the latter for child processes
torch.set_num_threads(1)
settings.register_profile("medtransfer", deadline=None)  # machines are shared
settings.load_profile("medtransfer")


class Result(NamedTuple):
    """What one command came to."""

    code: int
    out: str
    err: str


def pytest_runtest_setup(item):
    for marker in item.iter_markers("real_data"):
        (folder,) = marker.args
        if DATA is None:
            pytest.skip("MEDTRANSFER_DATA is not set")
        if not Path(DATA, folder).exists():
            pytest.skip(f"MEDTRANSFER_DATA has no '{folder}'")


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    """Point the program at a home of this test alone, which is not there yet."""
    monkeypatch.setenv("MEDTRANSFER_HOME", str(tmp_path / "home"))
    if DATA is not None:
        monkeypatch.setenv("MEDTRANSFER_DATA", DATA)
    yield
    torch.set_num_threads(1)  # a trial sets its own


@pytest.fixture(scope="session")
def home_template(tmp_path_factory):
    """Return a folder with an initialised store: its tables take seconds to create."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("template")
    MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
    return folder


@pytest.fixture
def home(tmp_path, home_template):
    """Return the program's home, with an empty store in it."""
    shutil.copytree(home_template, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def list_runs(home):
    """Return a function that lists every run of the home's store, in every state."""
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    def search():
        client = MlflowClient(f"sqlite:///{home}/mlflow.db")
        ids = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL)]
        return client.search_runs(ids, run_view_type=ViewType.ALL)

    return search


@pytest.fixture
def cli(home, capsys):
    """Return a function that runs one command in this process."""
    from medtransfer.cli import main

    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            code = error.code
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def compose():
    """Return a function that composes one configuration."""
    from medtransfer.app import App

    def run(*overrides: str, name: str = "train", own: Path | None = None):
        with App.open(name, own) as app:
            return app.compose(overrides)

    return run


@pytest.fixture(scope="session")
def tiny_network():
    """Return the overrides of a network that trains in moments."""
    return ("backbone=timm", "backbone.name=test_resnet", "trainer.threads=1")


@pytest.fixture(scope="session")
def tiny(tiny_network):
    """Return the overrides of a trial that runs in moments."""
    return (*tiny_network, "dataset.patients=36", "dataset.size=32", "dataset.image_size=32")


@pytest.fixture(scope="session")
def phantom():
    """Return a small generated dataset."""
    from medtransfer.data.phantom import Phantom
    from medtransfer.data.splits import Split

    return Phantom(
        patients=18,
        images=1,
        lesion_views=None,
        size=32,
        difficulty=0.5,
        data_seed=0,
        image_size=32,
        channels=1,
        fraction=1,
        shots=None,
        on_error="raise",
        split=Split(kind="holdout", seed=0, file=None, ratios=(0.5, 0.2, 0.3)),
    )


@pytest.fixture
def one_step(phantom, tmp_path):
    """Return a function that pre-trains a small network for one step from a source.

    It returns the learner, the names of the backbone's parameters that moved, and what was logged.
    """
    import pytorch_lightning as pl

    from medtransfer.backbones.timm import TimmBackbone
    from medtransfer.data.loading import Data
    from medtransfer.pretrain.base import Batches, Pretraining
    from medtransfer.pretrain.images import Images
    from medtransfer.quiet import quiet_libraries
    from medtransfer.tasks.optimizing import optimizer_factory
    from medtransfer.tasks.schedulers import Constant

    adam = {"_target_": "torch.optim.Adam", "lr": 1e-3, "weight_decay": 0.0}

    def run(source):
        quiet_libraries()
        torch.manual_seed(0)
        images = source.material(Images(Data.open(phantom, cache=tmp_path, seed=0), 0))
        learner = source.learner(TimmBackbone("test_resnet", 1, 32), images)
        before = {n: p.detach().clone() for n, p in learner.backbone.named_parameters()}
        module = Pretraining(learner, 0, Constant(), optimizer_factory(adam, ()), seed=0)
        trainer = pl.Trainer(
            accelerator="cpu",
            max_steps=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, Batches(images, 6, 1, range(1), seed=0).loader(0))
        after = dict(learner.backbone.named_parameters())
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        return learner, moved, trainer.callback_metrics

    return run


@pytest.fixture
def prepared(compose, tmp_path):
    """Return a function that prepares small trials of one home."""
    from lives import preparer

    return preparer(compose, tmp_path)


@pytest.fixture
def interrupted(prepared, tmp_path):
    """Return a function that interrupts a trial in its third epoch; it returns where states lie."""
    from lives import Notebook, before_batch, stop
    from medtransfer.checkpoint import Shelf
    from medtransfer.execution import execute
    from medtransfer.tracking.runs import Interrupted

    def run(*overrides, death=stop):
        trial = prepared(*overrides)
        with before_batch(5, death), pytest.raises(Interrupted):
            execute(trial, Notebook())
        return Shelf(tmp_path / "checkpoints" / "run", trial.trial_id)

    return run


@pytest.fixture
def image_tree(tmp_path):
    """Return a function that writes class folders of small images, no two alike."""

    def write(root: str = "images", **counts: int) -> Path:
        rng = np.random.default_rng(0)
        for name, count in counts.items():
            folder = tmp_path / root / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (12, 16), dtype=np.uint8)
                PILImage.fromarray(pixels).save(folder / f"{i}.png")
        return tmp_path / root

    return write

"""Every source of pre-training ends in one file, and that file trains a task."""

from __future__ import annotations

from pathlib import Path

import pytest

from medtransfer.app import config_dir
from medtransfer.backbones.files import SHIPPED
from medtransfer.backbones.weights import hash_file, read_tensors

SOURCES = sorted(path.stem for path in (config_dir() / "source").glob("*.yaml"))
GENERATED = {"synthetic", "formula"}
NETWORKS = {"rbm": ("backbone=dense_encoder", "backbone.widths=[8,4]", "backbone.size=8")}


@pytest.mark.parametrize("source", SOURCES)
def test_a_file_of_each_source_trains_classification(source, cli, home, list_runs, tiny):
    network, data = tiny[:3], tiny[3:]
    network = (*NETWORKS.get(source, network[:2]), "trainer.threads=1")
    made_on = () if source in GENERATED else ("dataset=phantom", *data)
    if source == "supervised":
        made_on = (*made_on, "dataset.data_seed=1")
    steps = ("trainer.max_steps=2", "trainer.batch_size=4")
    done = cli("pretrain", f"source={source}", *network, *made_on, *steps)
    assert done.code == 0, done.err
    (path,) = (home / "weights").glob("*")
    _, known = read_tensors(path)
    assert known["source"] == source
    assert bool(known["seen"]) == (source not in GENERATED)

    choice = "file" if source == "formula" else source
    done = cli("train", f"weights={choice}", *network, *data, "trainer.max_epochs=1")
    assert done.code == 0, done.err
    trial = next(run for run in list_runs() if run.data.tags["medtransfer.phase"] == "final")
    assert trial.info.status == "FINISHED"


@pytest.mark.parametrize("choice", ["sae", "rbm", "simclr", "supervised"])
def test_where_nothing_was_made_the_error_names_the_command(choice, cli, list_runs, tiny):
    done = cli("train", f"weights={choice}", *tiny)
    assert done.code == 2
    assert f"medtransfer pretrain source={choice}" in done.err
    assert list_runs() == []


def test_what_ships_is_small_and_documented():
    (path,) = SHIPPED.glob("*.safetensors")
    assert path.stat().st_size < 12 * 2**20
    _, known = read_tensors(path)
    assert known["licence"] == "Apache-2.0"
    page = Path(config_dir().parent, "docs", "weights.md").read_text(encoding="utf-8")
    assert hash_file(path) in page
    assert known["recipe"] in page


def test_what_ships_trains_without_any_step_before(cli, list_runs, tiny):
    done = cli("train", "weights=synthetic", *tiny[3:], "trainer.max_epochs=1")
    assert done.code == 0, done.err
    (trial,) = list_runs()
    assert trial.data.tags["medtransfer.weights"] == "synthetic"

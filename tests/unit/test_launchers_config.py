"""Launchers are chosen by one word: each has a config of the program's own, and an extra."""

import json
import tomllib
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigLoadError, ConfigStore
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, RunMode

from medtransfer import app
from medtransfer.app import LAUNCHERS, App, config_dir

FOLDER = config_dir() / "hydra" / "launcher"
ROOT = Path(__file__).parents[2]


def test_every_launcher_of_ours_has_an_extra_that_exists():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(LAUNCHERS)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {extra for extra, _ in LAUNCHERS.values()}
    assert extras <= set(project["optional-dependencies"])


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_the_config_of_a_launcher_is_ours_and_says_all_that_its_plug_in_knows(name):
    own = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    with App.open("train", None) as opened:
        config = opened.hydra.compose_config(
            "train", [f"hydra/launcher={name}"], run_mode=RunMode.MULTIRUN
        )
        composed = config.hydra.launcher
        assert set(composed) == set(own)
        assert composed._target_ == own["_target_"]
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=opened.hydra.config_loader, callbacks=None),
            task_function=print,
            config=config,
        )
    assert type(launcher).__name__ == own["_target_"].rpartition(".")[2]
    try:
        schema = ConfigStore.instance().load(f"hydra/launcher/{name}.yaml").node
    except ConfigLoadError:
        return
    assert set(schema) == set(own)


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(
    cli, monkeypatch, list_runs, name
):
    extra, module = LAUNCHERS[name]
    find = app.find_spec
    monkeypatch.setattr(app, "find_spec", lambda asked: None if asked == module else find(asked))
    done = cli("train", "-m", f"hydra/launcher={name}", "seed=0,1")
    assert done.code == 2
    assert f"hydra/launcher={name} wants the extra '{extra}'" in done.err
    assert f"pip install 'medtransfer[{extra}]'" in done.err
    assert not list_runs()


def test_launchers_are_listed_with_what_they_are(cli):
    listed = json.loads(cli("list", "hydra/launcher", "--json").out)["hydra/launcher"]
    assert all(len(listed[name]) > 10 for name in LAUNCHERS)


def test_the_slurm_launcher_keeps_its_files_in_the_cache():
    with App.open("train", None) as opened:
        config = opened.hydra.compose_config(
            "train",
            ["hydra/launcher=submitit_slurm", "paths.cache=/shared/cache"],
            run_mode=RunMode.MULTIRUN,
        )
        assert config.hydra.launcher.submitit_folder == "/shared/cache/hydra/slurm/%j"

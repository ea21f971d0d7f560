import json
import os
import subprocess
import sys

import pytest

from medtransfer.app import config_dir
from medtransfer.commands import catalog


def test_every_group_is_listed_for_programs(cli):
    result = cli("list", "--json")
    assert result.code == 0
    listed = json.loads(result.out)
    for path in config_dir().glob("*/*.yaml"):
        if path.parent.name not in {"source", "common"}:  # of another command, of no choice
            assert listed[path.parent.name][path.stem]
    assert "basic" in listed["hydra/sweeper"]
    assert "basic" in listed["hydra/launcher"]


def test_one_group_is_listed_alone(cli):
    listed = json.loads(cli("list", "weights", "--json").out)
    assert list(listed) == ["weights"]
    assert {"file", "imagenet", "random"} <= set(listed["weights"])


def test_the_table_shows_choices_with_what_they_are(cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = cli("list", "optimizer")
    assert result.code == 0
    (line,) = [line for line in result.out.splitlines() if "adamw" in line]
    assert "Adam with decoupled weight decay." in line


def test_of_two_choices_of_one_name_the_one_is_described_that_is_composed(cli, compose, tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "sgd.yaml").write_text(
        "# Mine [fast].\n_target_: torch.optim.SGD\nlr: 77\n"
    )
    listed = json.loads(cli("list", "optimizer", "--json", "--config-dir", tmp_path).out)
    composed = compose("optimizer=sgd", own=tmp_path).plain()
    own = composed["optimizer"]["lr"] == 77
    assert (listed["optimizer"]["sgd"] == "Mine [fast].") is own


def test_hydras_own_header_is_no_description(cli, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n# Mine [x].\n")
    listed = json.loads(cli("list", "experiment", "--json", "--config-dir", tmp_path).out)
    assert listed["experiment"]["mine"] == "Mine [x]."


def test_a_choice_without_a_comment_is_listed_all_the_same(cli, tmp_path):
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("_target_: torch.optim.SGD\nlr: 1\n")
    listed = json.loads(cli("list", "optimizer", "--json", "--config-dir", tmp_path).out)
    assert listed["optimizer"]["mine"] == ""


def test_an_unknown_group_meets_the_nearest(cli):
    result = cli("list", "backbon")
    assert result.code == 2
    assert "there is no config group 'backbon'; did you mean 'backbone'?" in result.err
    assert result.out == ""


def test_what_is_no_argument_is_named(cli):
    result = cli("list", "backbone", "seed=1")
    assert result.code == 2
    assert "'seed=1' is not an argument of list" in result.err


@pytest.fixture
def models(monkeypatch):
    """Return a function that says which models timm has."""

    def have(*names):
        monkeypatch.setattr(catalog, "_models", lambda: list(names))

    return have


def test_a_search_finds_all_of_its_words_in_names_and_lines(cli, models):
    models()
    found = json.loads(cli("list", "strategy", "--search", "LAST layer", "--json").out)
    assert "partial_fine_tuning" in found["strategy"]
    assert "lora" not in found["strategy"]
    everywhere = json.loads(cli("list", "--search", "attention", "--json").out)
    assert set(everywhere) >= {"study"}
    for group, options in everywhere.items():
        for name, line in options.items():
            assert "attention" in f"{name} {line}".lower(), group


def test_a_search_finds_own_choices(cli, models, tmp_path):
    models()
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("# Peculiar.\n_target_: torch.optim.SGD\n")
    found = json.loads(cli("list", "--search", "peculiar", "--json", "--config-dir", tmp_path).out)
    assert found == {"optimizer": {"mine": "Peculiar."}}


@pytest.mark.parametrize("group", [["backbone"], []])
def test_a_search_finds_models_of_timms(cli, models, group):
    models(*(f"zebra_{i}" for i in range(23)), "horse")
    result = cli("list", *group, "--search", "zebra")
    assert result.code == 0
    assert "timm has 23 models more:" in result.out
    assert result.out.count("backbone=timm backbone.name=zebra_") == 20
    assert "and 3 others" in result.out
    listed = json.loads(cli("list", *group, "--search", "zebra", "--json").out)
    assert listed["timm"]["zebra_22"] == "backbone=timm backbone.name=zebra_22"
    assert len(listed["timm"]) == 23


def test_timms_own_models_are_searched(cli):
    found = json.loads(cli("list", "backbone", "--search", "resnet 10t", "--json").out)
    assert "resnet10t" in found["backbone"]
    assert found["timm"]["resnet10t"] == "backbone=timm backbone.name=resnet10t"


def test_what_is_not_found_meets_near_names(cli, models):
    models("resnet18", "horse")
    result = cli("list", "backbone", "--search", "resnt18")
    assert (result.code, result.err) == (0, "")
    line = "no backbone has 'resnt18' in its name or line; near: resnet18"
    assert result.out.startswith(line)
    assert json.loads(cli("list", "--search", "zzzz", "--json").out) == {}
    assert cli("list", "--search", "zzzz").out == "nothing has 'zzzz' in its name or line\n"


def test_timm_is_loaded_for_a_search_of_backbones_alone():
    for arguments, loaded in (
        (["list"], False),
        (["list", "strategy", "--search", "last"], False),
        (["list", "backbone", "--search", "zzzz"], True),
    ):
        code = (
            f"import sys\nfrom medtransfer.cli import main\nmain({arguments})\n"
            "print('timm' in sys.modules, 'torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert done.stdout.endswith(f"{loaded} {loaded}\n"), arguments


@pytest.mark.parametrize("arguments", [["list"], ["train", "--cfg", "job"], ["doctor"], ["--help"]])
def test_only_a_terminal_gets_colours(arguments, home):
    told = {"FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"}
    plain = {k: v for k, v in os.environ.items() if k not in told} | {"TERM": "xterm-256color"}
    command = [sys.executable, "-m", "medtransfer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=plain)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_help_says_what_exit_codes_mean(cli):
    result = cli("--help")
    assert result.code == 0
    assert "exit codes: 0 done, 1 a trial failed, 2 your mistake" in " ".join(result.out.split())

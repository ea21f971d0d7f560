"""A choice of one's own, from an empty folder: written, listed, tested, used."""

import json
import os
import subprocess
import sys

import pytest

from medtransfer.commands.new import stub

KINDS = ("strategy", "dataset", "study")
FILES = {
    "strategy": {"own_one.py", "conf/strategy/own_one.yaml", "tests/test_own_one.py"},
    "dataset": {"own_one.py", "conf/dataset/own_one.yaml", "tests/test_own_one.py"},
    "study": {"conf/study/own_one.yaml", "tests/test_own_one.py"},
}


@pytest.fixture
def folder(tmp_path):
    """Return a folder that is not there yet, with a blank in its name."""
    return tmp_path / "my work"


def written(folder):
    """Return the files of a folder, by their paths in it."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix() for path in files}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stub_is_written_listed_and_passes_its_test_as_it_is(cli, folder, kind):
    result = cli("new", kind, "own_one", "--dir", folder)
    assert result.code == 0, result.err
    assert written(folder) == FILES[kind]
    for path in FILES[kind]:
        assert str(folder / path) in result.out.replace("\n", "")

    listed = json.loads(cli("list", kind, "--json", "--config-dir", folder / "conf").out)
    assert listed[kind]["own_one"].startswith("own_one: ")

    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    bare = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=folder, env=bare, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_the_commands_that_are_named_work(cli, folder, monkeypatch, tiny):
    result = cli("new", "strategy", "own_two", "--dir", folder)
    _, _, told = result.out.partition("try:\n")
    listing, training, testing = (line.strip() for line in told.strip().splitlines())
    conf = f"'{folder}/conf'"
    assert listing.endswith(f" list strategy --config-dir {conf}")
    assert training.startswith(f"PYTHONPATH='{folder}' ")
    assert training.endswith(
        f" train --config-dir {conf} strategy=own_two 'trusted_modules=[own_two]'"
    )
    assert testing == f"pytest '{folder}/tests'"

    monkeypatch.syspath_prepend(folder)
    done = cli(
        *("train", "--config-dir", folder / "conf", "strategy=own_two"),
        *("trusted_modules=[own_two]", *tiny, "trainer.max_epochs=1", "features.mode=online"),
    )
    assert done.code == 0, done.err
    assert "test/auroc" in done.out


def test_a_strategy_and_a_study_live_in_one_folder(cli, folder):
    assert cli("new", "strategy", "own_three", "--dir", folder).code == 0
    assert cli("new", "study", "own_four", "--dir", folder).code == 0
    listed = json.loads(cli("list", "--json", "--config-dir", folder / "conf").out)
    assert "own_three" in listed["strategy"]
    assert "own_four" in listed["study"]


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("strategy", "my-own", "'my-own' cannot name a strategy"),
        ("strategy", "1st", "'1st' cannot name a strategy"),
        ("strategy", "_own", "'_own' cannot name a strategy"),
        ("dataset", "class", "'class' cannot name a dataset"),
        ("dataset", "null", "'null' cannot name a dataset"),
        ("dataset", "../up", "'../up' cannot name a dataset"),
        ("strategy", "lora", "there is a strategy 'lora' already"),
        ("study", "weights", "there is a study 'weights' already"),
        ("dataset", "json", "there is a module 'json' already"),
        ("strategy", "torch", "there is a module 'torch' already"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_is_written(cli, folder, kind, name, said):
    result = cli("new", kind, name, "--dir", folder)
    assert result.code == 2
    assert said in result.err
    assert not folder.exists()


@pytest.mark.parametrize("path", sorted(FILES["strategy"]))
def test_a_file_that_is_there_is_left_and_nothing_is_written_beside_it(cli, folder, path):
    (folder / path).parent.mkdir(parents=True)
    (folder / path).write_text("mine")
    (folder / path).chmod(0o444)
    result = cli("new", "strategy", "own_one", "--dir", folder)
    assert result.code == 2
    assert f"'{folder / path}' is there already" in result.err
    assert written(folder) == {path}
    assert (folder / path).read_text() == "mine"


def test_what_cannot_be_written_whole_is_taken_back(cli, folder):
    folder.mkdir()
    (folder / "tests").write_text("a file where a folder should be")
    result = cli("new", "strategy", "own_one", "--dir", folder)
    assert result.code == 2
    assert f"'{folder}' cannot be written" in result.err
    assert [path.name for path in folder.iterdir()] == ["tests"]


def test_the_class_is_named_after_the_choice_and_hides_nothing_that_it_uses():
    assert "class OwnTwo(Strategy):" in stub("strategy", "own_two")["own_two.py"]
    text = stub("strategy", "strategy")
    assert "class MyStrategy(Strategy):" in text["strategy.py"]
    assert "_target_: strategy.MyStrategy" in text["conf/strategy/strategy.yaml"]
    assert "class MyRecord(FileDataset):" in stub("dataset", "record")["record.py"]
    assert "my_dataset" not in "".join(stub("dataset", "record").values())


def test_new_takes_no_overrides_and_no_other_kind(cli, folder):
    result = cli("new", "strategy", "own_one", "seed=1", "--dir", folder)
    assert result.code == 2
    assert "'seed=1' is not an argument of new" in result.err
    assert cli("new", "backbone", "own_one", "--dir", folder).code == 2
    assert not folder.exists()

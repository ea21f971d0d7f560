import json

from medtransfer.app import config_dir


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

import json

import pytest

from medtransfer.app import App
from medtransfer.config import PretrainConfig, TrainConfig
from medtransfer.errors import ConfigError

OWN_DATASET = """\
# Phantoms of my own.
defaults:
  - phantom

_target_: own_module.Own
difficulty: 0.25
"""


@pytest.fixture
def own(tmp_path):
    """Return a function that writes a user's config folder: path to content."""

    def write(**files):
        for name, content in files.items():
            path = tmp_path / "own" / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path / "own"

    return write


@pytest.fixture
def app():
    with App.open("train", None) as opened:
        yield opened


def refused(app, *overrides):
    with pytest.raises(ConfigError) as caught:
        app.compose(overrides).typed(TrainConfig)
    return caught.value


def test_choices_and_overrides_are_what_was_given(app):
    composed = app.compose(["strategy=fine_tuning", "optimizer.lr=0.5", "seed=3"])
    assert composed.choices["strategy"] == "fine_tuning"
    assert composed.choices["dataset"] == "phantom"
    assert composed.overrides == ("strategy=fine_tuning", "optimizer.lr=0.5", "seed=3")
    assert composed.plain()["optimizer"]["lr"] == 0.5
    assert composed.typed(TrainConfig).seed == 3


def test_a_configuration_is_plain_resolved_and_without_hydras_own(app, monkeypatch):
    plain = app.compose(["paths.output=there", "dataset.channels=1"]).plain()
    json.dumps(plain)
    assert "hydra" not in plain
    assert plain["paths"]["cache"] == "there/cache"
    assert plain["backbone"]["channels"] == 1


def test_the_environment_says_where_things_lie(app, monkeypatch):
    monkeypatch.setenv("MEDTRANSFER_HOME", "/my/home")
    monkeypatch.setenv("MEDTRANSFER_DATA", "/my/data")
    paths = app.compose(["dataset=busi"]).plain()
    assert paths["paths"]["output"] == "/my/home"
    assert paths["dataset"]["root"] == "/my/data/busi"


def test_pretraining_has_a_configuration_of_its_own():
    with App.open("pretrain", None) as app:
        config = app.compose(["seed=1"]).typed(PretrainConfig)
    assert config.source["_target_"].startswith("medtransfer.pretrain.")


@pytest.mark.parametrize(
    ("override", "problem", "nearest"),
    [
        ("backbone=resnt18", "backbone 'resnt18' is unknown", "resnet18"),
        ("strategy=finetuning", "strategy 'finetuning' is unknown", "fine_tuning"),
        ("optimizer.lrr=1", "key 'optimizer.lrr' is unknown", "optimizer.lr"),
        ("dataset.split.sed=1", "key 'dataset.split.sed' is unknown", "dataset.split.seed"),
        ("sead=1", "key 'sead' is unknown", "seed"),
        ("+trainer.max_epoch=1", "key 'trainer.max_epoch' is unknown", "max_epochs"),
        ("trainer.max_epochs=many", "trainer.max_epochs='many' does not fit", None),
    ],
)
def test_what_is_unknown_meets_the_nearest(app, override, problem, nearest):
    error = refused(app, override)
    assert error.problem.startswith(problem)
    assert error.nearest == nearest


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "'seed'"),
        ("=3", "'=3'"),
        ("seed=[0", "'[0'"),
        ("a b=c", "a b=c"),
        ("dataset=phantom,busi", "'dataset=phantom,busi'"),
    ],
)
def test_an_override_that_cannot_be_read_is_shown_with_how_to_write_it(app, override, said):
    error = refused(app, override)
    assert said in error.problem
    assert error.remedy == "overrides are written group=choice key=value"


def test_a_key_without_a_value_asks_for_one(app):
    error = refused(app, "dataset=image_folder")
    assert (error.problem, error.remedy) == (
        "key 'dataset.root' needs a value",
        "dataset.root=VALUE",
    )


@pytest.mark.parametrize("value", ["${nope}", "${oc.env:MEDTRANSFER_NOPE}"])
def test_a_reference_to_nothing_is_the_users_mistake(app, value):
    assert "nope" in str(refused(app, f"paths.data={value}")).lower()


def test_an_override_may_refer_to_another_key(app, tmp_path):
    composed = app.compose(["dataset=image_folder", "dataset.root=${paths.data}/x", "paths.data=d"])
    assert composed.plain()["dataset"]["root"] == "d/x"
    job = app.run(lambda values: values.dataset.root, list(composed.overrides))
    assert job == "d/x"


def test_a_plan_has_every_job_and_what_differs_between_them(app):
    plan = app.plan(["strategy=feature_extraction,fine_tuning", "seed=0,1,2", "weights=random"])
    assert len(plan.jobs) == len(set(plan.jobs)) == 6
    assert plan.swept == ("strategy", "seed")
    assert plan.jobs[0] == ("strategy=feature_extraction", "seed=0", "weights=random")


def test_a_plan_takes_the_sweep_of_an_experiment_file_and_the_command_line_wins(own):
    folder = own(
        experiment__mine="# @package _global_\n# Mine.\nhydra:\n  sweeper:\n    params:\n"
        "      seed: 0,1\n      strategy: feature_extraction,fine_tuning\n"
    )
    with App.open("train", folder) as app:
        plan = app.plan(["experiment=mine"])
        assert len(plan.jobs) == 4
        assert plan.swept == ("seed", "strategy")
        chosen = {app.compose(job).choices["strategy"] for job in plan.jobs}
        assert chosen == {"feature_extraction", "fine_tuning"}
        assert app.plan(["experiment=mine", "seed=7"]).swept == ("strategy",)


def test_what_a_job_raises_comes_out_as_it_was(app):
    def job(values):
        raise KeyError(values.seed)

    with pytest.raises(KeyError, match="5"):
        app.run(job, ["seed=5"])


def test_users_groups_work_beside_the_shipped_ones(own, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_module.py").write_text(
        "from medtransfer.data.phantom import Phantom\nclass Own(Phantom): pass\n"
    )
    with App.open("train", own(dataset__mine=OWN_DATASET)) as app:
        composed = app.compose(["dataset=mine", "trusted_modules=[own_module]"])
        config = composed.typed(TrainConfig)
        assert composed.choices["dataset"] == "mine"
        assert config.trusted_modules == ("own_module",)
        assert config.dataset["difficulty"] == 0.25
        assert app.compose(["dataset=phantom"]).choices["dataset"] == "phantom"


def test_a_users_choice_that_bears_a_shipped_name_is_the_users(own, cli):
    folder = own(optimizer__adamw="# My own.\n_target_: torch.optim.AdamW\nlr: 0.5\n")
    listed = json.loads(cli("list", "optimizer", "--json", "--config-dir", folder).out)
    assert listed["optimizer"]["adamw"] == "My own."
    with App.open("train", folder) as app:
        assert app.compose(["optimizer=adamw"]).plain()["optimizer"]["lr"] == 0.5


def test_users_groups_are_listed_with_their_description(own, cli):
    result = cli("list", "dataset", "--json", "--config-dir", own(dataset__mine=OWN_DATASET))
    listed = json.loads(result.out)["dataset"]
    assert listed["mine"] == "Phantoms of my own."
    assert "phantom" in listed


def test_a_misspelt_key_in_a_users_file_is_named(own, cli):
    folder = own(dataset__mine="# Mine.\ndefaults:\n  - phantom\n\nfractoin: 0.5\n")
    result = cli("train", "--config-dir", folder, "dataset=mine")
    assert result.code == 2
    assert "'dataset.fractoin'" in result.err
    assert "did you mean 'fraction'" in result.err


def test_a_users_file_that_is_no_yaml_is_named(own, cli):
    result = cli("train", "--config-dir", own(dataset__mine="fraction: ["), "dataset=mine")
    assert result.code == 2
    assert "not YAML" in result.err
    assert "dataset/mine.yaml" in result.err


def test_a_config_folder_that_is_not_there_is_named(cli, tmp_path):
    result = cli("train", "--config-dir", tmp_path / "nope")
    assert result.code == 2
    assert "nope' does not exist" in result.err


@pytest.mark.parametrize("where", ["", "hydra:\n  sweeper:\n    params:\n      "])
def test_trust_that_stands_in_a_file_is_refused(own, where):
    text = f"# @package _global_\n# Mine.\n{where}trusted_modules: "
    with App.open("train", own(experiment__mine=text + ('"[x]"' if where else "[x]"))) as app:
        with pytest.raises(ConfigError, match="stands in a config file") as caught:
            [app.compose(job).typed(TrainConfig) for job in app.plan(["experiment=mine"]).jobs]
        assert "on the command line" in caught.value.remedy


def test_hydras_callbacks_are_refused_before_they_run(own, tmp_path):
    text = (
        "# @package _global_\n# Mine.\nhydra:\n  callbacks:\n    x:\n"
        f"      _target_: os.mkdir\n      path: {tmp_path / 'ran'}\n"
    )
    with App.open("train", own(experiment__mine=text)) as app:
        for start in (lambda o: app.run(print, o), app.plan):
            with pytest.raises(ConfigError, match=r"hydra\.callbacks"):
                start(["experiment=mine"])
    assert not (tmp_path / "ran").exists()


def test_hydras_own_flags_show_the_configuration(cli):
    result = cli("train", "seed=4", "--cfg", "job")
    assert result.code == 0
    assert "seed: 4" in result.out.splitlines()

import pytest

from medtransfer import guard
from medtransfer.app import App, config_dir
from medtransfer.errors import ConfigError

SETUP = "hydra:\n  launcher:\n    setup: [module load cuda]\n"
SLURM = "hydra/launcher=submitit_slurm"


@pytest.fixture
def own(tmp_path):
    """Return a function that opens the application with an experiment of the user's."""
    path = tmp_path / "own" / "experiment" / "mine.yaml"
    path.parent.mkdir(parents=True)

    def write(text):
        path.write_text(f"# @package _global_\n# Mine.\n{text}")
        return App.open("train", tmp_path / "own")

    return write


@pytest.mark.parametrize("name", ["train", "pretrain", "extract", "rank", "audit"])
def test_what_is_shipped_is_harmless(name):
    with App.open(name, None) as app:
        app.compose(["dataset=phantom"] if name in {"extract", "rank", "audit"} else [])


@pytest.mark.parametrize("path", sorted((config_dir() / "hydra").rglob("*.yaml")), ids=str)
def test_shipped_launchers_are_harmless(path):
    group = path.parent.relative_to(config_dir()).as_posix()
    with App.open("train", None) as app:
        app.compose([f"{group}={path.stem}"])


@pytest.mark.parametrize(
    "given",
    [
        "hydra.launcher.setup=[module load cuda]",
        "+hydra.launcher.additional_parameters.mail-type=END",
        "hydra.launcher.partition=gpu",
        "hydra.sweep.dir=/tmp/x",
        "+hydra.job.env_set.A=b",
        "hydra.job.chdir=false",
    ],
)
def test_the_command_line_is_the_users(given):
    with App.open("train", None) as app:
        app.compose([SLURM, given])


def test_a_users_launcher_may_ask_for_resources_and_not_for_commands(own, tmp_path):
    folder = tmp_path / "own" / "hydra" / "launcher"
    folder.mkdir(parents=True)
    text = "# Mine.\ndefaults: [submitit_slurm]\npartition: gpu\nmem_gb: 64\ntimeout_min: 60\n"
    (folder / "cluster.yaml").write_text(text)
    with own("seed: 1\n") as app:
        app.compose(["hydra/launcher=cluster"])
    (folder / "cluster.yaml").write_text(text + "setup: [rm -rf x]\n")
    with own("seed: 1\n") as app:
        with pytest.raises(ConfigError, match=r"hydra\.launcher\.setup") as caught:
            app.compose(["hydra/launcher=cluster"])
        app.compose(["hydra/launcher=cluster", "hydra.launcher.setup=[true]"])
    assert "on the command line" in caught.value.remedy


def test_callbacks_have_no_use_on_the_command_line_neither(own):
    with own("seed: 1\n") as app, pytest.raises(ConfigError, match=r"hydra\.callbacks"):
        app.compose(["+hydra.callbacks.x._target_=os.getcwd"])


@pytest.mark.parametrize(
    "key", ["trusted_modules", "+trusted_modules", "hydra.job.chdir", "hydra/launcher"]
)
def test_a_file_gives_no_job_trust_that_the_command_line_does_not(key):
    with pytest.raises(ConfigError, match=key.lstrip("+")):
        guard.require_own([[f"{key}=x", "seed=1"]], ["seed=1"])
    guard.require_own([[f"{key}=x", "seed=1"]], ["seed=1", f"{key}=x"])

"""No secret of the environment or of a URI is shown or kept, in whatever process it is met."""

import json
from urllib.parse import quote

import pytest
import yaml
from joblib.externals.loky import get_reusable_executor

from medtransfer import secrets

SECRET = "Kq7 'vault\" ünder\\lock & key: 100% " + "long enough to be folded by YAML " * 3
PASSWORD = "pa55/w0rd@home"
FAILS = """
import os
from medtransfer.tasks.losses import CrossEntropy

class Fails(CrossEntropy):
    def forward(self, logits, target):
        if self.label_smoothing:
            raise RuntimeError("no access with " + os.environ["VAULT"])
        return super().forward(logits, target)
"""
EXPERIMENT = {
    "study": {"name": "${oc.env:VAULT}"},
    "weights": {"tag": "key=${study.name}!"},  # by way of another key
}
FORMS = (SECRET, SECRET[:20], json.dumps(SECRET)[1:-1], repr(SECRET)[1:-1], quote(SECRET))


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(secrets, "_remembered", set())


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write an experiment that takes a secret from the environment, and a loss that tells it."""
    folder = tmp_path / "own"
    (folder / "experiment").mkdir(parents=True)
    (folder / "loss").mkdir()
    text = "# @package _global_\n# Mine.\n" + yaml.safe_dump(EXPERIMENT)
    (folder / "experiment" / "mine.yaml").write_text(text)
    node = {"defaults": ["cross_entropy"], "_target_": "tells_all.Fails"}
    (folder / "loss" / "fails.yaml").write_text("# Mine.\n" + yaml.safe_dump(node))
    (tmp_path / "tells_all.py").write_text(FAILS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("VAULT", SECRET)
    return ("--config-dir", folder, "experiment=mine")


def shown(*results):
    return "".join(result.out + result.err for result in results)


def assert_hidden(home, text, forms):
    kept = [path for path in home.rglob("*") if path.is_file()]
    assert kept
    for form in forms:
        assert form not in text
        leaks = [path for path in kept if form.encode() in path.read_bytes()]
        assert leaks == [], form


def test_a_trial_keeps_no_secret(cli, home, own, tiny, list_runs):
    small = (*tiny, "trainer.max_epochs=1", "trainer.max_steps=1")
    done = cli("train", *own, *small)
    assert done.code == 0, done
    (run,) = list_runs()
    assert run.data.params["weights.tag"] == f"key={secrets.HIDDEN}!"
    told = cli("report", run.info.run_id, "--out", home / "again")
    config = cli("train", *own, "--cfg", "job", "--resolve")
    assert f"name: '{secrets.HIDDEN}'" in config.out or f"name: {secrets.HIDDEN}" in config.out
    assert_hidden(home, shown(done, told, config), FORMS)


def test_a_sweep_in_other_processes_keeps_no_secret_and_tells_none_where_it_fails(
    cli, home, own, tiny, list_runs
):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    get_reusable_executor().shutdown()  # of another test, which had another environment
    small = (*tiny, "trainer.max_epochs=1", "trainer.max_steps=1", "trainer.workers=0")
    swept = ("trusted_modules=[tells_all]", "loss=fails", "loss.label_smoothing=0.0,0.1")
    where = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    done = cli("train", "-m", *own, *small, *swept, *where)
    assert done.code == 1, done
    states = {run.info.status for run in list_runs()}
    assert states == {"FINISHED", "FAILED"}
    assert any(
        secrets.HIDDEN in run.data.tags.get("medtransfer.failure", "") for run in list_runs()
    )
    assert_hidden(home, shown(done), FORMS)


@pytest.mark.enable_socket  # to learn that nobody answers
@pytest.mark.parametrize("many", [(), ("-m", "seed=0,1")])
@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:{}@127.0.0.1:1/db",
        "mysql+pymysql://me:{}@127.0.0.1:1/db",
        "http://me:{}@127.0.0.1:1",
        "http://127.0.0.1:1/x?token={}",
        "nonsense://me:{}@nowhere",
    ],
)
def test_a_store_that_cannot_be_reached_is_told_without_its_password(cli, home, tiny, uri, many):
    place = uri.format(PASSWORD)
    results = [
        cli("train", *many, *tiny, "trainer.max_steps=1", f"tracking.uri='{place}'"),
        cli("doctor", f"tracking.uri='{place}'"),
        cli("doctor", "--json", f"tracking.uri='{place}'"),
        cli("report", "x", "--out", home / "x", f"tracking.uri='{place}'"),
    ]
    assert [result.code for result in results] == [2, 0, 0, 2], results
    assert_hidden(home, shown(*results), [PASSWORD, quote(PASSWORD), "w0rd"])


def test_a_password_of_the_environment_is_hidden_in_any_place(cli, home, tiny, monkeypatch):
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    place = "tracking.uri='postgresql://me:${oc.env:DB_PASSWORD}@127.0.0.1:1/db'"
    results = [
        cli("train", *tiny, place),
        cli("doctor", place),
        cli("train", place, "--cfg", "job"),
    ]
    assert [result.code for result in results] == [2, 0, 0], results
    assert_hidden(home, shown(*results), [PASSWORD, "w0rd"])

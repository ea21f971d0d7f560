import json
import subprocess
import sys

import pytest

FIELDS = {
    *("versions", "platform", "processor"),
    *("accelerator", "precision", "layout", "threads", "workers"),
    *("data", "cache", "weights", "store", "hub"),
}


@pytest.fixture
def told(cli):
    """Return a function that asks the doctor, for programs."""

    def ask(*overrides):
        result = cli("doctor", "--json", *overrides)
        assert result.code == 0, result.err
        return json.loads(result.out)

    return ask


def test_every_field_is_there_with_its_reason(told):
    found = told()
    assert set(found) == FIELDS
    assert {"python", "torch", "mlflow", "timm", "hydra-core"} <= set(found["versions"])
    for name in ("accelerator", "precision", "layout", "threads", "workers"):
        value, _, why = found[name].partition(" (")
        assert value
        assert why.endswith(")")


def test_what_is_configured_is_what_is_told(told):
    found = told("trainer.threads=3", "trainer.precision=fp32", "trainer.workers=2")
    assert found["threads"] == "3 (as configured)"
    assert found["precision"] == "fp32 (as configured)"
    assert found["workers"] == "2 (as configured)"


def test_folders_are_told_with_their_state(told, home, tmp_path):
    (home / "cache").mkdir()
    found = told(f"paths.data={tmp_path}/nope")
    assert found["data"] == f"{tmp_path}/nope (not there yet)"
    assert found["cache"] == f"{home}/cache"
    assert found["weights"] == f"{home}/weights (not there yet)"


def test_the_store_is_told_with_its_state(told, home, tmp_path):
    assert told()["store"] == f"sqlite:///{home}/mlflow.db"
    missing = f"sqlite:///{tmp_path}/nope.db"
    assert told(f"tracking.uri={missing}")["store"] == f"{missing} (not there yet)"
    assert not (tmp_path / "nope.db").exists()
    (tmp_path / "x.db").write_text("hello")
    assert "not a database" in told(f"tracking.uri=sqlite:///{tmp_path}/x.db")["store"]


def test_a_password_is_not_told(told):
    found = told("tracking.uri='nonsense://me:secret@host'")
    assert "nonsense://me:***@host" in found["store"]
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize("why", ["switched off by HF_HUB_OFFLINE", ""])
def test_the_hub_and_its_cache_are_told(told, monkeypatch, why):
    from huggingface_hub import constants

    from medtransfer.backbones import hub

    monkeypatch.setattr(hub, "unreachable", lambda: why)
    said = why or f"{constants.ENDPOINT} answers"
    assert told()["hub"] == f"{said}; cache {constants.HF_HUB_CACHE}"


def test_tests_never_ask_the_hub(told):
    assert told()["hub"].startswith("switched off by HF_HUB_OFFLINE")


def test_people_get_a_table(cli):
    result = cli("doctor")
    assert result.code == 0
    for field in FIELDS:
        assert field in result.out


def test_a_mistake_in_the_configuration_is_told_here_too(cli):
    result = cli("doctor", "trainer.threads=-1")
    assert result.code == 2
    assert "trainer.threads=-1 does not fit" in result.err


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom medtransfer.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'mlflow', 'pytorch_lightning', 'timm', 'pandas',"
        " 'numpy', 'pydantic', 'rich'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: medtransfer" in done.stdout
    for command in ("train", "pretrain", "list", "doctor", "report", "ui"):
        assert f"\n    {command} " in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy: []"

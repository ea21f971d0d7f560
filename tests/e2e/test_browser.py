"""What a browser shows: the report without a network, and MLflow's pages with a study in them."""

import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

CHROMIUM = shutil.which("chromium")
STUDY = """# @package _global_
defaults:
  - none@study
  - override /hydra/sweeper: study

study:
  name: browsed
  arms:
    FE: [strategy=feature_extraction]
    FT: [strategy=fine_tuning]
  axes:
    dataset.fraction: [0.5, 1.0]
  seeds: 2
  budget: {trials: 2}
  primary: {a: FT, b: FE}
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture
def study(cli, tiny, tmp_path, home):
    """Run a small study, and return the program's home."""
    folder = tmp_path / "conf"
    (folder / "study").mkdir(parents=True)
    (folder / "study" / "own.yaml").write_text(STUDY)
    steps = ("trainer.max_epochs=100", "trainer.max_steps=2")
    done = cli("train", "-m", "--config-dir", folder, "study=own", *tiny, *steps)
    assert done.code == 0, done.err
    return home


@pytest.fixture
def browse(tmp_path):
    """Return a function that opens an address, and gives the page and what its console said."""

    def run(address: str, *flags: str):
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=30000",
            f"--user-data-dir={tmp_path}/profile",
            "--window-size=1280,2000",
            *flags,
            "--dump-dom",
            address,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return run


@pytest.fixture
def pages(study, socket_enabled):
    """Serve MLflow's pages on the study, and return their address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "medtransfer", "ui", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        for _ in range(240):
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_the_report_shows_verdict_and_plots_without_a_network(study, browse):
    (report,) = study.glob("reports/*/report.html")
    page, console = browse(report.as_uri(), "--host-resolver-rules=MAP * ~NOTFOUND")
    assert console == []
    told = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "FT" in told
    assert "95 % CI" in told
    for heading in ("Primary contrast", "Arms", "Learning curves", "Tuning", "Budget"):
        assert heading in told
    assert page.count("<svg") >= 8
    assert not re.findall(r"(?:src|href)=\"(?!#|data:)[^\"]*\"", page)


def test_mlflow_opens_at_the_study_with_its_nested_runs(pages, browse):
    page, console = browse(pages)
    assert not [line for line in console if ":ERROR:" in line or "Uncaught" in line]
    assert "browsed" in page
    assert "Child runs" in page
    assert re.search(r"F[ET] @ dataset\.fraction=(0\.5|1\.0)", page)

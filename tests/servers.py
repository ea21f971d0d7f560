"""Servers of a test's own: PostgreSQL, MLflow's tracking server, and a model that it serves.

Each is started as a process, is reachable from this machine alone, and is gone with its `with`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import pytest

LOCALHOST = "127.0.0.1"
PROGRAMS = Path("/usr/lib/postgresql")  # Debian's, which are not on the PATH
SECONDS = 90.0  # for a server to answer: machines are shared


class Postgres(NamedTuple):
    """A PostgreSQL cluster that runs: the URI of its database, and its first process."""

    uri: str
    pid: int


@contextmanager
def postgres(connections: int = 100) -> Iterator[Postgres]:
    """Start a PostgreSQL cluster with an empty database.

    The cluster lies in a temporary folder and keeps nothing safe. Since PostgreSQL refuses root, it
    runs as the user `postgres` then. The calling test is skipped where the software is missing.

    Args:
        connections: How many it takes at once.
    """
    programs = _postgres_programs()
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(name, "postgres", "postgres")
        folder, port = Path(name, "cluster"), free_port()
        subprocess.run(
            [programs / "initdb", "-D", folder, "-A", "trust", "-U", "tester", "-N", "-E", "UTF8"],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=name,
            **user,
        )
        settings = {
            "listen_addresses": LOCALHOST,
            "port": port,
            "unix_socket_directories": "",
            "max_connections": connections,
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        told = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with Path(name, "log").open("w") as log:
            process = subprocess.Popen(
                [programs / "postgres", "-D", folder, *told],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=name,
                **user,
            )
        try:
            _wait(process, partial(_accepts, port), Path(name, "log"))
            # the driver is named: SQLAlchemy takes another one where it is not
            uri = f"postgresql+psycopg2://tester@{LOCALHOST}:{port}/postgres"
            yield Postgres(uri, process.pid)
        finally:
            process.send_signal(signal.SIGQUIT)  # at once, without waiting for clients
            process.wait()


class TrackingServer:
    """An MLflow server on a SQLite file, that can be killed and started again.

    Args:
        folder: Holds the file, the artifacts and the log.
        store: Another backend store.
        workers: Processes that answer.

    Attributes:
        uri: Where it is, from start to start.
        backend: Its backend store's URI.
    """

    def __init__(self, folder: Path, store: str | None = None, workers: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://{LOCALHOST}:{self.port}"
        self.backend = store or f"sqlite:///{folder}/server.db"
        self.workers = workers
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", LOCALHOST, "--port", self.port),
            *("--backend-store-uri", self.backend, "--workers", self.workers),
            *("--artifacts-destination", self.folder / "artifacts"),
        ]
        path = self.folder / "server.log"
        with path.open("a") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                start_new_session=True,  # so that its workers can be killed with it
            )
        _wait(self.process, self.answers, path)

    def kill(self) -> None:
        """End it and its workers where they stand, as a power cut would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def answers(self) -> bool:
        """Whether somebody is at home."""
        return _healthy(self.uri)


@contextmanager
def model_server(model: Path) -> Iterator[str]:
    """Serve a model of MLflow's, in the environment of the test, and give its address."""
    address, log = f"http://{LOCALHOST}:{free_port()}", model.with_name("serving.log")
    command = [
        *(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", model),
        *("--env-manager", "local", "--host", LOCALHOST, "--port", address.rpartition(":")[2]),
    ]
    with log.open("w") as told:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=told,
            stderr=subprocess.STDOUT,
            # the programs beside this Python are what it starts
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            start_new_session=True,
        )
    try:
        _wait(process, partial(_healthy, address), log)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def tracking_server(folder: Path, store: str | None = None) -> Iterator[TrackingServer]:
    """Start an MLflow server, and give it."""
    server = TrackingServer(folder, store)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return int(probe.getsockname()[1])


def _postgres_programs() -> Path:
    found = sorted(PROGRAMS.glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed")
    return found[-1].parent


def _healthy(address: str) -> bool:
    try:
        with urlopen(f"{address}/health", timeout=1) as reply:
            return bool(reply.status == 200)
    except (URLError, OSError):
        return False


def _accepts(port: int) -> bool:
    import psycopg2

    try:
        psycopg2.connect(host=LOCALHOST, port=port, user="tester", dbname="postgres").close()
    except psycopg2.OperationalError:
        return False
    return True


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not come up:\n{log.read_text()[-4000:]}")
        time.sleep(0.05)

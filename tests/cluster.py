"""Clusters of a test's own, all on this machine: a Slurm of one node, a Ray of two.

Each consists of processes that are gone with its `with`, and keeps its files in its own folder.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from servers import LOCALHOST, free_port

SECONDS = 120.0  # for a cluster to be ready: machines are shared
CORES = 2  # that each cluster believes to have
DAEMONS = ("munged", "slurmctld", "slurmd")
SLURM = """\
ClusterName=own
SlurmctldHost={host}({address})
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=60
NodeName={host} NodeAddr={address} CPUs={cores} RealMemory=8000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """Start Slurm with one node, without accounting.

    The calling test is skipped where the software is missing, or its user is not root.

    Yields:
        The environment variables by which sbatch and the others find it.
    """
    programs = {
        name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in DAEMONS
    }
    if None in programs.values():
        pytest.skip("Slurm and munge are not installed")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons want to be root")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        folder = Path(name)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        config = folder / "slurm.conf"
        config.write_text(
            SLURM.format(
                host=socket.gethostname().partition(".")[0],
                address=LOCALHOST,
                ports=(free_port(), free_port()),
                folder=folder,
                cores=CORES,
            )
        )
        munge = [f"--{part}-file={folder}/munge.{part}" for part in ("key", "pid", "log", "seed")]
        commands = [
            # --force: a temporary folder is not where munge would have its files
            [
                programs["munged"],
                "--foreground",
                "--force",
                f"--socket={folder}/munge.socket",
                *munge,
            ],
            [programs["slurmctld"], "-D"],
            [programs["slurmd"], "-D"],
        ]
        around = {"SLURM_CONF": str(config)}
        with _processes(folder) as start:
            start(commands[0], {}, (folder / "munge.socket").exists)
            for command in commands[1:]:
                start(command, around, lambda: True)
            _wait(lambda: _says(["sinfo", "-h", "-o", "%T"], around) == "idle", folder)
            try:
                yield around
            finally:
                _says(["scancel", "--user=root"], around)
                _wait(lambda: not _says(["squeue", "-h"], around), folder)


@contextmanager
def ray_cluster() -> Iterator[dict[str, str]]:
    """Start Ray with two nodes of one core each.

    Yields:
        The environment variables by which programs find it and are let in.
    """
    pytest.importorskip("ray", reason="Ray is not installed")
    node = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"),
        *("--object-store-memory=100000000", "--disable-usage-stats"),
    ]
    around = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # short: Ray puts sockets there, whose paths have a length that the system limits
    with tempfile.TemporaryDirectory(prefix="ray-") as name, _processes(Path(name)) as start:
        log = Path(name, "log")

        def up(nodes: int) -> bool:
            return log.read_text().count("Ray runtime started") == nodes

        head = [f"--port={free_port()}", f"--temp-dir={name}", "--include-dashboard=false"]
        start([*node, "--head", *head], around, lambda: up(1))
        (address,) = re.findall(r"--address='([^']+)'", log.read_text())
        start([*node, f"--address={address}"], around, lambda: up(2))
        yield around | {"RAY_ADDRESS": address}


@contextmanager
def _processes(folder: Path) -> Iterator[Callable[..., None]]:
    """Give a function that starts a process and waits for it; they end in the reverse order."""
    running: list[subprocess.Popen[bytes]] = []

    def start(command: Sequence[str], around: Mapping[str, str], ready: Callable[[], bool]) -> None:
        with (folder / "log").open("a") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | around,
                start_new_session=True,  # so that what it starts can be ended with it
            )
        running.append(process)
        _wait(lambda: ready() or process.poll() is not None, folder)
        if process.poll() is not None:
            raise RuntimeError(f"the cluster did not come up:\n{(folder / 'log').read_text()}")

    try:
        yield start
    finally:
        for process in reversed(running):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _says(command: Sequence[str], around: Mapping[str, str]) -> str:
    """Return what a program prints; nothing where it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | around
    )
    return "" if done.returncode else done.stdout.strip()


def _wait(ready: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the cluster did not come up:\n{(folder / 'log').read_text()}")
        time.sleep(0.2)

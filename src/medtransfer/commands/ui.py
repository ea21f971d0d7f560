"""MLflow's pages on the store, on this machine only."""

from __future__ import annotations

import os
import sys

from mlflow import MlflowClient

from medtransfer import console
from medtransfer.tracking.runs import TAG
from medtransfer.tracking.store import open_client


def serve(uri: str, port: int) -> None:
    """Say where the pages are, and become MLflow's server.

    Raises:
        StoreError: If there is no store.
    """
    console.say(f"{address(open_client(uri), port)}  (Ctrl+C ends it)")
    sys.stdout.flush()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    # not on the command line, where every user of the machine could read its password
    os.execve(sys.executable, command, os.environ | {"MLFLOW_BACKEND_STORE_URI": uri})


def address(client: MlflowClient, port: int) -> str:
    """Return the address of the newest study, or of all experiments where there is none."""
    start = f"http://127.0.0.1:{port}"
    experiments = [each.experiment_id for each in client.search_experiments()]
    studies = client.search_runs(
        experiments,
        f"tags.`{TAG}phase` = 'study'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not studies:
        return start
    run = studies[0].info
    return f"{start}/#/experiments/{run.experiment_id}/runs/{run.run_id}"

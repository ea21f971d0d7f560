"""The MLflow store: where it is, and that it exists before anyone writes to it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from filelock import FileLock

from medtransfer.errors import StoreError
from medtransfer.secrets import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
KNOCK_SECONDS = 5.0
KIND = {"mlflow.experimentKind": "custom_model_development"}  # what MLflow's pages show first


@dataclass(frozen=True)
class Store:
    """A tracking store and the experiment that runs go to.

    Attributes:
        uri: MLflow's tracking URI.
        client: MLflow's own client for it.
        experiment_id: The experiment, created if it was not there.
    """

    uri: str
    client: MlflowClient
    experiment_id: str


def resolve_uri(uri: str | None, output: Path) -> str:
    """Return the given URI, else the environment's, else that of a SQLite file in `output`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{output.resolve()}/mlflow.db"


def open_client(uri: str) -> MlflowClient:
    """Return a client of a store that exists.

    Raises:
        StoreError: If there is nothing at the URI or it does not answer.
    """
    path = _sqlite_path(uri)
    if path is not None and not path.is_file():
        raise StoreError(
            f"there is no tracking store at '{redact(uri)}'",
            remedy="run a trial first, or give tracking.uri=URI",
        )
    with _reachable(uri):
        _knock(uri)
        client = _client(uri)
        client.search_experiments(max_results=1)
    return client


def open_store(uri: str, experiment: str, artifacts: str | None) -> Store:
    """Return the store at `uri`, created with its experiment if it was not there.

    Several processes that create one SQLite file at once break it, so creation holds a lock.

    Args:
        uri: MLflow's tracking URI.
        experiment: Name of the experiment.
        artifacts: Where its artifacts lie; None: beside a SQLite file, else the server's choice.

    Raises:
        StoreError: If the store cannot be written or reached.
    """
    path = _sqlite_path(uri)
    with _reachable(uri):
        if path is None:
            _knock(uri)
            client = _client(uri)
            return Store(uri, client, _experiment(client, experiment, artifacts))
        path.parent.mkdir(parents=True, exist_ok=True)
        location = artifacts or str(path.resolve().parent / "artifacts")
        with FileLock(path.with_suffix(".lock")):
            client = _client(uri)
            return Store(uri, client, _experiment(client, experiment, location))


def _knock(uri: str) -> None:
    """Connect to a server once: MLflow's client would retry for minutes where there is none."""
    server = urlsplit(uri)
    if server.scheme in {"http", "https"} and server.hostname:
        port = server.port or {"http": 80, "https": 443}[server.scheme]
        socket.create_connection((server.hostname, port), timeout=KNOCK_SECONDS).close()


def _client(uri: str) -> MlflowClient:
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)  # migrations are not the user's news
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name, artifact_location=artifacts, tags=KIND)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _sqlite_path(uri: str) -> Path | None:
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


@contextmanager
def _reachable(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OSError, MlflowException, SQLAlchemyError) as error:
        reason = redact(str(error).strip().splitlines()[0] if str(error) else type(error).__name__)
        raise StoreError(
            f"the tracking store '{redact(uri)}' cannot be used: {reason}",
            remedy="make it writable and reachable, or give another tracking.uri",
        ) from None

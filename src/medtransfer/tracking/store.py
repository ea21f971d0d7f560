"""The MLflow store: where it is, and that it exists before anyone writes to it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
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
LOCK = 7_316_342  # any number that no other program takes
KIND = {"mlflow.experimentKind": "custom_model_development"}  # what MLflow's pages show first


@dataclass(frozen=True)
class Store:
    """A tracking store and the experiment that runs go to; it is spoken to when it is needed.

    Attributes:
        uri: MLflow's tracking URI.
        experiment_id: The experiment.
        spool: The folder where what was not delivered yet lies.
    """

    uri: str
    experiment_id: str
    spool: Path

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's own client for it."""
        return _client(self.uri)

    def knock(self) -> None:
        """Connect to a server once: MLflow's client would retry for long where there is none.

        Raises:
            OSError: If it does not answer.
        """
        _knock(self.uri)


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


def open_store(uri: str, experiment: str, artifacts: str | None, output: Path) -> Store:
    """Return the store at `uri`, created with its experiment if it was not there.

    Several processes that create the tables of one database at once break it, so creation holds a
    lock.

    Args:
        uri: MLflow's tracking URI.
        experiment: Name of the experiment.
        artifacts: Where its artifacts lie; None: beside a SQLite file, else the server's choice.
        output: The folder for what was not delivered yet.

    Raises:
        StoreError: If the store cannot be written or reached.
    """
    path = _sqlite_path(uri)
    location = artifacts
    with _reachable(uri):
        _knock(uri)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            location = artifacts or str(path.resolve().parent / "artifacts")
        with _alone(uri):
            if path is not None and not path.exists():
                _create_whole(path)
            experiment_id = _experiment(_client(uri), experiment, location)
    return Store(uri, experiment_id, output / "spool")


def _create_whole(path: Path) -> None:
    """Create a SQLite store: whoever is killed while its tables are made leaves no half of it."""
    scratch = path.with_suffix(".new")
    for left in (scratch, scratch.with_name(f"{scratch.name}-journal")):
        left.unlink(missing_ok=True)
    _client(f"{SQLITE}{scratch}").search_experiments(max_results=1)
    scratch.replace(path)


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Keep all others from creating the tables of the same database meanwhile."""
    path = _sqlite_path(uri)
    if path is not None:
        with FileLock(path.with_suffix(".lock")):
            yield
    elif uri.startswith("postgresql"):
        from sqlalchemy import NullPool, create_engine, text

        # the server's own lock holds between machines, and ends with the process that holds it
        engine = create_engine(uri, poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
            yield
    else:
        yield


def _knock(uri: str) -> None:
    """Connect to a server once: MLflow's client would retry for minutes where there is none."""
    server = urlsplit(uri)
    if server.scheme in {"http", "https"} and server.hostname:
        port = server.port or {"http": 80, "https": 443}[server.scheme]
        socket.create_connection((server.hostname, port), timeout=KNOCK_SECONDS).close()


def _client(uri: str) -> MlflowClient:
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)  # migrations are not the user's news
    logging.getLogger("mlflow.store.db").setLevel(logging.CRITICAL)  # what it raises is told here
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts, tags=KIND)
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
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
    except ModuleNotFoundError as error:  # of a database that nobody has asked for here
        raise StoreError(
            f"the tracking store '{redact(uri)}' needs the module '{error.name}'",
            remedy="for PostgreSQL: pip install 'medtransfer[postgresql]', and"
            " tracking.uri=postgresql+psycopg2://USER@HOST/DATABASE",
        ) from None
    except (OSError, ValueError, MlflowException, SQLAlchemyError) as error:  # of no sound URI
        reason = redact(str(error).strip().splitlines()[0] if str(error) else type(error).__name__)
        raise StoreError(
            f"the tracking store '{redact(uri)}' cannot be used: {reason}",
            remedy="make it writable and reachable, or give another tracking.uri",
        ) from None

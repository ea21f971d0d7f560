"""What a store holds of a study: its runs as rows, and the tables that its trials wrote."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from medtransfer.errors import StoreError
from medtransfer.tracking.runs import PARENT
from medtransfer.tracking.usage import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mlflow import MlflowClient
    from mlflow.entities import Run

FOLDER = "predictions"
METRIC, TAG = "metrics.", "tags."


def row(run: Run) -> dict[str, Any]:
    """Return a run as one row, its columns named as `mlflow.search_runs` names them.

    Returns:
        `run_id`, `status`, `start_time` (milliseconds), `metrics.<name>` and `tags.<name>`.
    """
    return {
        "run_id": run.info.run_id,
        "status": run.info.status,
        "start_time": run.info.start_time,
        **{
            f"{METRIC}{name}": value
            for name, value in run.data.metrics.items()
            if not name.startswith(PREFIX)  # which tell of the machine and not of the trial
        },
        **{f"{TAG}{name}": value for name, value in run.data.tags.items()},
    }


def under(prefix: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row holds under a prefix, without it; an empty field of a table is nothing."""
    return {
        name.removeprefix(prefix): value
        for name, value in entry.items()
        if name.startswith(prefix) and value is not None and value == value  # noqa: PLR0124
    }


def search(client: MlflowClient, query: str, *, deleted: bool = False) -> list[Run]:
    """Return the runs of all experiments that match, newest first.

    Args:
        client: Of the store.
        query: In MLflow's language.
        deleted: Only those that were deleted; otherwise only those that were not.
    """
    from mlflow.entities import ViewType

    experiments = [each.experiment_id for each in _pages(client.search_experiments)]
    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    order = ["attributes.start_time DESC"]
    ask = functools.partial(client.search_runs, experiments, query, view, order_by=order)
    return list(_pages(ask))


def children(
    client: MlflowClient, parents: Sequence[str], *, deleted: bool = False, since: int = 0
) -> list[Run]:
    """Return the trials that are nested in these runs; what sums them up is none.

    Args:
        client: Of the store.
        parents: Ids of the studies' own runs.
        deleted: Only those that were deleted; otherwise only those that were not.
        since: Only those that began later, in milliseconds.
    """
    told = f"attributes.start_time > {since} and tags.`medtransfer.phase` != 'summary'"
    return [
        run
        for parent in parents
        for run in search(client, f"{told} and tags.`{PARENT}` = '{parent}'", deleted=deleted)
    ]


def document(client: MlflowClient, run_id: str, name: str) -> Any:
    """Return what a JSON artifact of a run holds; None where it has none or a damaged one."""
    from mlflow.exceptions import MlflowException

    folder = name.rpartition("/")[0] or None
    try:
        there = {each.path for each in client.list_artifacts(run_id, folder)}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # as of a run that was collected
            raise
        return None
    if name not in there:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return json.loads(Path(client.download_artifacts(run_id, name, scratch)).read_bytes())
        except ValueError:
            return None


def tables(client: MlflowClient, run_id: str) -> list[str]:
    """Return the names of the tables that a run wrote, `test` for `predictions/test.parquet`."""
    ending = ".parquet"
    paths = [each.path for each in client.list_artifacts(run_id, FOLDER)]
    return [p.rpartition("/")[2].removesuffix(ending) for p in paths if p.endswith(ending)]


def table(client: MlflowClient, run_id: str, name: str) -> pd.DataFrame:
    """Read a table of a run.

    Raises:
        StoreError: If it is damaged.
    """
    path = f"{FOLDER}/{name}.parquet"
    with tempfile.TemporaryDirectory() as scratch:
        local = client.download_artifacts(run_id, path, scratch)
        try:
            return pd.read_parquet(local)
        except (OSError, ValueError) as error:  # pyarrow's errors are of both kinds
            raise StoreError(
                f"{path} of run {run_id} cannot be read: {error}",
                remedy="run the trial again: study.resume=true study.retry_failed=true",
            ) from error


def _pages(search: Callable[..., Any]) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token)
        yield from page
        token = page.token
        if not token:
            return

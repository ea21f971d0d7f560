"""Where a study's rows and tables are read from: its ledger, or the store."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from medtransfer.errors import StoreError
from medtransfer.tracking import records
from medtransfer.tracking.ledger import COUNT
from medtransfer.tracking.runs import PARENT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from medtransfer.tracking.ledger import Ledger

    Row = Mapping[str, Any]
    Read = Callable[[str, str], pd.DataFrame | None]


def from_ledger(
    client: MlflowClient, parents: Sequence[Run], ledger: Ledger
) -> tuple[list[Row], Read] | None:
    """Return the rows of a study's runs and where to read tables; None where the ledger lacks one.

    It is whole where the parent runs say so and nothing has begun since; runs that were deleted
    from the store since then do not count.
    """
    try:
        rows: list[Row] = ledger.trials().to_dict("records")  # type: ignore[assignment]
    except StoreError:  # the store holds the same
        return None
    if not rows:
        return None
    ids = [run.info.run_id for run in parents]
    held = [row.get(f"{records.TAG}{PARENT}") for row in rows]
    told = {run.info.run_id: run.data.tags.get(COUNT) for run in parents}
    if any(told[each] != str(held.count(each)) for each in ids):
        return None
    newest = max(row["start_time"] for row in rows)
    if records.children(client, ids, since=newest):
        return None
    deleted = {run.info.run_id for run in records.children(client, ids, deleted=True)}
    return [row for row in rows if row["run_id"] not in deleted], ledger.predictions


def from_store(client: MlflowClient, parents: Sequence[Run]) -> tuple[list[Row], Read]:
    """Return the rows of a study's runs, and where to read their tables."""
    runs = records.children(client, [run.info.run_id for run in parents])
    return [records.row(run) for run in runs], in_store(client)


def in_store(client: MlflowClient) -> Read:
    """Return what reads a table of a run by its name."""
    names = functools.cache(functools.partial(records.tables, client))

    def read(run_id: str, name: str) -> pd.DataFrame | None:
        return records.table(client, run_id, name) if name in names(run_id) else None

    return read

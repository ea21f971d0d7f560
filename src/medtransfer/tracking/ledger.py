"""The ledger: all results of a study in a few Parquet files beside the store.

MLflow takes milliseconds to search for a run and tens of them to fetch an artifact, which is
minutes for a study of thousands of trials. The ledger holds the same rows and tables, and can
always be made anew from the store, which stays the truth.

    trials.parquet       a row a trial, with the columns of `mlflow.search_runs`
    cases.parquet        the predictions of all trials, with `run_id` and `table` in front
    detections.parquet   what detectors found, likewise
    parts/<run_id>/      trials that ended since these three were written
"""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.parquet as pq
from filelock import FileLock

from medtransfer.errors import StoreError
from medtransfer.tracking import records
from medtransfer.tracking.parquet import Tables, inode, replacing, write

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    from mlflow import MlflowClient

SQLITE = "sqlite:///"
COUNT = "medtransfer.ledger"
"""The parent run's tag: how many of its trials the ledger holds, set once all have ended."""

_FILES = ("cases", "detections")
_ROW = "row.json"


def ledger_path(uri: str, output: Path, study_id: str) -> Path:
    """Return the folder of a study's ledger: beside a SQLite file, else under `output`."""
    beside = Path(uri.removeprefix(SQLITE)).parent if uri.startswith(SQLITE) else output
    return beside / "ledger" / study_id


class Ledger:
    """The results of one study, safe to be written by several processes at once.

    Args:
        folder: Where it lies; need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts = folder / "parts"
        self._open: dict[str, Tables] = {}

    def append(self, row: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> None:
        """Add a trial that has ended; one that is there already is replaced.

        Args:
            row: What `records.row` makes of its run.
            tables: Its tables by the names of their files, such as `test` or `detections`.
        """
        self._parts.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".", dir=self._parts))
        try:
            for name, frame in tables.items():
                frame.to_parquet(scratch / f"{name}.parquet", index=False)
            (scratch / _ROW).write_text(json.dumps(dict(row)), encoding="utf-8")
            target = self._parts / row["run_id"]
            with self._lock():  # else a part could be replaced while it is merged
                shutil.rmtree(target, ignore_errors=True)
                scratch.replace(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def consolidate(self) -> None:
        """Move all parts into the files; each file is replaced whole, the parts go last."""
        if not self._parts.is_dir():
            return
        with self._lock():
            parts = self._pending()
            if not parts:
                return
            for file in _FILES:
                self._merge(file, parts)
            frame = pd.DataFrame.from_records(self._rows(parts))
            frame = frame.reindex(columns=sorted(frame, key=lambda name: ("." in name, name)))
            with replacing(self.folder / "trials.parquet") as scratch:
                frame.to_parquet(scratch, index=False)
            for part in parts:
                shutil.rmtree(part)
        self._open.clear()

    def trials(self) -> pd.DataFrame:
        """Return a row for each trial, see `records.row`; a field that a trial lacks is null.

        Raises:
            StoreError: If a file is damaged.
        """
        try:
            return pd.DataFrame.from_records(self._rows(self._pending()))
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error

    def predictions(self, run_id: str, table: str) -> pd.DataFrame | None:
        """Return a table of a trial; None where it has none of this name.

        Raises:
            StoreError: If a file is damaged.
        """
        part = self._parts / run_id
        try:
            if (part / _ROW).is_file():
                with suppress(FileNotFoundError):  # its trial has none, or it was merged just now
                    return pd.read_parquet(part / f"{table}.parquet")
            return self._tables(_file(table)).frame(run_id, table)
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error

    def catch_up(self, client: MlflowClient, parents: Sequence[str]) -> None:
        """Take over from the store what is not here yet, and say in the store that all is here.

        Called at the end of a study. A trial that died without a word is found here too.

        Args:
            client: Of the store.
            parents: The study's parent runs.
        """
        frame = self.trials()
        ended = set() if frame.empty else set(frame["run_id"][frame["status"] != "RUNNING"])
        for parent in parents:
            runs = records.children(client, [parent])
            for run in runs:
                if run.info.run_id not in ended:
                    names = records.tables(client, run.info.run_id)
                    tables = {n: records.table(client, run.info.run_id, n) for n in names}
                    self.append(records.row(run), tables)
            client.set_tag(parent, COUNT, str(len(runs)))
        self.consolidate()

    def rebuild(self, client: MlflowClient, parents: Sequence[str]) -> None:
        """Make the ledger anew from the store, in time linear in the number of trials."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.catch_up(client, parents)

    def _lock(self) -> FileLock:
        return FileLock(self.folder / ".lock")

    def _damaged(self, error: Exception) -> StoreError:
        return StoreError(
            f"the ledger '{self.folder}' cannot be read: {error}",
            remedy="delete it: the store holds the same, and it is made anew",
        )

    def _pending(self) -> list[Path]:
        if not self._parts.is_dir():
            return []
        return sorted(each for each in self._parts.iterdir() if not each.name.startswith("."))

    def _rows(self, parts: Sequence[Path]) -> list[dict[str, Any]]:
        # Parts first: what is merged meanwhile is in the file by then.
        added = {}
        for part in parts:
            with suppress(FileNotFoundError):
                added[part.name] = json.loads((part / _ROW).read_text(encoding="utf-8"))
        path = self.folder / "trials.parquet"
        old = pq.read_table(path).to_pylist() if path.is_file() else []
        return list({**{entry["run_id"]: entry for entry in old}, **added}.values())

    def _tables(self, file: str) -> Tables:
        """Return one of the files as it is now; another process may have replaced it."""
        path = self.folder / f"{file}.parquet"
        known = self._open.get(file)
        if known is None or known.inode != inode(path):
            known = self._open[file] = Tables(path)
        return known

    def _merge(self, file: str, parts: Sequence[Path]) -> None:
        """Write one of the files anew: what it holds of other trials, and the parts."""
        new = {part.name for part in parts}
        old = Tables(self.folder / f"{file}.parquet")
        kept = [key for key in old if key[0] not in new]
        paths = (path for part in parts for path in sorted(part.glob("*.parquet")))
        added = {(path.parent.name, path.stem): path for path in paths if _file(path.stem) == file}
        if not added and len(kept) == len(list(old)):
            return
        schemas = {key: old.schema(*key) for key in kept}
        schemas |= {key: pq.read_schema(path) for key, path in added.items()}

        def read(run_id: str, table: str) -> pa.Table:
            path = added.get((run_id, table))
            return old.table(run_id, table) if path is None else pq.read_table(path)

        with replacing(self.folder / f"{file}.parquet") as scratch:
            write(scratch, schemas, read)


def _file(table: str) -> str:
    return "detections" if table.endswith("detections") else "cases"

"""Many small tables in one Parquet file, each read alone.

A table of a run is one row group. Tables of one file may differ in their columns and types, as
those of trials on different datasets do; the file has the columns of all, and each table comes
back as it was.
"""

from __future__ import annotations

import base64
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pandas as pd

    Key = tuple[str, str]

_INDEX = b"medtransfer.index"


class Tables:
    """The tables of a file, by run and name.

    Args:
        path: The file; one that is not there has no tables.

    Attributes:
        inode: Tells the file from one that has replaced it.
    """

    def __init__(self, path: Path) -> None:
        self.inode = inode(path)
        self._schemas: list[pa.Schema] = []
        self._at: dict[Key, tuple[int, int | None]] = {}
        if self.inode is None:
            return
        self._file = pq.ParquetFile(path)
        index = json.loads(self._file.metadata.metadata[_INDEX])
        self._schemas = [_schema(text) for text in index["schemas"]]
        self._at = {(run, name): (schema, at) for run, name, schema, at in index["tables"]}

    def __iter__(self) -> Iterator[Key]:
        """Give the run and the name of each table, in the order of the file."""
        return iter(self._at)

    def schema(self, run_id: str, name: str) -> pa.Schema:
        """Return a table's columns as they were written."""
        return self._schemas[self._at[run_id, name][0]]

    def table(self, run_id: str, name: str) -> pa.Table:
        """Return a table as it was written."""
        schema, (_, at) = self.schema(run_id, name), self._at[run_id, name]
        if at is None:
            return schema.empty_table()
        found = self._file.read_row_group(at, columns=schema.names, use_threads=False)
        return found.select(schema.names).cast(schema)

    def frame(self, run_id: str, name: str) -> pd.DataFrame | None:
        """Return a table, or None where there is none of this name."""
        if (run_id, name) not in self._at:
            return None
        found: pd.DataFrame = self.table(run_id, name).to_pandas(use_threads=False)
        return found


def write(path: Path, schemas: Mapping[Key, pa.Schema], read: Callable[..., pa.Table]) -> None:
    """Write a file of tables, one at a time.

    Args:
        path: Where to.
        schemas: The columns of each table, by run and name.
        read: From run and name to the table.
    """
    distinct = {schema.serialize().to_pybytes(): schema for schema in schemas.values()}
    number = {content: k for k, content in enumerate(distinct)}
    whole = _union(list(distinct.values()))
    tables, written = [], 0
    with pq.ParquetWriter(path, whole, compression="zstd", write_statistics=False) as writer:
        for (run, name), schema in schemas.items():
            table = read(run, name)
            at = written if table.num_rows else None
            if table.num_rows:
                writer.write_table(_widened(table, run, name, whole), table.num_rows)
                written += 1
            tables.append([run, name, number[schema.serialize().to_pybytes()], at])
        texts = [base64.b64encode(content).decode() for content in distinct]
        index = json.dumps({"schemas": texts, "tables": tables})
        writer.add_key_value_metadata({_INDEX: index})


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` once it is whole."""
    number, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    os.close(number)
    scratch = Path(name)
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def inode(path: Path) -> int | None:
    """Return what tells a file from its successor; None where there is none."""
    return path.stat().st_ino if path.is_file() else None


def _schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def _union(schemas: list[pa.Schema]) -> pa.Schema:
    """Return `run_id`, `table` and every column of any schema, as text where types disagree."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for field in schema.remove_metadata():
            known = fields.get(field.name, field)
            try:
                unified = pa.unify_schemas(
                    [pa.schema([known]), pa.schema([field])], promote_options="permissive"
                )
                fields[field.name] = unified.field(0)
            except pa.ArrowTypeError:
                fields[field.name] = pa.field(field.name, pa.large_string())
    own = [pa.field("run_id", pa.string()), pa.field("table", pa.string())]
    return pa.schema([*own, *(field.with_nullable(True) for field in fields.values())])


def _widened(table: pa.Table, run: str, name: str, whole: pa.Schema) -> pa.Table:
    fixed = {"run_id": run, "table": name}
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.repeat(pa.scalar(fixed.get(field.name), field.type), table.num_rows)
        for field in whole
    ]
    return pa.table(columns, schema=whole)

"""Tables in files, cell by cell as text, each with the row that a spreadsheet shows it in."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtransfer.errors import DataError

MISSING = frozenset({"", "nan", "NaN"})
"""Texts of a cell without a value; the last two are how programs write it."""


@dataclass(frozen=True)
class Table:
    """Some columns of a table.

    Attributes:
        path: The file.
        columns: Their cells by name, (n,) each, without blanks at the ends; missing ones are empty.
        rows: Number of each row, (n,); the header is row 1.
    """

    path: Path
    columns: Mapping[str, Sequence[str]]
    rows: Sequence[int]

    def error(self, index: int, column: str, problem: str, remedy: str) -> DataError:
        """Return an error that names row and column of one cell."""
        where = f"row {self.rows[index]}, column '{column}' of '{self.path}'"
        return DataError(f"{where}: {problem}", remedy=remedy)

    def require(self, column: str) -> Sequence[str]:
        """Return a column of which no cell may be empty.

        Raises:
            DataError: If one is; it names the row.
        """
        cells = self.columns[column]
        if "" in cells:
            raise self.error(
                cells.index(""), column, "the cell is empty", "fill it, or remove the row"
            )
        return cells


def read_table(path: Path, wanted: Mapping[str, str]) -> Table:
    """Read some columns of a CSV, TSV or Parquet file; rows without any value are passed over.

    Text is UTF-8. A CSV may have semicolons, as spreadsheets write them in many countries. Nothing
    is taken for a number, so that `007` stays what it is.

    Args:
        path: The file.
        wanted: The key that asks for it, for messages, by column.

    Raises:
        DataError: If the file cannot be read, has no such column or no row, or has columns of one
            name or rows of another length than its header.
    """
    readers = {".csv": _text, ".tsv": _text, ".tab": _text, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"'{path}' is no table that can be read",
            choices=sorted(readers),
            remedy="save it as CSV in UTF-8",
        )
    columns: dict[str, list[str]] = {name: [] for name in wanted}
    numbers: list[int] = []
    known: dict[str, str] = {}  # equal cells share their memory
    for number, row in reader(path, wanted):
        numbers.append(number)
        for name, cell in zip(columns, row, strict=True):
            text = cell.strip()
            columns[name].append("" if text in MISSING else known.setdefault(text, text))
    if not numbers:
        raise DataError(
            f"'{path}' has no row below its header", remedy="give it one for each image"
        )
    return Table(path, columns, numbers)


def _chosen(path: Path, header: Sequence[str], wanted: Mapping[str, str]) -> list[int]:
    """Return the place of each wanted column."""
    names = [name.strip() for name in header]
    for name, count in Counter(names).items():
        if count > 1 and name:
            raise DataError(
                f"'{path}' has {count} columns named '{name}' in row 1",
                remedy="give every column a name of its own",
            )
    for name, key in wanted.items():
        if name not in names:
            raise DataError(
                f"'{path}' has no column '{name}' in row 1",
                value=name,
                choices=[name for name in names if name],
                remedy=f"name one of them in {key}",
            )
    return [names.index(name) for name in wanted]


def _text(path: Path, wanted: Mapping[str, str]) -> Iterator[tuple[int, list[str]]]:
    """Yield number and wanted cells of each row of a CSV or TSV file."""
    row = 0
    try:
        # a spreadsheet may begin its text with a mark of the encoding
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_delimiter(path, file.readline()), strict=True)
            file.seek(0)
            header = next(reader, [])
            if not any(header):
                raise DataError(f"'{path}' is empty", remedy="its first row names the columns")
            places = _chosen(path, header, wanted)
            row = 1
            for row, cells in enumerate(reader, start=2):
                if len(cells) == len(header):
                    if any(cells):
                        yield row, [cells[i] for i in places]
                elif any(cells):
                    raise DataError(
                        f"row {row} of '{path}' has {len(cells)} cells, and its header"
                        f" {len(header)}",
                        remedy="mend the row; a cell that holds the delimiter stands in quotes",
                    )
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise DataError(
            f"row {_undecodable(path)} of '{path}' is not text in UTF-8",
            remedy="save the table as CSV in UTF-8",
        ) from None
    except csv.Error as error:
        raise DataError(
            f"row {row + 1} of '{path}' cannot be read: {error}",
            remedy="mend the row, above all its quotes",
        ) from None


def _delimiter(path: Path, header: str) -> str:
    if path.suffix.lower() != ".csv":
        return "\t"
    return ";" if header.count(";") > header.count(",") else ","


def _undecodable(path: Path) -> int:
    """Return the first line that is not UTF-8."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return content.count(b"\n", 0, error.start) + 1
    return 1


def _parquet(path: Path, wanted: Mapping[str, str]) -> Iterator[tuple[int, list[str]]]:
    """Yield number and wanted cells of each row of a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            _chosen(path, schema.names, wanted)
            for name in wanted:
                if pa.types.is_nested(schema.field(name).type):
                    raise DataError(
                        f"column '{name}' of '{path}' holds {schema.field(name).type} in each cell",
                        remedy="keep one value in each cell",
                    )
            row = 1
            for batch in file.iter_batches(batch_size=8192, columns=[*wanted]):
                cells = [_texts(batch.column(name).to_pylist()) for name in wanted]
                for values in zip(*cells, strict=True):
                    row += 1
                    if any(values):
                        yield row, list(values)
    except OSError as error:  # as Arrow's own are, but for what is no Parquet at all
        raise _unreadable(path, str(error)) from None
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise _unreadable(path, f"it is no sound Parquet: {error}") from None


def _texts(values: Iterable[Any]) -> list[str]:
    """Return cells as a CSV would show them; whole numbers without a fraction."""
    return [
        ""
        if value is None
        else f"{value:.0f}"
        if isinstance(value, float) and value.is_integer()
        else value.decode()
        if isinstance(value, bytes)
        else str(value)
        for value in values
    ]


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(
        f"table '{path}' cannot be read: {' '.join(why.split())}",
        remedy="name a CSV or Parquet file in dataset.file",
    )

"""Classes and labels in the cells of a table."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from medtransfer.data.base import UNKNOWN
from medtransfer.data.tables import Table
from medtransfer.errors import DataError

NONE = "no finding"  # how radiology writes that none of the labels holds
VALUES = {"1": 1, "true": 1, "0": 0, "false": 0, "-1": UNKNOWN, "": UNKNOWN}


def read_classes(
    table: Table, column: str, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Return the names of the classes and the class of each row.

    Args:
        table: Where they stand.
        column: In which column.
        classes: Their names in order; None takes those that there are, sorted, numbers by size.

    Raises:
        DataError: If a cell is empty or no class, if numbers stand beside words, or if all rows are
            of one class.
    """
    cells = table.require(column)
    names = tuple(classes) if classes is not None else _sorted(table, column, cells)
    if len(names) < 2:
        raise DataError(
            f"column '{column}' of '{table.path}' has one class, '{names[0]}', in all"
            " rows, and a comparison needs two",
            remedy="name the column with the diagnosis in dataset.label",
        )
    place = {name: i for i, name in enumerate(names)}
    if unknown := set(cells) - set(place):
        index = _first(cells, unknown)
        raise _unknown(table, column, index, cells[index], names)
    return names, [place[cell] for cell in cells]


def read_labels(
    table: Table, columns: Sequence[str], separator: str | None, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """Return the names of the labels and those of each row: 1 holds, 0 does not, -1 unknown.

    Args:
        table: Where they stand.
        columns: One for each label, with 1, 0, or else -1 or nothing where nobody knows. With a
            separator it is a single one.
        separator: What stands between the names of the labels that hold; an empty cell and
            `No Finding` are none of them.
        classes: With a separator, the names in order; None takes those that there are, sorted.

    Raises:
        DataError: If a cell holds anything else.
    """
    if separator is None:
        rows = zip(*(_column(table, column) for column in columns), strict=True)
        return tuple(columns), list(rows)
    (column,) = columns
    cells = table.columns[column]
    known = {cell: _parts(cell, separator) for cell in set(cells)}
    for cell, parts in known.items():
        rest = tuple(part for part in parts if part.lower() != NONE)
        if rest and len(rest) < len(parts):
            raise table.error(
                _first(cells, {cell}),
                column,
                f"'{cell}' says that there is no finding, beside one",
                "leave one of them",
            )
        known[cell] = rest
    found = {part for parts in known.values() for part in parts}
    names = tuple(sorted(found)) if classes is None else tuple(classes)
    if not names:
        raise DataError(
            f"column '{column}' of '{table.path}' names no label in any row",
            remedy="name the column with the findings in dataset.label_columns",
        )
    for name in sorted(found - set(names)):
        index = _first(cells, {cell for cell, parts in known.items() if name in parts})
        raise _unknown(table, column, index, name, names)
    coded = {cell: tuple(int(n in parts) for n in names) for cell, parts in known.items()}
    return names, [coded[cell] for cell in cells]


def _sorted(table: Table, column: str, cells: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct cells, numbers by size."""
    numbers = {cell: _number(cell) for cell in sorted(set(cells))}
    words = [cell for cell, number in numbers.items() if number is None]
    if len(words) == len(numbers):
        return tuple(words)
    first: dict[float | None, str] = {}
    for cell, number in numbers.items():
        if first.setdefault(number, cell) != cell and number is not None:
            wrong, problem = {cell}, f"is the same number as '{first[number]}'"
            break
    else:
        if not words:
            return tuple(sorted(numbers, key=lambda cell: numbers[cell] or 0.0))
        # of words and numbers, the rarer kind is the likely mistake
        if 2 * sum(numbers[cell] is None for cell in cells) < len(cells):
            wrong, problem = set(words), "is a word among numbers"
        else:
            wrong, problem = set(numbers) - set(words), "is a number among words"
    index = _first(cells, wrong)
    raise table.error(
        index,
        column,
        f"'{cells[index]}' {problem}",
        "write it like the others, or name all classes in dataset.classes",
    )


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _column(table: Table, column: str) -> list[int]:
    """Return the values of one label."""
    cells = table.columns[column]
    known = {cell: _value(cell) for cell in set(cells)}
    if wrong := {cell for cell, value in known.items() if value is None}:
        index = _first(cells, wrong)
        raise table.error(
            index,
            column,
            f"'{cells[index]}' does not say whether the label holds",
            "write 1 or 0, or else -1 or nothing where nobody knows; names of labels in one"
            " column want dataset.separator",
        )
    return [known[cell] or 0 for cell in cells]


def _value(cell: str) -> int | None:
    number = _number(cell)
    text = cell.lower() if number is None or not number.is_integer() else f"{number:.0f}"
    return VALUES.get(text)


def _parts(cell: str, separator: str) -> tuple[str, ...]:
    return tuple(part for text in cell.split(separator) if (part := text.strip()))


def _first(cells: Sequence[str], wanted: Collection[str]) -> int:
    return next(i for i, cell in enumerate(cells) if cell in wanted)


def _unknown(table: Table, column: str, index: int, name: str, names: Sequence[str]) -> DataError:
    return DataError(
        f"row {table.rows[index]}, column '{column}' of '{table.path}': '{name}' is not among"
        " dataset.classes",
        value=name,
        choices=names,
        remedy="correct the cell, or name it there",
    )

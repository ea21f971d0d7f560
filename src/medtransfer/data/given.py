"""Divisions that others made: lists and columns, and what of them cuts through a group."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from medtransfer.data.folds import SPLITS
from medtransfer.errors import DataError, LeakageError

Key = TypeVar("Key", bound=Hashable)

WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""What a column may say, in any case, where it names the split itself."""

_ALIKE = {
    "patient_overlap": "are of one patient",
    "exam_overlap": "are of one exam",
    "exact_duplicates": "are identical, or linked by images that are",
    "near_duplicates": "look alike, or are linked by images that do",
}


def read_lists(path: Path) -> dict[str, list[str]]:
    """Return the sample ids under `train`, `val` and `test` of a JSON file.

    Raises:
        DataError: If the file is missing or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        lists = {name: content[name] for name in SPLITS}
        for name, ids in lists.items():
            if not isinstance(ids, list):
                msg = f"'{name}' is no list"
                raise TypeError(msg)
        return {name: [str(i) for i in ids] for name, ids in lists.items()}
    except FileNotFoundError:
        raise DataError(
            f"split file '{path}' does not exist", remedy="give its path in dataset.split.file"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"split file '{path}' cannot be used: {type(error).__name__}: {error}",
            remedy='it holds {"train": [ids], "val": [ids], "test": [ids]}',
        ) from None


def from_lists(
    lists: Mapping[str, Sequence[str]], where: str, sample_ids: Sequence[str]
) -> list[str]:
    """Return the split of each sample by its list, '' where it is in none.

    Args:
        lists: Sample ids by split.
        where: Names the lists in messages.
        sample_ids: Unique names, (n,).

    Raises:
        DataError: If a list is empty, or names a sample that is unknown or in another list.
    """
    for name in lists:
        if name not in SPLITS:
            raise DataError(
                f"'{name}' of {where} is no split", value=name, choices=SPLITS, remedy="rename it"
            )
    side: dict[str, str] = {}
    known = set(sample_ids)
    for name in SPLITS:
        ids = lists.get(name, ())
        if not ids:
            raise DataError(f"split '{name}' of {where} is empty", remedy="list its sample ids")
        for sample_id in ids:
            if sample_id not in known:
                raise DataError(
                    f"sample '{sample_id}' of {where} is not in the dataset",
                    value=sample_id,
                    choices=difflib.get_close_matches(sample_id, sample_ids, n=5),
                    remedy="sample ids are paths relative to dataset.root",
                )
            if side.setdefault(sample_id, name) != name:
                raise DataError(
                    f"image '{sample_id}' is in two splits of {where}: {side[sample_id]} and"
                    f" {name}",
                    remedy="list every image once",
                )
    return [side.get(sample_id, "") for sample_id in sample_ids]


def column_of(
    name: str, columns: Mapping[str, Sequence[str]] | None, sample_ids: Sequence[str]
) -> list[str]:
    """Return the value that each sample has in a column.

    Raises:
        DataError: If there is no such column, or a sample has no value.
    """
    if not columns or name not in columns:
        raise DataError(
            f"the dataset has no column '{name}'",
            value=name,
            choices=sorted(columns or ()),
            remedy="choose one in dataset.split.column"
            if columns
            else "keep it with dataset.attributes where the dataset has that key, or choose"
            " another dataset.split.kind",
        )
    values = [value.strip() for value in columns[name]]
    missing = [i for i, value in zip(sample_ids, values, strict=True) if not value]
    if missing:
        raise DataError(
            f"sample '{missing[0]}' has no value in column '{name}'"
            + (f", and {len(missing) - 1} more have none" if len(missing) > 1 else ""),
            remedy="fill it in, or leave these samples out",
        )
    return values


def by_word(values: Sequence[str], column: str) -> list[str]:
    """Return the split that each value names.

    Raises:
        DataError: If one names none.
    """
    for value in values:
        if value.lower() not in WORDS:
            raise DataError(
                f"column '{column}' says '{value}', which names no split",
                value=value.lower(),
                choices=WORDS,
                remedy="say which values are for testing in dataset.split.test",
            )
    return [WORDS[value.lower()] for value in values]


def by_value(
    values: Sequence[str], column: str, test: Collection[str], val: Collection[str]
) -> list[str]:
    """Return the split of each value: as the two sets say, or else train.

    Raises:
        DataError: If the sets meet, are empty, or hold a value that no sample has.
    """
    found = set(values)
    for name, chosen in (("test", test), ("val", val)):
        for value in chosen:
            if value not in found:
                raise DataError(
                    f"dataset.split.{name} names '{value}', and no sample has it in column"
                    f" '{column}'",
                    value=value,
                    choices=_some(value, found),
                    remedy=f"choose values of the column in dataset.split.{name}",
                )
    both = sorted({*test} & {*val})
    if both:
        raise DataError(
            f"'{both[0]}' of column '{column}' is in both dataset.split.test and dataset.split.val",
            choices=_some(both[0], found - {*test}),
            remedy="take it out of one of them",
        )
    return ["test" if v in test else "val" if v in val else "train" for v in values]


def dropped(chosen: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Return the splits with each group in the latest of its own only, '' elsewhere."""
    latest: dict[str, int] = {}
    for side, group in zip(chosen, groups, strict=True):
        if side:
            latest[group] = max(latest.get(group, 0), SPLITS.index(side))
    return [
        side if side and SPLITS.index(side) == latest[group] else ""
        for side, group in zip(chosen, groups, strict=True)
    ]


def refuse_leaks(
    chosen: Sequence[str],
    sample_ids: Sequence[str],
    groups: Sequence[str],
    known: Mapping[str, Sequence[str]],
    *,
    otherwise: str,
    waived: Collection[str],
    where: str,
) -> None:
    """Refuse a division that puts one group into two splits.

    Args:
        chosen: Split of each sample, '' for none, (n,).
        sample_ids: Unique names, (n,).
        groups: Group of each sample, (n,).
        known: By code, what images that leak in this way have in common, (n,) each.
        otherwise: Code of a group that is cut although nothing known lies on two sides of the cut.
        waived: Codes that are put up with.
        where: Names the division in messages.

    Raises:
        LeakageError: If there is such a group, and its code is not waived.
    """
    cut = _cuts(groups, chosen)
    found: dict[str, list[tuple[int, int]]] = {}
    explained: set[str] = set()
    for code, values in known.items():
        # what a value means beyond its group, such as exams counted for each patient, is not asked
        found[code] = list(_cuts(zip(groups, values, strict=True), chosen).values())
        explained.update(groups[i] for i, _ in found[code])
    found.setdefault(otherwise, []).extend(p for g, p in cut.items() if g not in explained)
    refused = {code: pairs for code, pairs in found.items() if pairs and code not in waived}
    if not refused:
        return
    problems = []
    for code, pairs in refused.items():
        one, other = pairs[0]
        more = f" ({len(pairs) - 1} more such)" if len(pairs) > 1 else ""
        problems.append(
            f"images '{sample_ids[one]}' ({chosen[one]}) and '{sample_ids[other]}'"
            f" ({chosen[other]}) {_ALIKE[code]}, and lie in different splits of {where}{more}"
        )
    raise LeakageError(
        "\n".join(problems),
        remedy="move them to one side, leave such images out of all but the latest of their splits"
        f" with dataset.split.leaks=drop, or put up with it: audit.waive=[{','.join(refused)}]",
    )


def _cuts(keys: Iterable[Key], chosen: Sequence[str]) -> dict[Key, tuple[int, int]]:
    """Return for each key on two sides the first sample, and the first one elsewhere."""
    first: dict[Key, int] = {}
    found: dict[Key, tuple[int, int]] = {}
    for i, (key, side) in enumerate(zip(keys, chosen, strict=True)):
        if side and chosen[first.setdefault(key, i)] != side:
            found.setdefault(key, (first[key], i))
    return found


def _some(value: str, known: Collection[str]) -> list[str]:
    """Return all choices where they can be read, or those that look like a value."""
    return sorted(known) if len(known) <= 20 else difflib.get_close_matches(value, known, n=5)

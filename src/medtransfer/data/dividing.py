"""From a decoded dataset to its division."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from medtransfer.data.base import Annotation, Dataset, Record
from medtransfer.data.decoded import Decoded
from medtransfer.data.pseudonyms import is_pseudonym
from medtransfer.data.splits import Division, divide, strata
from medtransfer.errors import DataError


def divided(
    decoded: Decoded, dataset: Dataset, annotation: Annotation, *, waived: Collection[str] = ()
) -> Division:
    """Divide a dataset as its split says; see `divide`."""
    return divide(
        dataset.split,
        **division_arguments(decoded, dataset, annotation),
        patients=decoded.patients,
        exams=[record.exam_id for record in decoded.records],
        contents=[decoded.contents[record.sample_id] for record in decoded.records],
        waived=frozenset(waived),
    )


def division_arguments(
    decoded: Decoded, dataset: Dataset, annotation: Annotation
) -> dict[str, Any]:
    """Return what `divide` and `sides` must know of a dataset."""
    records, groups = decoded.records, groups_of(decoded)
    if dataset.split.kind == "ordered" and groups != [record.group_id for record in records]:
        raise DataError(
            "split.kind=ordered goes by the names of patients, and these are hashed",
            remedy="dataset.identifiers=plain, or another dataset.split.kind",
        )
    ids = [record.sample_id for record in records]
    names = {name for record in records for name in record.attributes}
    return {
        "sample_ids": ids,
        "groups": groups,
        "targets": strata_of(decoded, annotation),
        "class_names": () if annotation == "labels" else decoded.class_names,
        "lists": _readable(dataset.lists(), ids),
        "columns": {name: [r.attributes.get(name, "") for r in records] for name in sorted(names)},
    }


def groups_of(decoded: Decoded) -> list[str]:
    """Return of each sample the group by which samples are drawn.

    Draws go through the groups in the order of their names. Pseudonyms follow from a secret that
    every machine has for itself, and the same seed would draw other patients on each: they give way
    to what the images tell.
    """
    groups = [record.group_id for record in decoded.records]
    if not any(map(is_pseudonym, set(groups))):
        return groups
    least: dict[str, str] = {}
    contents = [decoded.contents[record.sample_id] for record in decoded.records]
    for group, content in zip(groups, contents, strict=True):
        least[group] = min(content, least.get(group, content))
    return [least[group] for group in groups]


def strata_of(decoded: Decoded, annotation: Annotation) -> list[int]:
    """Return of each sample what divisions and subsets keep in proportion."""
    if annotation == "labels":
        labels = np.asarray([record.labels for record in decoded.records], dtype=np.int64)
        return [int(stratum) for stratum in strata(labels)]
    return [record.target for record in decoded.records]


def require_whole_exams(records: Sequence[Record]) -> None:
    """Refuse exams whose images disagree.

    Raises:
        DataError: If an exam has two classes.
    """
    first: dict[str, Record] = {}
    for record in records:
        other = first.setdefault(record.exam_id, record)
        if other.target != record.target:
            raise DataError(
                f"images '{other.sample_id}' and '{record.sample_id}' of exam '{record.exam_id}'"
                " are of two classes",
                remedy="an exam has one diagnosis: correct it, or choose task=classification",
            )


def _readable(
    lists: Mapping[str, Sequence[str]] | None, sample_ids: Sequence[str]
) -> dict[str, list[str]] | None:
    """Return a dataset's lists without the samples that were skipped."""
    if lists is None:
        return None
    known = set(sample_ids)
    return {name: [i for i in listed if i in known] for name, listed in lists.items()}

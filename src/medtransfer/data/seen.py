"""Which patients a network has seen before, so that none of them tests it later."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping

from medtransfer.data.loading import Data
from medtransfer.errors import LeakageError

Seen = dict[str, list[str]]
"""Hashes of what was seen: `groups`, by the dataset's identity and the group's id, and `images`, by
their pixels before scaling. They travel with the weights, and tell nothing of a patient's name."""


def seen(data: Data, indices: Iterable[int]) -> Seen:
    """Return what a network sees that learns from these samples."""
    records = [data.decoded.records[i] for i in indices]
    groups = {_hashed(data.identity, record.group_id) for record in records}
    images = {_hashed(data.decoded.contents[record.sample_id]) for record in records}
    return {"groups": sorted(groups), "images": sorted(images)}


def refuse_seen(data: Data, before: Mapping[str, Collection[str]], source: str) -> None:
    """Refuse to test on groups that weights have seen.

    A group counts as seen when its name was, in the same dataset, or when any of its images was,
    whatever dataset it came from.

    Args:
        data: The trial's data.
        before: What the weights have seen.
        source: Names the weights in the message.

    Raises:
        LeakageError: If the test split holds such a group.
    """
    groups, images = set(before.get("groups", ())), set(before.get("images", ()))
    if not (groups or images):
        return  # most weights: nothing need be hashed
    records = data.decoded.records
    known = {
        record.group_id
        for record in records
        if _hashed(data.decoded.contents[record.sample_id]) in images
        or _hashed(data.identity, record.group_id) in groups
    }
    tested = {records[i].group_id for i in data.division.test}
    leaked = sorted(known & tested)
    if leaked:
        raise LeakageError(
            f"{source} were trained on {len(leaked)} of the {len(tested)} groups that this trial"
            f" tests on (first '{leaked[0]}')",
            remedy="pre-train on the training part of the same split (the same dataset.split), or"
            " choose other weights",
        )


def _hashed(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

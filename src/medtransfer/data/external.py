"""The data of another site: what a trial is tested on besides its own test set."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from medtransfer.data.base import Dataset
from medtransfer.data.decoded import decode
from medtransfer.data.dividing import require_whole_exams
from medtransfer.data.loading import Data
from medtransfer.data.seal import Seal
from medtransfer.data.splits import Division
from medtransfer.errors import DataError, LeakageError

CODE = "exact_duplicates"


def open_external(
    dataset: Dataset, own: Data, *, cache: Path, waived: Collection[str] = ()
) -> Data:
    """Return all samples of a dataset as one test split, to be judged by what `own` has taught.

    Args:
        dataset: Of the other site; its own division is left aside, for it is never learned from.
        own: What trials learn from and choose on.
        cache: Folder of all caches.
        waived: Codes of the leaks that are put up with.

    Raises:
        DataError: If it does not show the same classes in images of the same kind.
        LeakageError: If it holds images that the trial learns from or chooses on.
    """
    spec = own.spec
    decoded = decode(dataset, cache, spec.annotation)
    names = decoded.foreground.names if decoded.foreground is not None else decoded.class_names
    there = (names, dataset.channels, dataset.image_size)
    here = (spec.class_names, spec.channels, spec.image_size)
    for what, theirs, ours in zip(("classes", "channels", "image_size"), there, here, strict=True):
        if theirs != ours:
            raise DataError(
                f"the external dataset has {what} {_told(theirs)}, and the trial's own has"
                f" {_told(ours)}",
                remedy="set dataset.external's keys so that both are alike",
            )
    if spec.annotation == "exam":
        require_whole_exams(decoded.records)
    ours = own.decoded.contents
    used = np.concatenate([own.division.train, own.division.val])
    seen = {ours[own.decoded.records[i].sample_id] for i in used}
    shared = [r.sample_id for r in decoded.records if decoded.contents[r.sample_id] in seen]
    if shared and CODE not in waived:
        raise LeakageError(
            f"{len(shared)} of {len(decoded.records)} external images are in the trial's training"
            f" or validation data (first '{shared[0]}')",
            remedy=f"another dataset.external, or audit.waive=[{CODE}]",
        )
    nothing, everything = np.empty(0, np.int64), np.arange(len(decoded.records))
    return Data(
        decoded=decoded,
        division=Division(nothing, nothing, everything, decoded.data_hash),
        train=nothing,
        spec=replace(spec, data_hash=decoded.data_hash, split_hash=decoded.data_hash),
        seed=own.seed,
        identity=dataset.identity,
        notes=dataset.notes(),
        seal=Seal(everything, len(everything), allowed=own.seal.allowed),
    )


def _told(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

"""The gate in front of every study: what its data would give away."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from medtransfer.audit.audit import audit
from medtransfer.audit.findings import Audit
from medtransfer.audit.sheet import sheet
from medtransfer.data.base import Annotation, Dataset
from medtransfer.data.decoded import Decoded, decode, near_duplicates
from medtransfer.data.dividing import divided, division_arguments
from medtransfer.data.duplicates import Pair
from medtransfer.data.splits import SPLITS, sides
from medtransfer.errors import LeakageError, StoreError

REMEDIES = {
    "patient_overlap": "move each patient to one side, or dataset.split.leaks=drop",
    "exam_overlap": "move each exam to one side, or dataset.split.leaks=drop",
    "exact_duplicates": "remove copies, or dataset.split.leaks=drop",
    "near_duplicates": "dataset.split.duplicates=near keeps them on one side where the split is"
    " drawn; with dataset.split.leaks=drop also where it is given",
}


@dataclass(frozen=True)
class Inspection:
    """A dataset that was looked through.

    Attributes:
        decoded: Its images.
        sides: The split of each, empty for none.
        audit: What was found.
    """

    decoded: Decoded
    sides: tuple[str, ...]
    audit: Audit

    def refuse(self, waived: Collection[str]) -> None:
        """Refuse leaks between splits that are not waived.

        Raises:
            LeakageError: For all of them.
        """
        leaks = self.audit.leaks(waived)
        if leaks:
            codes = [finding.code for finding in leaks]
            raise LeakageError(
                "; ".join(f"{finding.code}: {finding.message}" for finding in leaks),
                remedy=f"{REMEDIES[codes[0]]}; or audit.waive=[{','.join(codes)}], which the report"
                " will say. medtransfer audit dataset=... shows the images",
            )

    def waived(self, codes: Collection[str]) -> list[str]:
        """Return what was found and is put up with, in sentences."""
        leaks = self.audit.leaks(())
        return [f"{leak.code}: {leak.message}" for leak in leaks if leak.code in codes]

    def warnings(self) -> list[str]:
        """Return what a reader of results must know, in sentences."""
        found = self.audit.findings
        return [f"audit, {f.code}: {f.message}" for f in found if f.severity == "warning"]

    def save(self, folder: Path) -> list[Path]:
        """Write `audit.json`, `split.json` and, if there is something to see, `audit.png`.

        Raises:
            StoreError: If the folder cannot be written.
        """
        ids = [record.sample_id for record in self.decoded.records]
        lists = {
            name: [i for i, side in zip(ids, self.sides, strict=True) if side == name]
            for name in SPLITS
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = [folder / "audit.json", folder / "split.json"]
            for path, content in zip(written, (self.audit.as_dict(), lists), strict=True):
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            page = sheet(self.audit, self.decoded, self.sides)
            if page is not None:
                page.save(folder / "audit.png")
                written.append(folder / "audit.png")
        except OSError as error:
            raise StoreError(
                f"the audit cannot be written to '{folder}': {error}",
                remedy="name a folder that can be written",
            ) from error
        return written


def annotation_of(dataset: Dataset) -> Annotation:
    """Return what an audit takes for the label of an image; masks and boxes are none."""
    labelled = "labels" in dataset.provides and "class" not in dataset.provides
    return "labels" if labelled else "class"


def inspect(dataset: Dataset, cache: Path, alike: Sequence[Pair] = ()) -> Inspection:
    """Look through a dataset as its split divides it.

    A division is taken as it is given, unless `split.leaks=drop` mends it: then as it is mended.

    Args:
        dataset: What to look through.
        cache: Folder of all caches.
        alike: Further pairs of images that were found to be alike.

    Raises:
        DataError: If it cannot be read or divided.
    """
    annotation = annotation_of(dataset)
    decoded = decode(dataset, cache, annotation)
    if dataset.split.leaks == "drop":
        division = divided(decoded, dataset, annotation)
        named = [""] * len(decoded.records)
        for name in SPLITS:
            for index in getattr(division, name):
                named[index] = name
    else:
        named = sides(dataset.split, **division_arguments(decoded, dataset, annotation))
    contents = [decoded.contents[record.sample_id] for record in decoded.records]
    pairs = near_duplicates(decoded.facts, contents, decoded.images, cache)
    return Inspection(decoded, tuple(named), audit(decoded, named, pairs=(*pairs, *alike)))

"""Weights in files: given by path, shipped with the package, or made by `medtransfer pretrain`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from medtransfer.backbones.base import Backbone
from medtransfer.backbones.weights import (
    Provenance,
    Weights,
    fit,
    hash_file,
    hash_tensors,
    metadata,
    read_tensors,
)
from medtransfer.errors import WeightsError

SHIPPED = Path(__file__).parent / "shipped"


@dataclass(frozen=True, kw_only=True)
class File(Weights):
    """A safetensors file, or a checkpoint that holds nothing but tensors.

    Without a path, the file is found among those that were made for this backbone: what ships
    comes first, then the newest that `medtransfer pretrain` made.

    Attributes:
        folder: Where `medtransfer pretrain` writes.
        source: Take only what this source of pre-training made; None takes any, but what ships.
        made_on: Take only what was pre-trained on the training part of the trial's `own` dataset,
            only what was pre-trained on an `other` one, or `any`.
    """

    folder: Path
    source: str | None
    made_on: Literal["any", "own", "other"]

    def load(self, backbone: Backbone) -> Provenance:
        """See `Weights.load`."""
        version = path, *_ = self._version(backbone)
        digest = _hash(*version)
        if self.sha256 is not None and digest != self.sha256.lower():
            raise WeightsError(
                f"'{path}' has SHA-256 {digest} and not {self.sha256}",
                remedy="fetch the file again, or correct weights.sha256",
            )
        state, kept = _read(*version)
        known = dict(kept)
        keys = fit(backbone, state, source=str(path), channels=known.pop("channels", None))
        return Provenance(
            source=known.pop("source", path.name),
            trained_on=known.pop("trained_on", "unknown"),
            licence=known.pop("licence", "unknown"),
            sha256=hash_tensors(backbone.state_dict()),
            statistics=known.pop("statistics", True),
            seen=known.pop("seen", {}),
            detail={"file": str(path), "file_sha256": digest, "keys": keys, **known},
        )

    def version(self, backbone: Backbone, seed: int) -> object:  # noqa: ARG002
        """See `Weights.version`: which file it is, and when it was written."""
        return self._version(backbone)

    def _version(self, backbone: Backbone) -> tuple[Path, int, int]:
        path = self.path or self._find(backbone)
        if not path.is_file():
            raise WeightsError(f"weights file '{path}' does not exist", remedy="check weights.path")
        found = path.stat()
        return path, found.st_size, found.st_mtime_ns

    def _find(self, backbone: Backbone) -> Path:
        if self.source is not None and self.made_on != "own":
            shipped = [path for path, _ in _headers(SHIPPED, backbone.name, self.source)]
            if shipped:
                return min(shipped)
        found = self._candidates(backbone.name)
        if found:
            return found[-1]
        what = f"weights of source '{self.source}'" if self.source else "pre-trained weights"
        where = {"any": "", "own": " made on this dataset", "other": " made on another dataset"}
        dataset = "" if self.source in {None, "synthetic"} else " dataset=DATASET"
        raise WeightsError(
            f"there are no {what} for backbone '{backbone.name}'{where[self.made_on]}"
            f" in '{self.folder}'",
            remedy=f"medtransfer pretrain source={self.source or 'synthetic'} {backbone.chosen_by}"
            f"{dataset}, or give weights.path",
        )

    def _candidates(self, backbone: str) -> list[Path]:
        """Return what serves, the best last: for own data of the same split, then the newest."""
        data, split = self.near
        own = self.made_on == "own"
        ranked = [
            (own and known.get("split_hash") == split, path.stat().st_mtime_ns, path)
            for path, known in _headers(self.folder, backbone, self.source)
            if self.made_on == "any" or (known.get("data_hash") == data) == own
        ]
        return [path for *_, path in sorted(ranked)]


# trials of a sweep share their file, so the last one is kept
@functools.lru_cache(maxsize=1)
def _hash(path: Path, size: int, changed: int) -> str:  # noqa: ARG001
    return hash_file(path)


@functools.lru_cache(maxsize=1)
def _read(path: Path, size: int, changed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:  # noqa: ARG001
    return read_tensors(path)


def _headers(
    folder: Path, backbone: str, source: str | None
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the files in a folder that a source made for a backbone, with their headers."""
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                known = metadata(file)
        except (SafetensorError, OSError):
            continue  # damaged, so it cannot tell for which backbone it was made
        if known.get("backbone") == backbone and source in {None, known.get("source")}:
            yield path, known

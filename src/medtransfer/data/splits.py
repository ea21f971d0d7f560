"""Which sample is for training, validation and testing: by group, stratified, hashed."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from medtransfer.errors import DataError, LeakageError

SPLITS = ("train", "val", "test")

Ratio = Annotated[float, Field(gt=0, lt=1)]


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Split:
    """How samples are divided.

    Attributes:
        kind: `holdout` draws by `ratios` and `seed`; `ordered` cuts the groups, sorted by name and
            number, into three runs by `ratios`; `own` takes the lists that come with the dataset;
            `file` takes the division from `file`.
        seed: Seed of the draw, apart from the trial's, so that all seeds share the test set.
        file: JSON file with lists of sample ids under `train`, `val` and `test`.
        ratios: Shares of train, val and test; they sum to one.
    """

    kind: Literal["holdout", "ordered", "own", "file"]
    seed: Annotated[int, Field(ge=0)]
    file: Path | None
    ratios: tuple[Ratio, Ratio, Ratio]

    def __post_init__(self) -> None:
        if abs(sum(self.ratios) - 1) > 1e-6:
            msg = f"ratios sum to {sum(self.ratios):g} and not to 1"
            raise ValueError(msg)
        if (self.kind == "file") != (self.file is not None):
            msg = "split.kind=file and split.file go together"
            raise ValueError(msg)


@dataclass(frozen=True)
class Division:
    """The result: sorted indices of the samples in each split, and their hash."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]
    hash: str

    def ids(self, sample_ids: Sequence[str]) -> dict[str, list[str]]:
        """Return the sample ids by split, in the form that `split.file` reads."""
        return {name: [sample_ids[i] for i in getattr(self, name)] for name in SPLITS}


def divide(
    split: Split,
    sample_ids: Sequence[str],
    groups: Sequence[str],
    targets: Sequence[int],
    class_names: Sequence[str],
    *,
    lists: Mapping[str, Sequence[str]] | None = None,
) -> Division:
    """Divide samples so that no group lies in two splits and every class lies in each.

    Args:
        split: How to divide.
        sample_ids: Unique names, (n,).
        groups: Group of each sample, (n,).
        targets: Class index of each sample, (n,).
        class_names: Names for messages, by class index.
        lists: Sample ids under `train`, `val` and `test`, where the dataset brings its own.

    Raises:
        DataError: If a class has too few groups, or the lists do not fit the samples.
        LeakageError: If lists put one group into two splits.
    """
    if split.kind == "file":
        assert split.file is not None
        content = _read_lists(split.file)
        chosen = _from_lists(content, f"split file '{split.file}'", sample_ids, groups)
    elif split.kind == "own":
        if lists is None:
            raise DataError(
                "split.kind=own, and the dataset brings no lists of its own",
                remedy="choose dataset.split.kind=holdout, or give the lists that it has",
            )
        chosen = _from_lists(lists, "the dataset's lists", sample_ids, groups)
    elif split.kind == "ordered":
        chosen = _ordered(split, groups)
    else:
        chosen = _holdout(split, groups, targets, class_names)
    indices = {
        name: np.asarray(sorted(i for i, s in enumerate(chosen) if s == name), dtype=np.int64)
        for name in SPLITS
    }
    _require_every_class(indices, targets, class_names)
    text = json.dumps({name: sorted(sample_ids[i] for i in indices[name]) for name in SPLITS})
    return Division(**indices, hash=hashlib.sha256(text.encode()).hexdigest()[:16])


def subset(
    indices: NDArray[np.int64],
    groups: Sequence[str],
    targets: Sequence[int],
    *,
    fraction: float,
    shots: int | None,
    seed: int,
) -> NDArray[np.int64]:
    """Return a stratified part of the training indices, the smaller nested in the larger.

    Groups of each class are put into one order that depends on `seed` alone, and a prefix of it is
    taken: for one seed every arm sees the same samples, and a smaller fraction sees a subset.

    Args:
        indices: Training samples, (n,).
        groups: Group of every sample of the dataset.
        targets: Class index of every sample of the dataset.
        fraction: Share of the groups of each class, in (0, 1]; at least one group each.
        shots: Number of groups of each class, instead of a fraction.
        seed: The trial's seed.
    """
    if shots is None and fraction == 1:
        return indices
    by_class = _groups_by_class([groups[i] for i in indices], [targets[i] for i in indices])
    kept: set[Hashable] = set()
    for label, members in sorted(by_class.items()):
        rng = np.random.default_rng([seed, label])
        order = [members[i] for i in rng.permutation(len(members))]
        kept.update(order[: shots if shots is not None else max(1, round(fraction * len(order)))])
    return np.asarray([i for i in indices if groups[i] in kept], dtype=np.int64)


def merge_groups(groups: Sequence[str], contents: Sequence[str]) -> list[str]:
    """Return groups in which samples of equal content are one, whoever their patients are.

    Args:
        groups: Group of each sample, (n,).
        contents: Hash of each sample's pixels, (n,).
    """
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while parent.setdefault(group, group) != group:
            parent[group] = group = parent[parent[group]]
        return group

    first: dict[str, str] = {}
    for group, content in zip(groups, contents, strict=True):
        a, b = root(group), root(first.setdefault(content, group))
        parent[max(a, b)] = min(a, b)
    return [root(group) for group in groups]


def _require_every_class(
    indices: Mapping[str, NDArray[np.int64]], targets: Sequence[int], class_names: Sequence[str]
) -> None:
    for split, members in indices.items():
        present = {targets[i] for i in members}
        for label, name in enumerate(class_names):
            if label not in present:
                raise DataError(
                    f"class '{name}' has no image in split '{split}'",
                    remedy="no metric of this class can be computed there: divide otherwise",
                )


def _groups_by_class(groups: Sequence[str], targets: Sequence[int]) -> Mapping[int, list[str]]:
    """Return the groups of each class, sorted; one of mixed classes counts for its commonest."""
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for group, target in zip(groups, targets, strict=True):
        votes[group][target] += 1
    by_class: dict[int, list[str]] = defaultdict(list)
    for group in sorted(votes):
        label = min(votes[group], key=lambda t, g=group: (-votes[g][t], t))  # type: ignore[misc]
        by_class[label].append(group)
    return by_class


def _holdout(
    split: Split, groups: Sequence[str], targets: Sequence[int], class_names: Sequence[str]
) -> list[str]:
    by_class = _groups_by_class(groups, targets)
    side: dict[str, str] = {}
    for label, name in enumerate(class_names):
        members = by_class.get(label, [])
        if len(members) < len(SPLITS):
            raise DataError(
                f"class '{name}' has {len(members)} independent groups of images, and {len(SPLITS)}"
                " splits each need one",
                remedy="add images of this class, or leave it out with dataset.classes=[...]",
            )
        rng = np.random.default_rng([split.seed, label])
        order = [members[i] for i in rng.permutation(len(members))]
        n_val, n_test = (max(1, round(r * len(order))) for r in split.ratios[1:])
        n_val = min(n_val, len(order) - 2)  # whatever the ratios, each split gets one
        n_train = max(1, len(order) - n_val - n_test)
        for i, group in enumerate(order):
            side[group] = SPLITS[(i >= n_train) + (i >= n_train + n_val)]
    return [side[group] for group in groups]


def _ordered(split: Split, groups: Sequence[str]) -> list[str]:
    def by_number(group: str) -> list[str | int]:
        # "10" after "9"; every second part is a number, so that parts of one kind meet
        return [int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", group))]

    order = sorted(set(groups), key=by_number)
    if len(order) < len(SPLITS):
        raise DataError(
            f"there are {len(order)} independent groups of images, and {len(SPLITS)} splits each"
            " need one",
            remedy="add images",
        )
    ends = np.round(np.cumsum(split.ratios)[:2] * len(order)).astype(int)
    first = int(np.clip(ends[0], 1, len(order) - 2))  # whatever the ratios, each split gets one
    second = int(np.clip(ends[1], first + 1, len(order) - 1))
    side = {group: SPLITS[(i >= first) + (i >= second)] for i, group in enumerate(order)}
    return [side[group] for group in groups]


def _read_lists(path: Path) -> dict[str, list[str]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: [str(i) for i in content[name]] for name in SPLITS}
    except FileNotFoundError:
        raise DataError(
            f"split file '{path}' does not exist", remedy="give its path in dataset.split.file"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"split file '{path}' cannot be used: {type(error).__name__}: {error}",
            remedy='it holds {"train": [ids], "val": [ids], "test": [ids]}',
        ) from None


def _from_lists(
    lists: Mapping[str, Sequence[str]], where: str, sample_ids: Sequence[str], groups: Sequence[str]
) -> list[str]:
    side: dict[str, str] = {}
    known = set(sample_ids)
    for name, ids in lists.items():
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
    first: dict[str, tuple[str, str]] = {}
    for sample_id, group in zip(sample_ids, groups, strict=True):
        if sample_id not in side:
            continue
        other, name = first.setdefault(group, (sample_id, side[sample_id]))
        if name != side[sample_id]:
            raise LeakageError(
                f"images '{other}' ({name}) and '{sample_id}' ({side[sample_id]}) are of one"
                f" patient or identical, and lie in different splits of {where}",
                remedy="move them to one side",
            )
    return [side.get(sample_id, "") for sample_id in sample_ids]

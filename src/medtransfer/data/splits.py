"""Which sample is for training, validation and testing: by group, stratified, hashed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as checked_dataclass

from medtransfer.data import folds, given
from medtransfer.data.folds import SPLITS, strata
from medtransfer.errors import DataError

__all__ = ["SPLITS", "Division", "Split", "divide", "merge_groups", "sides", "strata", "subset"]

Ratio = Annotated[float, Field(gt=0, lt=1)]

Values = Annotated[
    tuple[Annotated[str, Field(coerce_numbers_to_str=True)], ...],
    Field(min_length=1),
    # one value need not be written as a list
    BeforeValidator(lambda value: (value,) if isinstance(value, str | int | float) else value),
]

_GIVEN = frozenset({"own", "file", "column"})  # kinds that may cut through a group


@checked_dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Split:
    """How samples are divided.

    Attributes:
        kind: `holdout` draws by `ratios` and `seed`; `kfold` draws `folds` parts, of which one is
            for testing; `ordered` cuts the groups, sorted by name and number, into three runs by
            `ratios`; `own` takes the lists that come with the dataset; `file` takes the division
            from `file`; `column` goes by the values of a column, such as a site.
        seed: Seed of the draw, apart from the trial's, so that all seeds share the test set.
        file: JSON file with lists of sample ids under `train`, `val` and `test`.
        ratios: Shares of train, val and test; they sum to one. Where only val is drawn, the first
            two say how the rest divides.
        folds: How many parts `kfold` draws.
        index: Which of them is for testing; from `folds` on, one of a draw made anew: `index //
            folds` counts the draws, `index % folds` the parts of each.
        column: Name of the column that `column` goes by.
        test: Its values for testing; None: the column itself says train, val or test.
        val: Its values for validation; None: val is drawn from the rest.
        duplicates: Which images lie on one side, as those of a patient do: `exact` those of equal
            pixels, `near` also those that look alike.
        leaks: What a given division leads to that cuts through a group: `refuse` is an error,
            `drop` keeps the group in the latest of its splits and leaves it out of the others.
    """

    kind: Literal["holdout", "kfold", "column", "own", "ordered", "file"]
    seed: Annotated[int, Field(ge=0)]
    file: Path | None
    ratios: tuple[Ratio, Ratio, Ratio]
    folds: Annotated[int, Field(ge=2)] = 5
    index: Annotated[int, Field(ge=0, lt=10_000)] = 0
    column: str | None = None
    test: Values | None = None
    val: Values | None = None
    duplicates: Literal["exact", "near"] = "exact"
    leaks: Literal["refuse", "drop"] = "refuse"

    def __post_init__(self) -> None:
        msg = ""
        if abs(sum(self.ratios) - 1) > 1e-6:
            msg = f"ratios sum to {sum(self.ratios):g} and not to 1"
        elif (self.kind == "file") != (self.file is not None):
            msg = "split.kind=file and split.file go together"
        elif (self.kind == "column") != (self.column is not None):
            msg = "split.kind=column and split.column go together"
        elif self.column is None and (self.test or self.val):
            msg = "split.test and split.val are values of split.column, which is null"
        elif self.val and not self.test:
            msg = "split.val names values of the column and split.test none"
        elif self.index and self.kind != "kfold":
            msg = f"split.index={self.index} is one of the folds of split.kind=kfold"
        if msg:
            raise ValueError(msg)


@dataclass(frozen=True)
class Division:
    """The result: sorted indices of the samples in each split, and their hash.

    Attributes:
        train: Samples for training, (n,).
        val: Samples for choices, (m,).
        test: Samples that are used once, (k,).
        hash: Changes with which sample lies where, and not with their order.
        dropped: How many samples `leaks=drop` left out.
    """

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]
    hash: str
    dropped: int = 0

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
    columns: Mapping[str, Sequence[str]] | None = None,
    patients: Sequence[str] | None = None,
    exams: Sequence[str] | None = None,
    contents: Sequence[str] | None = None,
    waived: Collection[str] = frozenset(),
) -> Division:
    """Divide samples so that no group lies in two splits and every class lies in each.

    Args:
        split: How to divide.
        sample_ids: Unique names, (n,).
        groups: Group of each sample, (n,): patients, merged where they share an image.
        targets: Class index of each sample, (n,); of labels, see `strata`.
        class_names: Names for messages, by class index; none: no class is required anywhere.
        lists: Sample ids under `train`, `val` and `test`, where the dataset brings its own.
        columns: What else is known of each sample, (n,) by name.
        patients: Patient of each sample, (n,), to name a leak; by default its group.
        exams: Exam of each sample, (n,), to name a leak.
        contents: Hash of each sample's pixels, (n,), to name a leak.
        waived: Codes of leaks that are put up with; `leaks=drop` leaves none to put up with.

    Raises:
        DataError: If a class has too few groups, or the lists or the column do not fit the samples.
        LeakageError: If lists, a file or a column put one group into two splits.
    """
    chosen = sides(split, sample_ids, groups, targets, class_names, lists=lists, columns=columns)
    dropped = 0
    if split.kind in _GIVEN and split.leaks == "drop":
        kept = given.dropped(chosen, groups)
        dropped = sum(a != b for a, b in zip(chosen, kept, strict=True))
        chosen = kept
    elif split.kind in _GIVEN:
        known = {"patient_overlap": patients or groups}
        known |= {"exam_overlap": exams} if exams else {}
        known |= {"exact_duplicates": contents} if contents else {}
        given.refuse_leaks(
            chosen,
            sample_ids,
            groups,
            known,
            otherwise=f"{split.duplicates}_duplicates",
            waived=waived,
            where=_where(split),
        )
    indices = {
        name: np.asarray([i for i, side in enumerate(chosen) if side == name], dtype=np.int64)
        for name in SPLITS
    }
    _require_every_class(indices, targets, class_names, dropped)
    text = json.dumps({name: sorted(sample_ids[i] for i in indices[name]) for name in SPLITS})
    return Division(**indices, hash=hashlib.sha256(text.encode()).hexdigest()[:16], dropped=dropped)


def sides(
    split: Split,
    sample_ids: Sequence[str],
    groups: Sequence[str],
    targets: Sequence[int],
    class_names: Sequence[str],
    *,
    lists: Mapping[str, Sequence[str]] | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Return the split of each sample, '' for none, before a leak is refused or left out.

    Arguments and errors are those of `divide`.
    """
    ratios, seed = split.ratios, split.seed
    if split.kind == "file":
        assert split.file is not None
        return given.from_lists(given.read_lists(split.file), _where(split), sample_ids)
    if split.kind == "own":
        if lists is None:
            raise DataError(
                "split.kind=own, and the dataset brings no lists of its own",
                remedy="choose dataset.split.kind=holdout, or give the lists that it has",
            )
        return given.from_lists(lists, _where(split), sample_ids)
    if split.kind == "column":
        assert split.column is not None
        values = given.column_of(split.column, columns, sample_ids)
        return _by_column(split, split.column, values, groups, targets)
    if split.kind == "ordered":
        return folds.ordered(groups, ratios=ratios)
    if split.kind == "kfold":
        fold = {"folds": split.folds, "index": split.index}
        return folds.kfold(groups, targets, class_names, seed=seed, ratios=ratios, **fold)
    return folds.holdout(groups, targets, class_names, seed=seed, ratios=ratios)


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
    by_class = folds.groups_by_class([groups[i] for i in indices], [targets[i] for i in indices])
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
    first: dict[str, int] = {}
    return merge_pairs(
        groups, ((first.setdefault(content, i), i) for i, content in enumerate(contents))
    )


def merge_pairs(groups: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Return groups in which both samples of each pair are in one.

    Args:
        groups: Group of each sample, (n,).
        pairs: Indices of samples.
    """
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = group = parent[parent[group]]
        return group

    for i, j in pairs:
        a, b = root(groups[i]), root(groups[j])
        parent[max(a, b)] = min(a, b)
    return [root(group) for group in groups]


def _by_column(
    split: Split,
    column: str,
    values: Sequence[str],
    groups: Sequence[str],
    targets: Sequence[int],
) -> list[str]:
    if split.test is None:
        chosen = given.by_word(values, column)
    else:
        chosen = given.by_value(values, column, split.test, split.val or ())
    if "val" not in chosen:
        rest = [i for i, side in enumerate(chosen) if side == "train"]
        # what is left out in the end is not counted for a share
        test = {group for group, side in zip(groups, chosen, strict=True) if side == "test"}
        val = folds.val_of_rest(
            [groups[i] for i in rest],
            [targets[i] for i in rest],
            test if split.leaks == "drop" else (),
            seed=split.seed,
            ratios=split.ratios,
        )
        for i in rest:
            chosen[i] = "val" if groups[i] in val else "train"
    for name in SPLITS:
        if name not in chosen:
            raise DataError(
                f"column '{column}' leaves split '{name}' empty",
                remedy="let it say so of some samples, or choose its values for testing in"
                " dataset.split.test"
                if split.test is None
                else "choose other values in dataset.split.test and dataset.split.val",
            )
    return chosen


def _where(split: Split) -> str:
    """Return a given division's name in messages."""
    if split.kind == "file":
        return f"split file '{split.file}'"
    return f"column '{split.column}'" if split.kind == "column" else "the dataset's lists"


def _require_every_class(
    indices: Mapping[str, NDArray[np.int64]],
    targets: Sequence[int],
    class_names: Sequence[str],
    dropped: int,
) -> None:
    after = f", once {dropped} images are left out by dataset.split.leaks=drop" if dropped else ""
    for split, members in indices.items():
        if not len(members):
            raise DataError(
                f"split '{split}' has no image{after}",
                remedy="divide otherwise: by other dataset.split.ratios, or by another kind",
            )
        present = {targets[i] for i in members}
        for label, name in enumerate(class_names):
            if label not in present:
                raise DataError(
                    f"class '{name}' has no image in split '{split}'{after}",
                    remedy="no metric of this class can be computed there: divide otherwise",
                )

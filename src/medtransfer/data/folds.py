"""How groups are drawn into splits: whole, each class by its share."""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medtransfer.errors import DataError

SPLITS = ("train", "val", "test")

Ratios = tuple[float, float, float]

# The last number of a generator's seed, so that no two kinds of draw share a stream.
_FOLDS, _VAL, _UNNAMED = 1, 2, 3

_EACH = f"{len(SPLITS)} splits each need one"
_MORE = "add images of this class, or leave it out with dataset.classes=[...]"


def holdout(
    groups: Sequence[str],
    targets: Sequence[int],
    class_names: Sequence[str],
    *,
    seed: int,
    ratios: Ratios,
) -> list[str]:
    """Return the split of each sample, every class divided by the ratios up to rounding.

    Raises:
        DataError: If a class has fewer groups than there are splits.
    """
    if not class_names:
        _require(len(set(groups)), len(SPLITS), _EACH, "add images")
        part = deal(groups, targets, ratios, key=(seed, 0, 0, _UNNAMED))
        return [SPLITS[part[group]] for group in groups]
    by_class = groups_by_class(groups, targets)
    side: dict[str, str] = {}
    for label, name in enumerate(class_names):
        members = by_class.get(label, [])
        _require(len(members), len(SPLITS), _EACH, _MORE, name)
        rng = np.random.default_rng([seed, label])
        order = [members[i] for i in rng.permutation(len(members))]
        n_val, n_test = (max(1, round(r * len(order))) for r in ratios[1:])
        n_val = min(n_val, len(order) - 2)  # whatever the ratios, each split gets one
        n_train = max(1, len(order) - n_val - n_test)
        for i, group in enumerate(order):
            side[group] = SPLITS[(i >= n_train) + (i >= n_train + n_val)]
    return [side[group] for group in groups]


def ordered(groups: Sequence[str], *, ratios: Ratios) -> list[str]:
    """Return the split of each sample, the groups cut by name and number into three runs.

    Raises:
        DataError: If there are fewer groups than splits.
    """

    def by_number(group: str) -> list[str | int]:
        # "10" after "9"; every second part is a number, so that parts of one kind meet
        return [int(p) if i % 2 else p for i, p in enumerate(re.split(r"(\d+)", group))]

    order = sorted(set(groups), key=by_number)
    _require(len(order), len(SPLITS), _EACH, "add images")
    ends = np.round(np.cumsum(ratios)[:2] * len(order)).astype(int)
    first = int(np.clip(ends[0], 1, len(order) - 2))  # whatever the ratios, each split gets one
    second = int(np.clip(ends[1], first + 1, len(order) - 1))
    side = {group: SPLITS[(i >= first) + (i >= second)] for i, group in enumerate(order)}
    return [side[group] for group in groups]


def kfold(
    groups: Sequence[str],
    targets: Sequence[int],
    class_names: Sequence[str],
    *,
    seed: int,
    ratios: Ratios,
    folds: int,
    index: int,
) -> list[str]:
    """Return the split of each sample where one of several folds is for testing.

    Args:
        groups: Group of each sample, (n,).
        targets: Class index of each sample, (n,).
        class_names: Classes that each split must show.
        seed: Seed of the draw.
        ratios: The first two say how the other folds divide into train and val.
        folds: How many there are; each group is in one of them.
        index: Which of them is for testing; from `folds` on, one of a draw made anew.

    Raises:
        DataError: If a class, or all images together, has too few groups.
    """
    # with two folds, the other one must have a group for train and one for val
    least = 4 if folds == 2 else folds
    why = f"{folds} folds, with train and val in the rest of each, need {least}"
    fewer = "take fewer with dataset.split.folds, or "
    _require(len(set(groups)), least, why, fewer + "add images")
    owners: dict[int, set[str]] = defaultdict(set)
    for group, target in zip(groups, targets, strict=True):
        owners[target].add(group)
    for label, name in enumerate(class_names):
        _require(len(owners[label]), least, why, fewer + _MORE, name)
    repeat, fold = divmod(index, folds)
    part = deal(groups, targets, [1 / folds] * folds, key=(seed, repeat, 0, _FOLDS))
    tested = {group for group, other in part.items() if other == fold}
    val = val_of_rest(groups, targets, tested, seed=seed, ratios=ratios, turn=(repeat, fold))
    return ["test" if g in tested else "val" if g in val else "train" for g in groups]


def val_of_rest(
    groups: Sequence[str],
    targets: Sequence[int],
    apart: Collection[str],
    *,
    seed: int,
    ratios: Ratios,
    turn: tuple[int, int] = (0, 0),
) -> set[str]:
    """Return the groups for validation, drawn from all but those in `apart`.

    Args:
        groups: Group of each sample, (n,).
        targets: Class index of each sample, (n,).
        apart: Groups that are not drawn from.
        seed: Seed of the draw.
        ratios: The first two say how the rest divides into train and val.
        turn: Repeat and fold, which are drawn apart from each other.
    """
    rest = [i for i, group in enumerate(groups) if group not in apart]
    shares = [ratio / (ratios[0] + ratios[1]) for ratio in ratios[:2]]
    of_rest = [groups[i] for i in rest], [targets[i] for i in rest]
    part = deal(*of_rest, shares, key=(seed, *turn, _VAL))
    return {group for group, p in part.items() if p == 1}


def deal(
    groups: Sequence[str], targets: Sequence[int], shares: Sequence[float], *, key: Sequence[int]
) -> dict[str, int]:
    """Return which part each group is in; every class is divided by the shares up to rounding.

    Classes are dealt one after the other, the one with the fewest groups first, as in iterative
    stratification (Sechidis et al. 2011, On the Stratification of Multi-Label Data). A group of
    several classes counts for each, is dealt with the rarest, and goes to the part that lacks most
    of that. A class whose groups show no other class is in every part if it has as many groups as
    there are parts. How many samples a group has counts for nothing. Takes n log n time.

    Args:
        groups: Group of each sample, (n,).
        targets: Class index of each sample, (n,).
        shares: Of the groups of each class, for each part; they sum to one.
        key: Seed of the draw.
    """
    shown: dict[str, set[int]] = defaultdict(set)
    for group, target in zip(groups, targets, strict=True):
        shown[group].add(target)
    owners: dict[int, list[str]] = defaultdict(list)
    for group in sorted(shown):
        for label in shown[group]:
            owners[label].append(group)
    held = {label: [0] * len(shares) for label in owners}
    counts = [0] * len(shares)
    part: dict[str, int] = {}
    rng = np.random.default_rng(list(key))

    def place(p: int, here: list[int], quotas: list[int]) -> tuple[bool, int, int]:
        return here[p] > 0 or quotas[p] == 0, here[p] - quotas[p], p

    for label in sorted(owners, key=lambda k: (len(owners[k]), k)):
        rest, here = [group for group in owners[label] if group not in part], held[label]
        total = len(part) + len(rest)
        lacks = [s * total - n + h for s, n, h in zip(shares, counts, here, strict=True)]
        quotas = _quotas(len(owners[label]), shares, lacks)
        queue = [place(p, here, quotas) for p in range(len(shares))]
        heapq.heapify(queue)
        for i in rng.permutation(len(rest)):
            p = queue[0][-1]
            part[rest[i]] = p
            counts[p] += 1
            for other in shown[rest[i]]:
                held[other][p] += 1
            heapq.heapreplace(queue, place(p, here, quotas))
    return part


def strata(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return a class for each sample that stands in for its labels where samples are divided.

    It is the rarest label that the sample shows, the first of several that are equally rare, so
    that rare labels are spread with the most care.

    Args:
        labels: 1 shown, 0 not, -1 unknown, (n, L).

    Returns:
        Index of a label, or L where none is shown, (n,).
    """
    shown = labels == 1
    never = len(labels) + 1
    rarity = np.where(shown, shown.sum(axis=0), never)
    none = np.full((len(labels), 1), len(labels))  # after labels shown, before those that are not
    ranks = np.concatenate([rarity, none], axis=1)
    return np.asarray(ranks.argmin(axis=1), dtype=np.int64)


def groups_by_class(groups: Sequence[str], targets: Sequence[int]) -> Mapping[int, list[str]]:
    """Return the groups of each class, sorted; one of mixed classes counts for its commonest."""
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for group, target in zip(groups, targets, strict=True):
        votes[group][target] += 1
    by_class: dict[int, list[str]] = defaultdict(list)
    for group in sorted(votes):
        label = min(votes[group], key=lambda t, g=group: (-votes[g][t], t))  # type: ignore[misc]
        by_class[label].append(group)
    return by_class


def _quotas(count: int, shares: Sequence[float], lacks: Sequence[float]) -> list[int]:
    """Return how many groups of one class each part is to have, at least one where that can be.

    What rounding down leaves over goes to the parts that lack most, over all classes: else many
    small classes would all be rounded in favour of one part.
    """
    quotas = [int(count * share) for share in shares]
    order = sorted(range(len(shares)), key=lambda p: quotas[p] - lacks[p])
    for p in order[: count - sum(quotas)]:
        quotas[p] += 1
    if count >= len(shares):
        for p in (p for p, quota in enumerate(quotas) if quota == 0):
            quotas[int(np.argmax(quotas))] -= 1
            quotas[p] = 1
    return quotas


def _require(found: int, least: int, why: str, remedy: str, class_name: str | None = None) -> None:
    if found < least:
        who = "there are" if class_name is None else f"class '{class_name}' has"
        raise DataError(f"{who} {found} independent groups of images, and {why}", remedy=remedy)

"""What lies on two sides of a split and must not, and copies that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medtransfer.audit.findings import Finding, Severity, cases, counted
from medtransfer.data.base import UNKNOWN, Record
from medtransfer.data.duplicates import Pair

Group = tuple[int, ...]

MOST = 32  # copies of one image that are paired with copies of another


def overlaps(
    records: Sequence[Record], patients: Sequence[str], sides: Sequence[str]
) -> Iterator[Finding]:
    """Yield patients, and exams, that lie in several splits.

    Args:
        records: (n,) samples.
        patients: (n,) patients, before any were merged.
        sides: (n,) splits, empty for none.
    """
    ids = [record.sample_id for record in records]
    exams = [record.exam_id for record in records]
    # where every patient has one exam, one leak would need two waivers
    whole = len(set(zip(patients, exams, strict=True))) == len(set(patients)) == len(set(exams))
    kinds = [("patient", patients)] if whole else [("patient", patients), ("exam", exams)]
    for word, keys in kinds:
        found = crossing(keys, sides)
        if found:
            yield Finding(
                f"{word}_overlap",
                "leak",
                f"{counted(len(found), word)} of {len(set(keys))} with images in several splits",
                len(found),
                cases(ids, found),
            )


def crossing(keys: Sequence[str], sides: Sequence[str]) -> list[Group]:
    """Return, of each key that lies in several splits, its first index in each of them."""
    firsts: dict[str, dict[str, int]] = {}
    for index, (key, side) in enumerate(zip(keys, sides, strict=True)):
        if side:
            firsts.setdefault(key, {}).setdefault(side, index)
    return [tuple(first.values()) for first in firsts.values() if len(first) > 1]


def duplicates(
    records: Sequence[Record], sides: Sequence[str], pairs: Sequence[Pair]
) -> Iterator[Finding]:
    """Yield copies in several splits, copies within one, and copies with different labels.

    Args:
        records: (n,) samples.
        sides: (n,) splits, empty for none.
        pairs: As `data.duplicates.find` returns them, and others.
    """
    ids = [record.sample_id for record in records]
    copies = _copies(pairs)
    across: dict[str, dict[Group, float]] = {"exact": {}, "near": {}}
    within: dict[Group, float] = {}
    conflicts: dict[Group, float] = {}
    for pair in pairs:
        first = copies.get(pair.first, (pair.first,))
        second = copies.get(pair.second, (pair.second,))
        if pair.kind == "exact":  # what comes later has pairs of its own
            first, second = tuple(i for i in first if i < pair.second), (pair.second,)
        couples = [(a, b) for a in first[:MOST] for b in second[:MOST]]
        crossed = [(a, b) for a, b in couples if sides[a] and sides[b] and sides[a] != sides[b]]
        opposed = [(a, b) for a, b in couples if _contradict(records[a], records[b])]
        a, b = records[pair.first], records[pair.second]
        if crossed:
            across[pair.kind].setdefault(_sorted(crossed[0]), pair.similarity)
        elif sides[pair.first] == sides[pair.second] and (
            # neighbouring slices of a volume are alike as a matter of course
            pair.kind == "exact" or a.exam_id != b.exam_id
        ):
            within.setdefault((pair.first, pair.second), pair.similarity)
        if opposed:
            conflicts.setdefault(_sorted(opposed[0]), pair.similarity)
    words = {"exact": "identical images", "near": "nearly identical images"}
    for kind, found in across.items():
        if found:
            message = f"{counted(len(found), 'pair')} of {words[kind]} in different splits"
            yield _finding(f"{kind}_duplicates", message, "leak", found, ids)
    if conflicts:
        message = f"{counted(len(conflicts), 'pair')} of copies with different labels"
        yield _finding("label_conflicts", message, "warning", conflicts, ids)
    if within:
        message = f"{counted(len(within), 'pair')} of copies on one side of the split"
        yield _finding("duplicates_within_split", message, "info", within, ids)


def _finding(
    code: str, message: str, severity: Severity, found: dict[Group, float], ids: Sequence[str]
) -> Finding:
    # the surest first: those are what a sheet shows
    order = sorted(found, key=lambda group: (-found[group], group))
    detail = {"similarity": [found[group] for group in order[:MOST]]}
    return Finding(code, severity, message, len(found), cases(ids, order), detail)


def _copies(pairs: Sequence[Pair]) -> dict[int, Group]:
    """Return all images that are identical to one, with itself, by the first of them."""
    copies: dict[int, list[int]] = {}
    for pair in pairs:
        if pair.kind == "exact":
            copies.setdefault(pair.first, [pair.first]).append(pair.second)
    return {first: tuple(members) for first, members in copies.items()}


def _sorted(couple: Group) -> Group:
    return tuple(sorted(couple))


def _contradict(a: Record, b: Record) -> bool:
    """Return whether two samples of one picture say different things of it."""
    known = zip(a.labels, b.labels, strict=True)
    return a.target != b.target or any(x != y and UNKNOWN not in (x, y) for x, y in known)

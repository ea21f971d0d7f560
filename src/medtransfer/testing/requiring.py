"""What a check says when something is not kept: in words, whatever runs it."""

from __future__ import annotations

from collections.abc import Collection

SHOWN = 3  # names in a message


def require(kept: bool, otherwise: str) -> None:
    """Go on only if something is kept.

    A plain `assert` would say nothing outside of the files that pytest rewrites, and is left out
    by `python -O`.

    Raises:
        AssertionError: If it is not; it says `otherwise`.
    """
    if not kept:
        raise AssertionError(otherwise)


def require_same(found: Collection[str], wanted: Collection[str], what: str) -> None:
    """Go on only if two collections have the same names.

    Args:
        found: Names that there are.
        wanted: Names that there should be.
        what: What they name, for the message.

    Raises:
        AssertionError: If they do not; it tells the first names of each side.
    """
    lacking, surplus = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    told = [
        f"{len(names)} {word} ({', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''})"
        for names, word in ((lacking, "lacking"), (surplus, "too many"))
        if names
    ]
    require(not told, f"{what}: {'; '.join(told)}")

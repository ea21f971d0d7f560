"""What an audit found, in a form that can be shown, kept and refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["leak", "warning", "info"]

KEPT = 50  # cases of each finding; `count` tells how many there are


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        code: Names the kind; leaks are waived by it.
        severity: `leak`: results would be wrong; `warning`: they may mislead; `info`: good to know.
        message: One sentence with the figures.
        count: How many cases there are.
        cases: Sample ids, those of one case together; the first `KEPT`.
        detail: Figures by name, of types that JSON has.
    """

    code: str
    severity: Severity
    message: str
    count: int
    cases: tuple[tuple[str, ...], ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Audit:
    """All that was found.

    Attributes:
        findings: Leaks first, then warnings, then what is good to know.
        summary: How many samples, patients, exams and findings there are.
    """

    findings: tuple[Finding, ...]
    summary: Mapping[str, Any]

    def leaks(self, waived: Collection[str]) -> tuple[Finding, ...]:
        """Return the leaks whose codes are not waived."""
        return tuple(f for f in self.findings if f.severity == "leak" and f.code not in waived)

    def as_dict(self) -> dict[str, Any]:
        """Return everything in types that JSON has."""
        return asdict(self)


def cases(ids: Sequence[str], groups: Sequence[Sequence[int]]) -> tuple[tuple[str, ...], ...]:
    """Return the sample ids of the first `KEPT` groups of indices."""
    return tuple(tuple(ids[i] for i in group) for group in groups[:KEPT])


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun, such as `2 pairs`."""
    return f"{count} {one if count == 1 else many or one + 's'}"

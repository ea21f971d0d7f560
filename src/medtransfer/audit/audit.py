"""A dataset and its split, looked through for all that would make results untrue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medtransfer.audit.content import pictures, prevalence, unreadable
from medtransfer.audit.findings import Audit, Finding, Severity
from medtransfer.audit.leakage import duplicates, overlaps
from medtransfer.audit.shortcuts import shortcuts
from medtransfer.data.duplicates import Pair

if TYPE_CHECKING:
    from medtransfer.data.decoded import Decoded

ORDER: tuple[Severity, ...] = ("leak", "warning", "info")


def audit(decoded: Decoded, sides: Sequence[str], *, pairs: Sequence[Pair]) -> Audit:
    """Return everything that is found in a dataset.

    Args:
        decoded: Its images, their facts and labels.
        sides: (n,) split of each sample, `train`, `val`, `test` or empty, before anything is merged
            or dropped.
        pairs: Copies, as `data.duplicates.find` returns them, and others.
    """
    records, patients, names = decoded.records, decoded.patients, decoded.class_names
    found: list[Finding] = [
        *overlaps(records, patients, sides),
        *duplicates(records, sides, pairs),
        *prevalence(records, patients, sides, names),
        *unreadable(decoded.skipped),
        *shortcuts(records, patients, decoded.facts, names),
        *pictures(records, decoded.facts),
    ]
    found.sort(key=lambda finding: ORDER.index(finding.severity))
    counts = Counter(finding.severity for finding in found)
    summary: dict[str, Any] = {
        "samples": len(records),
        "patients": len(set(patients)),
        "exams": len({record.exam_id for record in records}),
        "splits": dict(Counter(side or "none" for side in sides)),
        "classes": list(names),
        "findings": {severity: counts[severity] for severity in ORDER},
    }
    return Audit(tuple(found), summary)

"""From what a study declares to the jobs that answer it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any


def jobs(
    study: Mapping[str, Any], given: Sequence[tuple[str, Sequence[str]]]
) -> tuple[tuple[str, ...], ...]:
    """Return the overrides of every trial: seeds x axes x arms, the arms side by side.

    Args:
        study: `arms`, overrides by name; `axes`, values by key; `seeds`, how many or which.
        given: Keys of the command line with their values; they win over axes and arms, and
            several values of one key make an axis.
    """
    seeds = study["seeds"]
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    axes = {key: [str(v) for v in values] for key, values in study["axes"].items()}
    fixed = {key: values[0] for key, values in given if len(values) == 1}
    axes |= {key: list(values) for key, values in given if len(values) > 1}
    axes = {key: values for key, values in axes.items() if key not in fixed}
    axes = {"seed": [str(n) for n in numbers]} | axes
    found = []
    for values in product(*axes.values()):
        for arm, overrides in study["arms"].items():
            job = {"study.arm": _quoted(arm)}
            job |= dict(_split(overrides))
            job |= dict(zip(axes, values, strict=True))
            job |= fixed
            found.append(tuple(f"{key}={value}" for key, value in job.items()))
    return tuple(found)


def _quoted(text: str) -> str:
    """Return a text as Hydra's grammar takes any: names of arms are prose."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _split(overrides: Iterable[str]) -> Iterable[tuple[str, str]]:
    for override in overrides:
        key, _, value = override.partition("=")
        yield key, value

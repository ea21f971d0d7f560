"""From what a study declares to the jobs that answer it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

Job = tuple[str, ...]
"""The overrides of one trial."""

EXTERNAL = "dataset.external"
ASIDE = (  # begin the keys that make no other question of a study
    *("study", "seed=", "paths.", "tracking.", "hydra", "trusted_modules", "audit."),
    *("trainer.threads", "trainer.workers", "trainer.accelerator", "trainer.devices"),
)


@dataclass(frozen=True)
class Cell:
    """An arm under one setting of the axes: what is tuned once, and then trained for every seed.

    Attributes:
        arm: Its name.
        overrides: Values by key, the seed aside.
    """

    arm: str
    overrides: Mapping[str, str]

    def job(self, seed: str, **more: str) -> Job:
        """Return the job of a seed.

        Args:
            seed: Of the trial.
            **more: Further values, by key with `__` for each dot; they win over the cell's own.
        """
        added = {key.replace("__", "."): value for key, value in more.items()}
        return self.with_settings(seed, {}, added)

    def with_settings(
        self, seed: str, settings: Mapping[str, Any], more: Mapping[str, str] | None = None
    ) -> Job:
        """Return the job of a seed with settings that were tuned."""
        job = {**self.overrides, "seed": seed, **(more or {})}
        if settings:
            job["study.tuned"] = f"[{','.join(settings)}]"
            job |= {key: json.dumps(value) for key, value in settings.items()}
        return tuple(f"{key}={value}" for key, value in job.items())


@dataclass(frozen=True)
class Declared:
    """What a study declares, and the command line with it.

    Attributes:
        cells: Arms side by side, under one setting of the axes after another.
        axes: Their keys, those of a single value too: it may get company later.
        seeds: Of the final trials.
        seed: Of the draws, and of tuning trials.
        fixed: Keys that are not tuned, since somebody has given them a value.
        trials: How many settings are tried for each cell.
        limits: What tuning trials run with besides, by key.
        sampler: Which of Optuna's samplers draws.
    """

    cells: tuple[Cell, ...]
    axes: tuple[str, ...]
    seeds: tuple[str, ...]
    seed: int
    fixed: frozenset[str]
    trials: int
    limits: Mapping[str, str]
    sampler: str

    @classmethod
    def of(cls, study: Mapping[str, Any], given: Sequence[tuple[str, Sequence[str]]]) -> Declared:
        """Read a study.

        Args:
            study: The values of the config group `study`.
            given: Keys of the command line with their values; they win over axes and arms, and
                several values of one key make an axis.
        """
        seeds = study["seeds"]
        numbers = range(seeds) if isinstance(seeds, int) else seeds
        axes = {spelled(key): [str(v) for v in values] for key, values in study["axes"].items()}
        fixed = {key: values[0] for key, values in given if len(values) == 1}
        axes |= {key: list(values) for key, values in given if len(values) > 1}
        axes = {key: values for key, values in axes.items() if key not in fixed}
        of_seed = axes.pop("seed", [fixed.pop("seed")] if "seed" in fixed else None)
        arms = {name: dict(_split(overrides)) for name, overrides in study["arms"].items()}
        cells = [
            Cell(
                arm,
                {"study.arm": _quoted(arm)} | told | dict(zip(axes, values, strict=True)) | fixed,
            )
            for values in product(*axes.values())
            for arm, told in arms.items()
        ]
        return cls(
            cells=tuple(cells),
            axes=tuple(axes),
            seeds=tuple(of_seed or map(str, numbers)),
            seed=study["seed"],
            fixed=frozenset({*fixed, *axes, *(key for told in arms.values() for key in told)}),
            trials=study["budget"]["trials"],
            limits=_limits(study["budget"]),
            sampler=study["search"]["sampler"],
        )

    def final(self, settings: Mapping[int, Mapping[str, Any]] | None = None) -> list[Job]:
        """Return the jobs of the final trials: seeds x cells, arms side by side.

        Args:
            settings: What was chosen for each cell, by its place; nothing: as the YAML has it.
        """
        return [
            cell.with_settings(seed, (settings or {}).get(place, {}))
            for seed in self.seeds
            for place, cell in enumerate(self.cells)
        ]

    def tuning(self, place: int, draw: int, settings: Mapping[str, Any]) -> Job:
        """Return the job that tries settings for a cell; it never sees the test set."""
        told = {"study.phase": "tuning", "study.draw": str(draw), "test": "false"}
        told |= {"trainer.checkpoint": "none", **self.limits}
        return self.cells[place].with_settings(str(self.seed), settings, told)


def spelled(key: str) -> str:
    """Return a key as Hydra has it: the external dataset is a choice, at a place of its own."""
    return f"dataset@{EXTERNAL}" if key == EXTERNAL else key


def spelled_override(override: str) -> str:
    """Return an override with its key as Hydra has it."""
    key, equals, value = override.partition("=")
    return f"{spelled(key)}{equals}{value}"


def signature(overrides: Sequence[str]) -> str:
    """Return what makes a call another question, and not more of the same.

    How many seeds, arms, values of an axis and draws there are does not; nor do places and the
    machine's settings.
    """
    told = []
    for override in overrides:
        key, _, value = override.partition("=")
        if not override.lstrip("+~").startswith(ASIDE):
            several = "," in value and not value.startswith(("[", "{", "'", '"'))
            told.append(key if several else override)
    return " ".join(sorted(told))


def _limits(budget: Mapping[str, Any]) -> dict[str, str]:
    keys = {"max_steps": "trainer.max_steps", "seconds": "trainer.max_seconds"}
    return {key: str(budget[name]) for name, key in keys.items() if budget[name] is not None}


def _quoted(text: str) -> str:
    """Return a text as Hydra's grammar takes any: names of arms are prose."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _split(overrides: Iterable[str]) -> Iterable[tuple[str, str]]:
    for override in overrides:
        key, _, value = override.partition("=")
        yield spelled(key), value

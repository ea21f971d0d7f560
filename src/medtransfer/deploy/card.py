"""A model card (Mitchell et al. 2019, arXiv 1810.03993): what a model is, and is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medtransfer import __version__
from medtransfer.analysis.load import load_study
from medtransfer.analysis.report.build import build
from medtransfer.deploy.trained import Trained
from medtransfer.tracking import records
from medtransfer.tracking.runs import TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

UNITS = {
    "class": "one class for each image",
    "exam": "one class for the images of an exam together",
    "labels": "labels of which several may hold for an image",
    "mask": "a class for each pixel",
    "boxes": "boxes with a class and a score",
}
LIMITS = (
    "It was trained and tested on the data above and on nothing else. On images of other scanners,"
    " sites, populations or protocols it may fail without a sign.",
    "It is no medical device, and nobody has shown that it helps anyone in a clinic.",
    "Its scores are no probabilities of disease: they depend on how frequent each class was in"
    " training, and on calibration, which the report shows.",
)


def write_card(client: MlflowClient, trained: Trained) -> str:
    """Return the card of a trained model, in Markdown."""
    run_id, spec = trained.run_id, trained.spec
    tags = trained.run.data.tags
    data = records.document(client, run_id, "data.json") or {}
    weights = records.document(client, run_id, "weights.json") or {}
    parts: list[str] = [
        f"# {trained.name}",
        f"A model for {trained.task.replace('_', ' ')}: {UNITS[spec.annotation]}. Trained by"
        f" medtransfer {__version__} in MLflow run `{run_id}`.",
        "## Use",
        f"Classes: {', '.join(spec.class_names)}. Input: images of {spec.channels} channel"
        f"{'s' * (spec.channels > 1)}, scaled to fit {spec.image_size} x {spec.image_size} pixels"
        " and padded with black, values in [0, 1]; it normalises by itself.",
        f"Intended for research on data like those it was trained on. `medtransfer predict {run_id}"
        " IMAGES --out DIR` uses it.",
        "## Data",
        _table(
            ("", ""),
            [
                ("dataset", tags.get(TAG + "dataset", "")),
                ("training cases", tags.get(TAG + "n_train", "")),
                *[
                    (f"training cases of {name}", count)
                    for name, count in zip(spec.class_names, spec.train_counts, strict=True)
                ],
                ("hash of the data", spec.data_hash),
                ("hash of the split", spec.split_hash),
                ("images as stored", _told(data.get("sources", {}))),
            ],
        ),
        *_notes(tags, data),
        "## Training",
        _table(
            ("", ""),
            [
                ("backbone", tags.get(TAG + "backbone", "")),
                ("weights it started from", weights.get("source", "")),
                ("which were trained on", weights.get("trained_on", "")),
                ("their licence", weights.get("licence", "")),
                ("strategy", tags.get(TAG + "strategy", "")),
                ("seed", tags.get(TAG + "seed", "")),
                ("code", tags.get("mlflow.source.git.commit", "")),
            ],
        ),
        "## Results",
        *_results(client, trained),
        "## Limits",
        "\n".join(f"- {limit}" for limit in LIMITS),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(client: MlflowClient, trained: Trained) -> Sequence[str]:
    found = build(load_study(client, trained.run_id))
    rows = [
        (name.removeprefix("test/"), f"{value:.4f}")
        for name, value in sorted(trained.run.data.metrics.items())
        if name.startswith("test/")
    ]
    if not rows:
        return ["The test set was not opened in this run."]
    openings = trained.run.data.tags.get(TAG + "test_openings", "1")
    told = [
        f"{found.metric} {arm.mean:.3f} (95 % CI {arm.lo:.3f} to {arm.hi:.3f}) on {arm.n_cases}"
        f" test cases of {arm.n_groups} groups, seen {openings} time(s) by this run. The interval"
        " is over cases, not over trainings."
        for arm in found.arms
        if arm.mean is not None and arm.lo is not None and arm.hi is not None
    ]
    return [*told, _table(("test metric", "value"), rows)]


def _notes(tags: Mapping[str, str], data: Mapping[str, Any]) -> Sequence[str]:
    notes = list(json.loads(tags.get(TAG + "notes", "[]")))
    notes += [f"leak that was put up with: {code}" for code in data.get("waived", [])]
    skipped = data.get("skipped", [])
    notes += [f"{len(skipped)} images or boxes were left out"] if skipped else []
    return ["\n".join(f"- {note}" for note in notes)] if notes else []


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in values.items())


def _table(head: tuple[str, str], rows: Sequence[tuple[str, Any]]) -> str:
    cell = str.maketrans({"|": r"\|", "\n": " "})
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    lines += [f"| {a} | {str(b).translate(cell)} |" for a, b in rows if str(b)]
    return "\n".join(lines)

"""Where in images a trained model sees what it says, and which images of an exam count."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor

from medtransfer.canvas import PALE, Picture, below, beside, line
from medtransfer.data.loading import Batch, Data
from medtransfer.deploy.folders import new_folder
from medtransfer.deploy.predicting import describe, open_images
from medtransfer.deploy.trained import Trained
from medtransfer.drawing import draw_panel
from medtransfer.errors import ConfigError
from medtransfer.feed import device_of
from medtransfer.tasks.exam_classification import ExamClassification
from medtransfer.tasks.examples import Panel
from medtransfer.tasks.heat import grad_cam

SIDE, GAP, ACROSS = 400, 12, 4  # pixels of a panel and between two; panels in a row
TITLE, TEXT = 18, 13
NOTE = "brighter: speaks for the class (Grad-CAM, Selvaraju et al. 2017); it shows where, not why"
NOTHING = "nothing in the image speaks for the class"


@dataclass(frozen=True, eq=False)
class _Case:
    """One image, or the images of one exam, with what speaks for a class in each."""

    name: str
    target: str
    score: float | None
    images: list[int]
    heat: np.ndarray[Any, Any] | None
    weights: list[float] | None


def explain(
    trained: Trained, paths: Sequence[Path], out: Path, *, target: str | None, skip: bool
) -> int:
    """Write a picture for each image, or each exam, and `explanations.json`.

    Args:
        trained: The model.
        paths: Files and folders.
        out: The folder; it is made, and must be empty if it is there.
        target: The class that is asked about; None: what is predicted.
        skip: Whether images that cannot be read are left out.

    Returns:
        How many there are.

    Raises:
        ConfigError: If there is no such class, or the network has no places to show.
        DataError: If an image cannot be read.
        StoreError: If the folder is not empty or cannot be written.
    """
    names = trained.spec.class_names
    if target is not None and target not in names:
        raise ConfigError(f"there is no class '{target}'", value=target, choices=names)
    if trained.model.backbone.place() is None:
        raise ConfigError(
            f"backbone '{trained.model.backbone.name}' has no layer that keeps the places of the"
            " image",
            remedy="medtransfer predict tells what it says",
        )
    told: list[dict[str, Any]] = []
    with new_folder(out) as folder, tempfile.TemporaryDirectory() as scratch:
        data = open_images(trained, paths, Path(scratch), skip=skip)
        for number, case in enumerate(_cases(trained, data, target)):
            stem = re.sub(r"[^\w.-]+", "_", case.name).strip("._") or "image"
            name = f"{number + 1:04d}-{stem}.png"
            _page(case, data).save(folder / name)
            told.append(_told(case, data, name))
        content = {**describe(trained), "cases": told}
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / "explanations.json").write_text(text, encoding="utf-8")
    return len(told)


def _cases(trained: Trained, data: Data, target: str | None) -> Iterator[_Case]:
    device = device_of(trained.settings)
    for batch in data.loader("test", batch_size=1):  # each case has a class of its own
        yield _case(trained, data, move_data_to_device(batch, device), target)


def _case(trained: Trained, data: Data, batch: Batch, target: str | None) -> _Case:
    model, names = trained.model, data.spec.class_names
    records, index = data.decoded.records, batch["index"].tolist()
    exam = isinstance(model, ExamClassification)
    more = [batch["view"]] if exam else []
    images = batch["image"].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        said = model.outputs(images, *more)
        evidence = model.evidence(images, *more)[0]
    of_cases = data.spec.annotation not in {"mask", "boxes"}
    scores = said["scores"][0] if of_cases else None
    chosen = int((evidence if scores is None else scores).argmax())
    chosen = chosen if target is None else names.index(target)
    heat = grad_cam(model.backbone, images, partial(_call, model, more), chosen)
    return _Case(
        name=records[index[0]].exam_id if exam else records[index[0]].sample_id,
        target=names[chosen],
        score=None if scores is None else float(scores[chosen]),
        images=index,
        heat=None if heat is None else heat.cpu().numpy(),
        weights=said["weights"].tolist() if exam else None,
    )


def _call(model: Any, more: Sequence[Tensor], images: Tensor) -> Tensor:
    found: Tensor = model.evidence(images, *more)
    return found


def _page(case: _Case, data: Data) -> Picture:
    score = "" if case.score is None else f", probability {case.score:.2f}"
    panels = []
    for place, index in enumerate(case.images):
        record, heading = data.decoded.records[index], ""
        if case.weights is not None:
            heading = f"{record.view or record.sample_id}, weight {case.weights[place]:.2f}"
        heat = None if case.heat is None else case.heat[place]
        pixels = data.decoded.images[index]
        if case.weights is None:
            panels.append(draw_panel(Panel("image"), pixels, SIDE))
            heading = "heat"
        panels.append(draw_panel(Panel(heading, heat=heat), pixels, SIDE))
    rows = [beside(panels[k : k + ACROSS], GAP) for k in range(0, len(panels), ACROSS)]
    width = max(row.width for row in rows)
    empty = case.heat is None or not case.heat.any()
    words = [
        line(case.name, width, TITLE),
        line(f"{case.target}{score}", width, TEXT),
        line(NOTHING if empty else NOTE, width, TEXT, PALE),
    ]
    return below([*words, *rows], GAP)


def _told(case: _Case, data: Data, picture: str) -> dict[str, Any]:
    told: dict[str, Any] = {"sample_id": case.name, "class": case.target, "picture": picture}
    told |= {} if case.score is None else {"score": case.score}
    if case.weights is not None:
        told["images"] = [
            {
                "sample_id": data.decoded.records[index].sample_id,
                "view": data.decoded.records[index].view,
                "weight": weight,
            }
            for index, weight in zip(case.images, case.weights, strict=True)
        ]
    return told

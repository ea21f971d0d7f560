"""A trained model in a file that other programs run: ONNX, torch.export, or a model of MLflow's.

What is exported takes images as `Task.outputs` does, squares of floats in [0, 1], and normalises by
itself; it computes in fp32. It is compared with the trial's own model before its file appears.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtransfer.deploy.folders import new_file, new_folder
from medtransfer.deploy.predicting import describe
from medtransfer.deploy.trained import Trained
from medtransfer.errors import ConfigError, ExportError
from medtransfer.heads.faster_rcnn import FasterRCNN
from medtransfer.strategies.classic_head import Fitted
from medtransfer.tasks.base import Task
from medtransfer.tasks.exam_classification import ExamClassification
from medtransfer.tasks.segmentation import Segmentation

Format = Literal["onnx", "torch_export", "mlflow"]
Runs = Callable[[dict[str, NDArray[Any]]], Sequence[NDArray[Any]]]

TOLERANCE = 1e-4  # of a probability; a box may be off by this part of the image's side
OPSET = 18
CARD = "MODEL_CARD.md"
FACTS = "medtransfer.json"


class Exported(nn.Module):
    """A model as a function of tensors, which returns its outputs in the order of their names.

    Args:
        model: In eval mode.
    """

    def __init__(self, model: Task) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, view: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return the values of `Task.outputs`; only exams have views."""
        more = () if view is None else (view,)
        return tuple(self.model.outputs(image, *more).values())


@dataclass(frozen=True)
class Signature:
    """What an exported model takes and returns.

    Attributes:
        inputs: An example of each input, by name.
        outputs: Names.
        varies: Whether the first dimension of an input, the number of images, may be any.
    """

    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    varies: bool


def export(trained: Trained, form: Format, out: Path, card: str) -> float:
    """Write a model and, beside it, a card that says what it is for.

    Args:
        trained: The model.
        form: Of the file; a model of MLflow's is a folder.
        out: Where.
        card: The text of the card.

    Returns:
        The largest difference between an output and the trial's own model.

    Raises:
        ConfigError: If such a model has no such form.
        ExportError: If it cannot be exported, or the file says something else than the model.
        StoreError: If the file cannot be written.
    """
    model = _portable(trained, form)
    signature = signature_of(trained)
    facts = {
        **describe(trained),
        "precision": "fp32",
        "inputs": {name: list(value.shape) for name, value in signature.inputs.items()},
        "outputs": signature.outputs,
    }
    if form == "mlflow":
        with new_folder(out) as folder:
            # MLflow makes its folder itself
            place = folder / "model"
            with _explained(trained):
                _write_mlflow(model, signature, place, facts)
            found = _compared(model, signature, runner("onnx", place / "model.onnx"))
            (place / CARD).write_text(card, encoding="utf-8")
            for each in place.iterdir():
                each.rename(folder / each.name)
            place.rmdir()
        return found
    write = _write_onnx if form == "onnx" else _write_torch
    with new_file(out, ".pt2" if form == "torch_export" else ".onnx") as partial:
        with _explained(trained):
            write(model, signature, partial, facts)
        found = _compared(model, signature, runner(form, partial))
        out.with_suffix(".md").write_text(card, encoding="utf-8")
    return found


def signature_of(trained: Trained, count: int = 2) -> Signature:
    """Return what an exported model takes, with an example of so many images."""
    spec, model = trained.spec, trained.model
    one = isinstance(model.head, FasterRCNN)
    size = model.patch if isinstance(model, Segmentation) and model.patch else spec.image_size
    images = examples(1 if one else count, spec.channels, size)
    inputs = {"image": images}
    if isinstance(model, ExamClassification):
        inputs["view"] = torch.arange(len(images)) % max(1, len(spec.views))
    with torch.no_grad():
        names = tuple(model.outputs(*_on(model, inputs)))
    return Signature(inputs, names, varies=not one)


def examples(count: int, channels: int, size: int, seed: int = 0) -> Tensor:
    """Return images that are neither flat nor noise alone, (count, channels, size, size)."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((count, channels, 8, 8), dtype=np.float32))
    smooth = nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    noise = torch.from_numpy(rng.random((count, channels, size, size), dtype=np.float32))
    return 0.8 * smooth + 0.2 * noise


def runner(form: Format, path: Path) -> Runs:
    """Return a function that runs an exported file on arrays by name."""
    if form == "torch_export":
        program = torch.export.load(path).module()

        def run(inputs: dict[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
            with torch.no_grad():
                found = program(*(torch.from_numpy(each) for each in inputs.values()))
            return [each.numpy() for each in found]

        return run
    import onnxruntime

    start: Any = onnxruntime
    session = start.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {each.name for each in session.get_inputs()}
    return lambda inputs: cast(
        "Sequence[NDArray[Any]]",
        session.run(None, {k: v for k, v in inputs.items() if k in taken}),
    )


def difference(model: Task, inputs: dict[str, Tensor], run: Runs, names: Sequence[str]) -> float:
    """Return by how much outputs differ at most; of boxes as a part of the image's side.

    Candidates of a detector are a set: where two score alike, either may come first. What is
    returned for them is how far one is at most from the nearest one of the other set.
    """
    with torch.no_grad():
        ours = [each.cpu() for each in model.outputs(*_on(model, inputs)).values()]
    theirs = [torch.from_numpy(each) for each in run({k: v.numpy() for k, v in inputs.items()})]
    side = inputs["image"].shape[-1]
    if "boxes" not in names:
        return max(_largest(one, other) for one, other in zip(ours, theirs, strict=True))
    boxes = names.index("boxes")
    for values in (ours, theirs):
        values[boxes] = values[boxes] / side
    one, other = (torch.cat(values, 2) for values in (ours, theirs))
    aligned = _largest(one, other)
    if aligned <= TOLERANCE:
        return aligned
    return max(_apart(*pair) for pair in zip(one, other, strict=True))


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else math.inf


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the Hausdorff distance of two sets of rows, by their largest coordinate."""
    if not len(one) or not len(other):
        return 0.0 if len(one) == len(other) else math.inf
    distances = torch.cdist(one.double(), other.double(), p=math.inf)
    return float(max(distances.amin(0).max(), distances.amin(1).max()))


def _on(model: Task, inputs: dict[str, Tensor]) -> list[Tensor]:
    return [value.to(model.device) for value in inputs.values()]


def _portable(trained: Trained, form: Format) -> Task:
    """Return the model as it can be exported: on the CPU, in the plain memory layout.

    Raises:
        ConfigError: If it cannot.
    """
    model = trained.model
    if any(isinstance(module, Fitted) for module in model.modules()):
        raise ConfigError(
            "the head of this trial is a classifier of scikit-learn's, which no such file can hold",
            remedy="medtransfer predict uses it; strategy=feature_extraction can be exported",
        )
    if form == "torch_export" and isinstance(model.head, FasterRCNN):
        raise ConfigError(
            "Faster R-CNN looks at as many regions as it finds, which torch.export cannot follow",
            remedy="--format onnx, or head=retinanet or fcos",
        )
    return model.to("cpu", memory_format=torch.contiguous_format).eval()


def _compared(model: Task, signature: Signature, run: Runs) -> float:
    """Return the largest difference of an exported model on several numbers of images.

    Raises:
        ExportError: If it is too large.
    """
    shape = signature.inputs["image"].shape
    counts = (1, 3) if signature.varies else (1,)
    found = 0.0
    for count in counts:
        images = examples(count, shape[1], shape[2], seed=1)
        inputs = {"image": images}
        if "view" in signature.inputs:
            views = int(signature.inputs["view"].max()) + 1
            inputs["view"] = torch.arange(count) % views
        found = max(found, difference(model, inputs, run, signature.outputs))
    if found > TOLERANCE:
        raise ExportError(
            f"the exported model differs from the trial's by {found:.2g}, and nothing was written",
            remedy="another --format",
        )
    return found


def _program(model: Task, signature: Signature) -> torch.export.ExportedProgram:
    arguments = tuple(signature.inputs.values())
    dynamic = None
    if signature.varies:
        count = torch.export.Dim("images", min=1, max=4096)
        dynamic = tuple({0: count} for _ in arguments)
    whole = Exported(model).eval()
    with torch.no_grad():
        return torch.export.export(whole, arguments, dynamic_shapes=dynamic, strict=False)


def _write_torch(model: Task, signature: Signature, path: Path, facts: dict[str, Any]) -> None:
    program = _program(model, signature)
    torch.export.save(program, path, extra_files={FACTS: json.dumps(facts)})


def _write_onnx(model: Task, signature: Signature, path: Path, facts: dict[str, Any]) -> None:
    import onnx

    names = list(signature.inputs)
    arguments = tuple(signature.inputs.values())
    shared: dict[str, Any] = {
        "input_names": names,
        "output_names": list(signature.outputs),
        "opset_version": OPSET,
        "verbose": False,
    }
    if signature.varies:
        program = _program(model, signature)
        torch.onnx.export(program, (), path, external_data=False, **shared)
    else:  # loops over what is found are followed by the older exporter alone
        with torch.no_grad():
            torch.onnx.export(Exported(model).eval(), arguments, path, dynamo=False, **shared)
    content = onnx.load(path)
    onnx.helper.set_model_props(content, {"medtransfer": json.dumps(facts)})
    onnx.save(content, path)


def _write_mlflow(model: Task, signature: Signature, path: Path, facts: dict[str, Any]) -> None:
    import mlflow.onnx
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    scratch = path.with_name("export.onnx")
    _write_onnx(model, signature, scratch, facts)
    content = onnx.load(scratch)
    scratch.unlink()
    arrays = {name: value.numpy() for name, value in signature.inputs.items()}
    with torch.no_grad():
        outputs = model.outputs(*signature.inputs.values())

    def of(values: dict[str, NDArray[Any]]) -> Schema:
        return Schema([TensorSpec(v.dtype, (-1, *v.shape[1:]), name=k) for k, v in values.items()])

    returned = {name: value.numpy() for name, value in outputs.items()}
    mlflow.onnx.save_model(
        content,
        str(path),
        signature=ModelSignature(inputs=of(arrays), outputs=of(returned)),
        input_example=arrays,
        pip_requirements=_requirements(),
        metadata={"medtransfer": json.dumps(facts)},
        save_as_external_data=False,
    )


def _requirements() -> list[str]:
    """Return what serving wants, by exact versions; torch is not among it."""
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in ("mlflow", "onnx", "onnxruntime", "numpy")]


@contextmanager
def _explained(trained: Trained) -> Iterator[None]:
    """Keep exporters quiet, and say what they cannot do in the program's own words."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as error:
        raise ConfigError(
            f"exporting wants '{error.name}', which is not installed",
            remedy="pip install 'medtransfer[export]'",
        ) from None
    except Exception as error:  # exporters fail in their own ways
        lines = str(error).strip().splitlines() or [""]
        raise ExportError(
            f"the model of trial '{trained.run_id}' cannot be exported: {type(error).__name__}:"
            f" {lines[0]}",
            remedy="another --format; medtransfer predict always works",
        ) from error
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

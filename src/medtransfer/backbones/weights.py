"""Where a backbone's values come from, with a report of what was loaded and its provenance."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medtransfer.backbones.base import Backbone
from medtransfer.backbones.channels import adapt_channels
from medtransfer.errors import WeightsError

METADATA_KEY = "medtransfer"
# What other programs put before the names of a backbone's parameters, the longest first.
PREFIXES = ("module.backbone.", "backbone.", "encoder.", "module.", "model.", "")


@dataclass(frozen=True)
class Provenance:
    """What is known of a set of weights; logged with every trial.

    Attributes:
        source: Where they come from: `random`, a hub's repository, a pre-training source.
        trained_on: The images that they have seen.
        licence: Under which they may be used, as far as it is known.
        sha256: Hash of the loaded tensors, by name and value.
        statistics: Whether the statistics of normalisation layers were learnt with them.
        seen: Hashes of the groups and images that they were trained on, where it is known.
        detail: Anything else that the source tells, such as its recipe.
    """

    source: str
    trained_on: str
    licence: str
    sha256: str
    statistics: bool
    seen: dict[str, list[str]] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Weights(ABC):
    """A source of values for a backbone.

    Attributes:
        path: A file, where the source reads one.
        tag: Which set of several, where the source has them.
        sha256: Refuse a file whose hash differs.
        near: Hashes of the trial's data and split, to find what was pre-trained on them.
    """

    path: Path | None
    tag: str | None
    sha256: str | None
    near: tuple[str, str] = ("", "")

    @abstractmethod
    def load(self, backbone: Backbone) -> Provenance:
        """Fill `backbone` and say with what.

        Raises:
            WeightsError: If the weights cannot be had or do not fit.
        """

    def version(self, backbone: Backbone, seed: int) -> object:  # noqa: ARG002
        """Return what equals an earlier version only if `load` would give the same values again.

        Args:
            backbone: What was or would be filled.
            seed: That torch was given before.
        """
        return object()  # nobody knows, so they are loaded each time

    def classifier(self, backbone: Backbone) -> nn.Linear | None:  # noqa: ARG002
        """Return the layer that named the source's classes, from the embedding to their logits.

        None where the weights brought none, or where it is no plain layer on `embed`'s output.

        Args:
            backbone: What these weights were loaded into.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class Random(Weights):
    """The values that the architecture was initialised with, no branch of it switched off.

    Residual networks are often initialised with scales of zero at the end of each branch, which
    helps long trainings. Frozen, such a network would be nearly its stem alone: a control that is
    too easy to beat. Those scales start at one; training from scratch was better with them, too.
    """

    def load(self, backbone: Backbone) -> Provenance:
        """See `Weights.load`."""
        for module in backbone.modules():
            scale = getattr(module, "weight", None)
            if isinstance(scale, nn.Parameter) and scale.ndim == 1 and not scale.any():
                nn.init.ones_(scale)
        return Provenance("random", "nothing", "none", hash_tensors(backbone.state_dict()), False)

    def version(self, backbone: Backbone, seed: int) -> object:  # noqa: ARG002
        """See `Weights.version`."""
        return seed


def save(backbone: Backbone, path: Path, **known: Any) -> None:
    """Write a backbone to one safetensors file, with what is known of it in the header.

    Args:
        backbone: What to write; its tensors lie under the names of its `state_dict`.
        path: The file.
        **known: Provenance: `source`, `trained_on`, `licence` and the recipe, as JSON values.
    """
    header = {"backbone": backbone.name, "channels": backbone.channels_in, **known}
    write(backbone.state_dict(), path, header)


def write(
    state: Mapping[str, Tensor], path: Path, header: Mapping[str, Any], *, half: bool = False
) -> None:
    """Write tensors to one safetensors file, which appears whole or not at all.

    Args:
        state: Tensors by name.
        path: The file.
        header: What is known of them, as JSON values; `read_tensors` brings it back.
        half: Write floating-point values in half precision.
    """
    values = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    if half:
        values = {k: v.half() if v.is_floating_point() else v for k, v in values.items()}
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(values, partial, metadata={METADATA_KEY: json.dumps(header)})
    partial.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file, and what its header says of them.

    Nothing in the file is executed: only safetensors and `weights_only` checkpoints are read.

    Raises:
        WeightsError: If the file is damaged, or holds anything but tensors.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                return {key: file.get_tensor(key) for key in list(file.keys())}, metadata(file)
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"'{path}' is damaged or not a safetensors file: {error}",
                remedy="make or fetch the file again",
            ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what it might be instead
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler stumbles over damaged files in many ways
        found = re.search(r"GLOBAL (\S+)", str(error))  # the rest tells how to execute it
        raise WeightsError(
            f"'{path}' is not a checkpoint of plain tensors, and was not executed:"
            f" {f'it names {found[1]}' if found else type(error).__name__}",
            remedy="save its state_dict as safetensors where you trust it",
        ) from None
    for key in ("state_dict", "model", "teacher", "student"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise WeightsError(f"'{path}' holds a {type(content).__name__} and no state dict")
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}, {}


def fit(
    backbone: Backbone, state: Mapping[str, Tensor], *, source: str, channels: int | None = None
) -> dict[str, Any]:
    """Load tensors into a backbone, whatever prefix their names carry.

    Args:
        backbone: What is filled.
        state: Tensors by name.
        source: Names them in messages.
        channels: Of the images that they were made for; None when nobody says, and the shape of
            the first layer has to.

    Returns:
        The key report: how many tensors were `loaded`, and the names of those that were `left_out`,
        such as a classifier's. None can be missing.

    Raises:
        WeightsError: If a tensor of the backbone is missing, of another shape or not finite.
    """
    if not list(backbone.parameters()):
        raise WeightsError(
            f"backbone '{backbone.name}' has no parameters that '{source}' could fill",
            remedy="weights=random",
        )
    own = backbone.state_dict()
    stripped = max(
        ({k[len(p) :]: v for k, v in state.items() if k.startswith(p)} for p in PREFIXES),
        key=lambda candidate: len(_named_like(own, candidate)),
    )
    values = _named_like(own, stripped)
    expected = {"mean", "std"}  # files of other programs do not carry the normalisation
    missing = sorted(own.keys() - values.keys() - expected)
    left_out = sorted(name for name in stripped if not {name, f"model.{name}"} & values.keys())
    remedy = f"use weights that were made for '{backbone.name}', or the backbone they are made for"
    if missing:
        raise WeightsError(
            f"'{source}' does not fit backbone '{backbone.name}': {len(values)} of {len(own)}"
            f" tensors match, {len(missing)} are missing (first '{missing[0]}'),"
            f" {len(left_out)} are left over",
            remedy=remedy,
        )
    wanted = backbone.channels_in
    made_for = _channels_of(backbone, values) if channels is None else channels
    values = adapt_channels(values, own, made_for, wanted, source)
    for key, value in values.items():
        if value.shape != own[key].shape:
            raise WeightsError(
                f"'{source}' does not fit backbone '{backbone.name}': '{key}' is"
                f" {tuple(value.shape)} and should be {tuple(own[key].shape)}",
                remedy=remedy,
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"'{source}' holds values in '{key}' that are not finite",
                remedy="make or fetch the weights again",
            )
    backbone.load_state_dict({**own, **values})
    adapted = {} if made_for == wanted else {"channels": f"{made_for} to {wanted}"}
    return {"loaded": len(values), "left_out": left_out, **adapted}


def hash_tensors(state: Mapping[str, Tensor]) -> str:
    """Return a hash of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _channels_of(backbone: Backbone, values: Mapping[str, Tensor]) -> int:
    """Return for how many channels the first convolution was made."""
    for name, module in backbone.named_modules():
        kernel = values.get(f"{name}.weight")
        if (
            isinstance(module, nn.Conv2d)
            and module.in_channels == backbone.channels_in
            and kernel is not None
            and kernel.ndim == 4
        ):
            return kernel.shape[1]
    return backbone.channels_in


def _named_like(own: Mapping[str, Tensor], candidate: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the candidate's tensors under the backbone's names, which may add `model.`."""
    direct = {key: value for key, value in candidate.items() if key in own}
    nested = {f"model.{key}": v for key, v in candidate.items() if f"model.{key}" in own}
    return max(direct, nested, key=len)


def metadata(file: Any) -> dict[str, Any]:
    """Return what the header of a safetensors file tells; nothing where it is not ours."""
    try:
        found = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

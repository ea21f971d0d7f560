"""Weights of timm's hub, online or from the hub's local cache."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from huggingface_hub import constants
from timm.data.imagenet_info import infer_imagenet_subset
from torch import nn

from medtransfer.backbones.base import Backbone, Normalisation
from medtransfer.backbones.timm import TimmBackbone, create
from medtransfer.backbones.weights import Provenance, Weights, fit, hash_tensors
from medtransfer.errors import WeightsError

TIMEOUT = 3.0  # seconds
REMEDY_OFFLINE = (
    "copy the hub's cache folder from a machine that is online and set HF_HOME to it,"
    " give a file with 'weights=file weights.path=FILE',"
    " or train weights here with 'medtransfer pretrain source=synthetic'"
)


def unreachable() -> str:
    """Return why the hub cannot be reached, or nothing when it answers."""
    return "switched off by HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else _asked()


@cache
def _asked() -> str:
    """Ask the hub, once a process."""
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT):
            return ""
    except urllib.error.HTTPError:
        return ""  # an answer, if not a kind one
    except OSError as error:
        return f"{constants.ENDPOINT} cannot be reached ({getattr(error, 'reason', error)})"


@dataclass(frozen=True, kw_only=True)
class Hub(Weights):
    """A set of weights that timm knows by the model's name and a tag."""

    def load(self, backbone: Backbone) -> Provenance:
        """See `Weights.load`; timm itself adapts the first layer to the number of channels."""
        if not isinstance(backbone, TimmBackbone):
            raise WeightsError(f"the hub has no weights for backbone '{backbone.name}'")
        tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{backbone.name}.*")]
        if not tags or (self.tag is not None and self.tag not in tags):
            what = f"no weights '{self.tag}'" if self.tag and tags else "no weights"
            raise WeightsError(
                f"timm's hub has {what} for '{backbone.name}'",
                value=self.tag,
                choices=tags,
                remedy="choose weights.tag among these" if tags else "choose another backbone",
            )
        name = self._name(backbone)
        try:
            with _quickly():
                model: Any = create(name, backbone.channels_in, pretrained=True)
        except Exception as error:  # the hub's client raises whatever its transport raises
            lines = str(error).splitlines()
            reason = unreachable() or (lines[0] if lines else type(error).__name__)
            raise WeightsError(
                f"weights of '{name}' cannot be fetched from the hub: {reason}",
                remedy=REMEDY_OFFLINE,
            ) from None
        config = model.pretrained_cfg
        state = {f"model.{key}": value for key, value in model.state_dict().items()}
        keys = fit(backbone, state, source=name, channels=backbone.channels_in)
        backbone.normalise_by(Normalisation(tuple(config["mean"]), tuple(config["std"])))
        return Provenance(
            source=config.get("hf_hub_id") or config.get("url") or name,
            trained_on=f"natural images ({config.get('tag') or 'unknown tag'})",
            licence=config.get("license") or "unknown",
            sha256=hash_tensors(backbone.state_dict()),
            statistics=True,
            detail={"keys": keys},
        )

    def version(self, backbone: Backbone, seed: int) -> object:  # noqa: ARG002
        """See `Weights.version`: what the hub holds under a name does not change meanwhile."""
        return self._name(backbone), constants.HF_HUB_CACHE

    def classifier(self, backbone: Backbone) -> nn.Linear | None:
        """See `Weights.classifier`: ImageNet's classes; other outputs may be no classes at all."""
        with _quickly():
            model: Any = timm.create_model(self._name(backbone), pretrained=True).eval()
        last = model.get_classifier()
        if infer_imagenet_subset(model) is None or not isinstance(last, nn.Linear):
            return None
        if last.in_features != backbone.embedding_size:
            return None
        generator = torch.Generator().manual_seed(0)
        probe = torch.rand(2, *model.pretrained_cfg["input_size"], generator=generator)
        with torch.no_grad():
            final = model.forward_features(probe)
            alone = last(model.forward_head(final, pre_logits=True))
            # some models add to what their last layer gives
            return last if torch.allclose(model.forward_head(final), alone, atol=1e-4) else None

    def _name(self, backbone: Backbone) -> str:
        return f"{backbone.name}.{self.tag}" if self.tag else backbone.name


@contextmanager
def _quickly() -> Iterator[None]:
    """Go straight to the cache where the hub does not answer: its client would retry for long."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = bool(unreachable())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before

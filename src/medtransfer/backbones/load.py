"""From two components of a configuration to a backbone with its weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from medtransfer.backbones.base import Backbone
from medtransfer.backbones.weights import Provenance, Weights
from medtransfer.components import Component, build
from medtransfer.errors import ConfigError
from medtransfer.seeding import seed_part


@dataclass(frozen=True)
class _Loaded:
    """What was loaded last, and for what: trials of a sweep that follow often want the same."""

    asked: tuple[object, ...]
    version: object
    backbone: Backbone
    provenance: Provenance


_last: _Loaded | None = None


def load_backbone(
    backbone: Component,
    weights: Component,
    *,
    image_size: int,
    channels: int | None,
    near: tuple[str, str],
    seed: int,
    trusted: tuple[str, ...],
) -> tuple[Backbone, Provenance]:
    """Return a backbone with its weights, and where they come from.

    What was loaded last is copied where the same is asked for again.

    Args:
        backbone: The network.
        weights: Where its values come from.
        image_size: Height and width of the images in pixels.
        channels: Of the images; None where they have as many as the backbone takes.
        near: Hashes of the data and the split that it will see.
        seed: Of whatever is drawn.
        trusted: Modules, besides this package, that may be run.

    Raises:
        ConfigError: If the backbone cannot take such images.
        WeightsError: If the weights cannot be had or do not fit.
    """
    global _last  # noqa: PLW0603  one for the process, whoever asks
    source = build(weights, Weights, trusted=trusted, near=near)
    asked = (dict(backbone), dict(weights), image_size, channels, near, trusted)
    if (
        _last is None
        or _last.asked != asked
        or _last.version != source.version(_last.backbone, seed)
    ):
        _last = None  # two large networks may be too many
        seed_part(seed, "backbone")
        built = build(backbone, Backbone, trusted=trusted, image_size=image_size)
        if channels not in {None, built.channels_in}:
            raise ConfigError(
                f"backbone.channels={built.channels_in} and dataset.channels={channels} differ",
                remedy="leave backbone.channels to the dataset",
            )
        provenance = source.load(built)
        _last = _Loaded(asked, source.version(built, seed), built, provenance)
    return copy.deepcopy(_last.backbone), copy.deepcopy(_last.provenance)

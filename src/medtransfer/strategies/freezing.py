"""Frozen means: no gradient, never stepped, and in eval mode."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medtransfer.errors import DataError

RESTING = "_medtransfer_resting"
ESTIMATION_BATCHES = 64  # statistics of a layer settle long before


def freeze(
    model: nn.Module,
    trainable: Collection[str],
    *,
    batchnorm: Literal["train", "frozen", "reestimate"],
) -> None:
    """Freeze every parameter that is not named, and note which modules rest.

    Resting modules are every maximal subtree whose parameters are all frozen and, unless its policy
    is `train`, batch normalisation in the backbone. `rest` puts them to eval mode; it is called
    here, and must be called whenever the model is put to train mode.

    Args:
        model: A module with the child `backbone`.
        trainable: Names of the parameters that learn.
        batchnorm: The policy, resolved.

    Raises:
        KeyError: If a name is not a parameter of the model.
    """
    parameters = dict(model.named_parameters())
    unknown = set(trainable) - parameters.keys()
    if unknown:
        raise KeyError(f"not parameters of the model: {sorted(unknown)}")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trainable)
    for module in model.modules():
        own = list(module.parameters())
        frozen = bool(own) and not any(p.requires_grad for p in own)
        setattr(module, RESTING, frozen and module is not model)
    if batchnorm != "train":
        for module in model.backbone.modules():  # type: ignore[union-attr]
            if isinstance(module, _BatchNorm):
                setattr(module, RESTING, True)
    rest(model)


def rest(model: nn.Module) -> None:
    """Put the resting parts of a model to eval mode, whatever mode it is in.

    `nn.Module.train` is recursive and would wake them, and Lightning restores modes module by
    module: both need this afterwards.
    """
    for module in model.modules():
        if getattr(module, RESTING, False):
            module.eval()


def batchnorm_rests(model: nn.Module) -> bool:
    """Return whether any batch normalisation in the backbone uses statistics that stay."""
    return any(
        isinstance(module, _BatchNorm) and getattr(module, RESTING, False)
        for module in model.backbone.modules()  # type: ignore[union-attr]
    )


@torch.no_grad()
def reestimate_batchnorm(backbone: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of batch normalisation by those of the given images.

    Random weights bring statistics that describe nothing; adapting them to the target's images is
    also a known remedy against a shift of domain (Li et al. 2016, AdaBN).

    Args:
        backbone: A module with `embed`.
        batches: Images (N, C, H, W); batches of one have no statistics and are passed over.

    Raises:
        DataError: If no batch has two images.
    """
    layers = [module for module in backbone.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return
    modes = {module: module.training for module in backbone.modules()}
    momenta = {layer: layer.momentum for layer in layers}
    backbone.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average over all batches
        layer.train()
    usable = (images for images in batches if len(images) > 1)
    try:
        for images in islice(usable, ESTIMATION_BATCHES):
            backbone.embed(images)  # type: ignore[operator]
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training
    if not all(layer.num_batches_tracked for layer in layers):
        raise DataError(
            "batch normalisation cannot be estimated: no batch has two images",
            remedy="raise trainer.batch_size, dataset.fraction or dataset.shots",
        )

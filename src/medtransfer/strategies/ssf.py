"""Features are scaled and shifted after each layer; the layers stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from medtransfer.errors import ConfigError
from medtransfer.strategies.base import Score, names_under
from medtransfer.strategies.fine_tuning import FineTuning

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
OTHERS = (nn.Linear, _NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(kw_only=True)
class Ssf(FineTuning):
    """Scale and shift learn after each layer (Lian et al. 2022, arXiv 2210.08823), and the head.

    Layers are linear, convolutional and normalising ones; those are left out whose output does not
    scale with their weight and bias, such as convolutions that standardise their weight.
    Scaling and shifting what a layer puts out is scaling its weight and bias and shifting its bias,
    so that is what is learnt here, exactly the same, and at the end the network is a plain one.
    A layer without bias is scaled alone. Scales start at one and shifts at zero.
    """

    def learning(self, model: nn.Module) -> list[str]:
        """See `FineTuning.learning`; before scale and shift are there, nothing."""
        if not self._layers(model):
            raise ConfigError(
                "strategy=ssf has nothing to scale: the backbone has no layers",
                remedy="choose another backbone or strategy",
            )
        return [
            name
            for name in names_under(model, "backbone")
            if ".parametrizations." in name and not name.endswith(".original")
        ]

    def begin(self, model: nn.Module) -> None:
        """See `Strategy.begin`."""
        for module in self._layers(model):
            assert isinstance(module.weight, Tensor)
            scale = nn.Parameter(module.weight.new_ones(len(module.weight)))
            if module.bias is not None:
                parametrize.register_parametrization(module, "bias", Affine(scale))
            parametrize.register_parametrization(module, "weight", Scaled(scale))

    def finish(self, model: nn.Module, score: Score) -> dict[str, Any]:  # noqa: ARG002
        """See `Strategy.finish`: scale and shift become part of weight and bias."""
        for module in self._layers(model):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name)
        return {}

    def _layers(self, model: nn.Module) -> list[nn.Module]:
        return [
            module
            for module in model.get_submodule("backbone").modules()
            if isinstance(module, OTHERS)
            or any(type(module).forward is kind.forward for kind in CONVOLUTIONS)
            if isinstance(module.weight, Tensor)
        ]


class Scaled(nn.Module):
    """Scales a weight by its outputs.

    Args:
        scale: One factor for each output.
    """

    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight (outputs, ...) scaled."""
        return weight * self.scale.view(-1, *(1,) * (weight.ndim - 1))


class Affine(Scaled):
    """Scales and shifts a bias.

    Args:
        scale: One factor for each output.
    """

    def __init__(self, scale: nn.Parameter) -> None:
        super().__init__(scale)
        self.shift = nn.Parameter(torch.zeros_like(scale))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the bias (outputs,) scaled and shifted."""
        return super().forward(weight) + self.shift

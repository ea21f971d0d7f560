"""Where in an image a score comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medtransfer.backbones.base import Backbone

Evidence = Callable[[Tensor], Tensor]
"""From images (N, C, H, W) to what speaks for each class, (M, K), before any softmax."""


def grad_cam(backbone: Backbone, images: Tensor, evidence: Evidence, target: int) -> Tensor | None:
    """Return what speaks for a class at each place, (N, h, w) in [0, 1], or None.

    Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) by Captum: the maps of the last layer that
    has places, weighed by the mean of their gradients, and what remains above zero. The largest
    value over all images is 1, or all are zero where nothing speaks for the class.

    Args:
        backbone: Whose layer is looked at, in eval mode.
        images: (N, C, H, W) in [0, 1].
        evidence: What the class is judged by; it passes through the backbone.
        target: The class.

    Returns:
        None where no gradient reaches the layer, or where it has a single place.
    """
    from captum.attr import LayerGradCam

    with _places(backbone) as place, torch.enable_grad():
        if place is None:
            return None
        # the images learn nothing; without them no gradient passes a frozen backbone
        given = images.detach().clone().requires_grad_()
        try:
            found = LayerGradCam(evidence, place).attribute(given, target, relu_attributions=True)
        except (RuntimeError, AssertionError) as error:
            if re.search("grad|used in the graph|did not obtain any outputs", str(error)):
                return None  # the score has not come from there
            raise
    heat: Tensor = found.detach()[:, 0].float()
    if heat.shape[-2:].numel() == 1:
        return None
    return heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)


class _Place(nn.Module):
    """A layer whose output passes through an identity as maps (N, C, h, w).

    Args:
        layer: Its output are maps, channels first or last, or tokens (N, prefix + h * w, C).
        channels: C.
    """

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__()
        self.layer = layer
        self.channels = channels
        self.maps = nn.Identity()

    def forward(self, *inputs: object, **more: object) -> Tensor:
        """Return what the layer does."""
        output: Tensor = self.layer(*inputs, **more)
        if output.ndim == 3:
            side = math.isqrt(output.shape[1])
            prefix, tokens = output.split([output.shape[1] - side**2, side**2], 1)
            seen = self.maps(tokens.mT.unflatten(2, (side, side)))
            return torch.cat([prefix, seen.flatten(2).mT], 1)
        if output.shape[1] == self.channels:
            return self.maps(output)  # type: ignore[no-any-return]
        return self.maps(output.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


@contextmanager
def _places(backbone: Backbone) -> Iterator[nn.Module | None]:
    """Give the module through which the maps of a backbone's last layer with places go."""
    found = backbone.place()
    if found is None:
        yield None
        return
    name, channels = found
    parent, _, own = name.rpartition(".")
    owner = backbone.get_submodule(parent)
    layer = owner.get_submodule(own)
    place = _Place(layer, channels).train(layer.training)
    setattr(owner, own, place)
    try:
        yield place.maps
    finally:
        setattr(owner, own, layer)

"""Where in an image a score comes from."""

from __future__ import annotations

import torch
from torch import Tensor


def grad_cam(level: Tensor, score: Tensor) -> Tensor | None:
    """Return what speaks for a score at each place, (N, h, w) in [0, 1], or None.

    Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): the channels of a level, weighed by the mean
    of their gradients, and what remains above zero. The largest value over all images is 1, or all
    are zero where nothing speaks for the score.

    Args:
        level: Feature maps (N, C, h, w) that the score was computed from.
        score: A scalar, before any softmax.

    Returns:
        None where no gradient reaches the level, or where it has a single place.
    """
    if level.shape[-2:].numel() == 1 or not (score.requires_grad and level.requires_grad):
        return None
    slopes: Tensor | None = torch.autograd.grad(score, level, allow_unused=True)[0]
    if slopes is None:
        return None
    with torch.no_grad():
        weights = slopes.float().mean((2, 3), keepdim=True)
        heat = (weights * level.float()).sum(1).relu()
        return heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)

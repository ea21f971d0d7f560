"""One set of weights for images of another number of channels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medtransfer.errors import WeightsError

KNOWN = (1, 3)  # grey and colour: what other numbers of channels mean, only their maker knows


def adapt_channels(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], made_for: int, wanted: int, source: str
) -> dict[str, Tensor]:
    """Return tensors whose first layer takes `wanted` channels instead of `made_for`.

    To one channel the kernels are summed, as a grey image in every channel would have met them; to
    more, they are repeated in turn and scaled, so that equal channels give the same response (from
    three to a number that is no multiple of it: nearly the same, as timm does it).

    Args:
        state: Tensors, `made_for` channels in the second dimension of the first layer's kernel
            and of mean and standard deviation.
        own: The backbone's own tensors, under the same names.
        made_for: Channels of the images that the weights were made for.
        wanted: Channels of the backbone.
        source: Names the weights in the message.

    Raises:
        WeightsError: If it is not known what the channels of the weights mean.
    """
    if made_for == wanted:
        return dict(state)
    if made_for not in KNOWN:
        raise WeightsError(
            f"'{source}' was made for images of {made_for} channels, and the backbone takes"
            f" {wanted}",
            remedy=f"set dataset.channels={made_for}; only weights for 1 or 3 channels are adapted",
        )
    turns = torch.arange(wanted) % made_for
    adapted = {}
    for name, value in state.items():
        shape = (*value.shape[:1], wanted, *value.shape[2:])
        if value.ndim < 2 or value.shape[1] != made_for or own[name].shape != shape:
            adapted[name] = value
        elif name in {"mean", "std"}:
            adapted[name] = value.mean(1, keepdim=True) if wanted == 1 else value[:, turns]
        elif wanted == 1:
            adapted[name] = value.sum(1, keepdim=True)
        else:
            adapted[name] = value[:, turns] * (made_for / wanted)
    return adapted

"""Random values at the scale of trained ones: the control that separates features from scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from medtransfer.backbones.base import Backbone
from medtransfer.backbones.files import File
from medtransfer.backbones.hub import Hub
from medtransfer.backbones.weights import Provenance, hash_tensors


@dataclass(frozen=True, kw_only=True)
class StatsTransfer(File):
    """Each tensor is drawn from a normal law with the mean and variance of the source's.

    What a network gains over random values from these alone is due to the scale of its weights and
    not to the features in them (Raghu et al. 2019; Matsoukas et al. 2022, "stats transfer").

    The source is timm's hub where a `tag` is given, and otherwise a file, as `weights=file` has it.
    """

    @property
    def hub(self) -> Hub | None:
        """What brings the values where a tag is given."""
        return None if self.tag is None else Hub(path=None, tag=self.tag, sha256=None)

    def version(self, backbone: Backbone, seed: int) -> object:
        """See `Weights.version`: that of the source, and what is drawn."""
        if self.hub is not None:
            return seed, self.hub.version(backbone, seed)
        return seed, super().version(backbone, seed)

    def load(self, backbone: Backbone) -> Provenance:
        """See `Weights.load`; statistics of normalisation layers are not taken over."""
        known = super().load(backbone) if self.hub is None else self.hub.load(backbone)
        with torch.no_grad():
            for value in backbone.parameters():
                mean, std = value.mean(), value.std(correction=0)
                value.copy_(mean + std * torch.randn_like(value))
        for module in backbone.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()
        return Provenance(
            source=f"random values at the scale of {known.source}",
            trained_on=f"nothing; the scale comes from {known.trained_on}",
            licence=known.licence,
            sha256=hash_tensors(backbone.state_dict()),
            statistics=False,
            seen=known.seen,
            detail=known.detail,
        )

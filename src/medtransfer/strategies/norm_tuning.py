"""Scale and shift of the normalisation layers learn, the weights between them stay."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from medtransfer.errors import ConfigError
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(kw_only=True)
class NormTuning(FineTuning):
    """The normalisation layers of the backbone learn, and the head (Frankle et al. 2021)."""

    def learning(self, model: nn.Module) -> list[str]:
        """See `FineTuning.learning`; a layer normalises when its class says so in its name."""
        found = [
            f"{name}.{key}"
            for name, module in model.named_modules()
            if name.startswith("backbone.") and "norm" in type(module).__name__.lower()
            for key, _ in module.named_parameters(recurse=False)
        ]
        if not found:
            raise ConfigError(
                "strategy=norm_tuning has nothing to tune: the backbone normalises nowhere",
                remedy="choose another backbone or strategy",
            )
        return found

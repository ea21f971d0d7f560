"""Low-rank updates of layers whose weights stay."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from medtransfer.errors import ConfigError
from medtransfer.strategies.base import Score, names_under
from medtransfer.strategies.fine_tuning import FineTuning


@dataclass(kw_only=True)
class Lora(FineTuning):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685), through the PEFT library.

    Beside each chosen layer a product of two small matrices learns, and the head; at the end it is
    merged, so that what is tested and kept is a plain network.

    Attributes:
        rank: Rank of the update.
        scaling: Factor on the update; alpha over rank in the paper's words.
        dropout: Probability with which an input of the update is dropped in training.
        layers: `all`: every linear layer, and every convolution that is neither grouped nor dilated
            nor one that makes its weight from others, as standardised ones do. `attention`: the
            linear layers of attention alone, by their names.
    """

    rank: Annotated[int, Field(ge=1)]
    scaling: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    layers: Literal["all", "attention"]
    tuner: Any = field(init=False, repr=False, default=None)

    def learning(self, model: nn.Module) -> list[str]:
        """See `FineTuning.learning`; before the updates are there, nothing."""
        if self.tuner is None and not self._targets(model):
            raise ConfigError(
                f"strategy.layers={self.layers}: the backbone has no such layer",
                remedy="strategy.layers=all"
                if self.layers == "attention"
                else "choose another backbone or strategy",
            )
        return [name for name in names_under(model, "backbone") if ".lora_" in name]

    def begin(self, model: nn.Module) -> None:
        """See `Strategy.begin`: the updates are added; they start at zero."""
        from peft import LoraConfig, LoraModel  # takes seconds to import

        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.rank * self.scaling,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            # a list would be taken for endings of names
            target_modules="|".join(map(re.escape, self._targets(model))),
        )
        self.tuner = LoraModel(model.get_submodule("backbone"), config, "default")

    def finish(self, model: nn.Module, score: Score) -> dict[str, Any]:  # noqa: ARG002
        """See `Strategy.finish`: the updates become part of the weights."""
        model.backbone = self.tuner.merge_and_unload()
        return {}

    def _targets(self, model: nn.Module) -> list[str]:
        return [
            name
            for name, module in model.get_submodule("backbone").named_modules()
            if (isinstance(module, nn.Linear) and (self.layers == "all" or _of_attention(name)))
            or (self.layers == "all" and _is_plain(module))
        ]


def _of_attention(name: str) -> bool:
    return "attn" in name and "mlp" not in name  # blocks of attention have these beside it


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is a convolution that PEFT adds an update to, and merges, rightly."""
    return (
        isinstance(module, nn.Conv2d)
        and type(module).forward is nn.Conv2d.forward
        and module.groups == 1
        and set(module.dilation) == {1}
        and module.padding_mode == "zeros"
    )

"""What a strategy decides: which parameters learn, how fast, and what rests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from medtransfer.errors import ConfigError
from medtransfer.strategies import freezing

BatchNorm = Literal["train", "frozen", "reestimate"]


class BackboneLike(Protocol):
    """What a strategy needs of a backbone."""

    def embed(self, images: Tensor) -> Tensor:
        """Return the embedding of a batch."""

    def layer_groups(self) -> Iterable[tuple[str, ...]]:
        """Return parameter names by group, stem first."""


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """What of (backbone, head) learns.

    The model that a strategy acts on is any module with the children `backbone` and `head`.
    Two strategies differ in what they declare here and in nothing else; all of it stands in the
    strategy's YAML.

    Attributes:
        batchnorm: What batch normalisation in the backbone does while training. `train`: it
            normalises by the batch and moves its statistics. `frozen`: it uses the statistics that
            came with the weights. `reestimate`: its statistics are estimated on the training
            images once, then frozen. `auto`: as the strategy declares.
        search_space: What tuning may vary: a key of the configuration, and its `low`, `high` and
            `log`, or its `choices`.
    """

    policies: ClassVar[tuple[BatchNorm, ...]]
    """What `batchnorm` may be, besides `auto`."""

    batchnorm: Literal["auto", "train", "frozen", "reestimate"]
    search_space: dict[str, dict[str, Any]]

    def __post_init__(self) -> None:
        if self.batchnorm not in ("auto", *self.policies):
            raise ConfigError(
                f"strategy.batchnorm={self.batchnorm} has no meaning for {type(self).__name__}",
                choices=("auto", *self.policies),
            )

    @abstractmethod
    def trainable(self, model: nn.Module) -> set[str]:
        """Return the names of the parameters that learn, as `model.named_parameters` has them."""

    @abstractmethod
    def parameter_groups(
        self, model: nn.Module, optimizer: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the optimizer's groups: each trainable parameter once, and nothing else.

        Args:
            model: The model, set up.
            optimizer: The keys of the optimizer's configuration, such as `lr`.
        """

    @abstractmethod
    def resolve_batchnorm(self, *, statistics: bool) -> BatchNorm:
        """Return what `auto` means here.

        Args:
            statistics: Whether the weights brought statistics with them.
        """

    def setup(self, model: nn.Module, batches: Iterable[Tensor], *, statistics: bool) -> None:
        """Bring the model into the state in which training starts.

        Args:
            model: The model, its weights loaded.
            batches: Training images as they are, (N, C, H, W); read only if needed.
            statistics: Whether the weights brought statistics with them.
        """
        policy = self.resolve_batchnorm(statistics=statistics)
        if policy == "reestimate":
            freezing.reestimate_batchnorm(model.backbone, batches)  # type: ignore[arg-type]
        freezing.freeze(model, self.trainable(model), batchnorm=policy)


def group(
    model: nn.Module, names: Iterable[str], lr: float, optimizer: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one optimizer group, its learning rate a multiple of the configured one."""
    parameters = dict(model.named_parameters())
    return {"params": [parameters[name] for name in names], "lr": lr * optimizer["lr"]}


def names_under(model: nn.Module, child: str) -> list[str]:
    """Return the parameter names of one child, in order."""
    return [name for name, _ in model.named_parameters() if name.startswith(f"{child}.")]


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Return the backbone's parameter names by layer group, stem first, as the model has them."""
    backbone: BackboneLike = model.backbone  # type: ignore[assignment]
    return [[f"backbone.{name}" for name in names] for names in backbone.layer_groups()]

"""What a strategy decides: which parameters learn, how fast, and what rests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from medtransfer.errors import ConfigError
from medtransfer.strategies import freezing

BatchNorm = Literal["train", "frozen", "reestimate"]

Score = Callable[[], float]
"""Returns the selection metric of the model as it is, on validation data; more is better."""


class BackboneLike(Protocol):
    """What a strategy needs of a backbone."""

    def embed(self, images: Tensor) -> Tensor:
        """Return the embedding of a batch."""

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps of a batch."""

    def layer_groups(self) -> Iterable[tuple[str, ...]]:
        """Return parameter names by group, stem first."""


@dataclass(kw_only=True)
class Strategy(ABC):
    """What of (backbone, head) learns.

    The model that a strategy acts on is any module with the children `backbone` and `head`.
    Two strategies differ in what they declare here and in nothing else; all of it stands in the
    strategy's YAML. A strategy serves one trial: what it notes on the way, such as the values that
    it started from, is its own.

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
    cacheable: ClassVar[bool] = False
    """Whether the backbone stays as `setup` leaves it, so that features can be computed once."""
    distils: ClassVar[bool] = False
    """Whether `penalty` looks at the backbone's pyramid."""

    policy: BatchNorm = field(init=False, repr=False)
    """What `batchnorm` was resolved to, once set up."""
    reestimated: bool = field(init=False, repr=False)
    """Whether statistics were estimated on the training images, once set up."""
    current: int = field(init=False, repr=False)
    """The phase that the model is in, once set up."""

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
        self.policy = self.resolve_batchnorm(statistics=statistics)
        self.reestimated = self.policy == "reestimate"
        if self.reestimated:
            freezing.reestimate_batchnorm(model.backbone, batches)  # type: ignore[arg-type]
        self.begin(model)
        self.enter(model, self.phase(0.0))
        if self.policy == "train" and not statistics and freezing.batchnorm_rests(model):
            # layers of which nothing learns rest, and should rest on statistics of something
            self.reestimated = True
            freezing.reestimate_batchnorm(model.backbone, batches)  # type: ignore[arg-type]

    def begin(self, model: nn.Module) -> None:
        """Note what the model starts from, or add to it what is to learn."""

    def phase(self, progress: float) -> int:  # noqa: ARG002
        """Return the number of the phase at `progress`, the share of all steps done, in [0, 1]."""
        return 0

    def trainable_in(self, model: nn.Module, phase: int) -> set[str]:  # noqa: ARG002
        """Return what learns in a phase; what once learns, learns to the end."""
        return self.trainable(model)

    def enter(self, model: nn.Module, phase: int) -> None:
        """Start a phase: freeze what does not learn in it."""
        self.current = phase
        freezing.freeze(model, self.trainable_in(model, phase), batchnorm=self.policy)

    def on_step_start(self, model: nn.Module, progress: float) -> None:
        """Enter the phase of this step; it follows from `progress`, so a resumed run finds it."""
        phase = self.phase(progress)
        if phase != self.current:
            self.enter(model, phase)
            model.train()  # wakes what learns from here on

    def pace(self, progress: float) -> float:
        """Return where in its schedule the learning rate is at `progress`, in [0, 1]."""
        return progress

    def penalty(
        self,
        model: nn.Module,  # noqa: ARG002
        images: Tensor,  # noqa: ARG002
        levels: list[Tensor],  # noqa: ARG002
    ) -> Tensor | None:
        """Return what is added to the loss of a batch, a scalar, or None.

        Args:
            model: The model.
            images: (N, C, H, W).
            levels: Their pyramid, from the same pass; empty unless `distils`.
        """
        return None

    def before_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Look at the gradients; learning rates changed here are for this one step."""

    def finish(self, model: nn.Module, score: Score) -> dict[str, Any]:  # noqa: ARG002
        """Bring the selected model into the form in which it is tested and kept.

        Returns:
            What was chosen on validation, by name.
        """
        return {}

    def reopen(self, model: nn.Module) -> None:
        """Give a new model the form in which `finish` has left one whose values are put into it."""

    def state(self) -> dict[str, Any]:
        """Return what a resumed run could not find out again, in tensors and plain values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""


def group(
    model: nn.Module, names: Iterable[str], lr: float, optimizer: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one optimizer group, its learning rate a multiple of the configured one."""
    parameters = dict(model.named_parameters())
    return {"params": [parameters[name] for name in names], "lr": lr * optimizer["lr"]}


def by_layer(
    model: nn.Module, rates: Iterable[float], head_lr: float, optimizer: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return an optimizer group for each layer group, stem first, and one for the head."""
    return [
        *(
            group(model, names, lr, optimizer)
            for names, lr in zip(layer_groups(model), rates, strict=True)
        ),
        group(model, names_under(model, "head"), head_lr, optimizer),
    ]


def names_under(model: nn.Module, child: str) -> list[str]:
    """Return the parameter names of one child, in order."""
    return [name for name, _ in model.named_parameters() if name.startswith(f"{child}.")]


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Return the backbone's parameter names by layer group, stem first, as the model has them."""
    backbone: BackboneLike = model.backbone  # type: ignore[assignment]
    return [[f"backbone.{name}" for name in names] for names in backbone.layer_groups()]

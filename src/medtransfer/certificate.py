"""What a trial trains, freezes and normalises how, and the proof that the frozen part stayed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medtransfer.errors import CertificateError
from medtransfer.machine import usable_cores
from medtransfer.strategies.base import Strategy, layer_groups, names_under

MOMENTS = 1000  # at which the phases of a strategy are looked for
BATCHNORM = {
    "train": "batch",
    "frozen": "as loaded",
    "reestimate": "re-estimated",
}


@dataclass(frozen=True)
class Part:
    """One layer group of the backbone, or the head.

    Attributes:
        name: `backbone 0` is the stem.
        parameters: Numbers in it.
        learn: How many of them learn.
        begin: Share of all steps after which the first of them learns; None where none does.
        normalisation: What normalises in it; BatchNorm by statistics of the batch, as they came
            with the weights, or as they were re-estimated on training images.
    """

    name: str
    parameters: int
    learn: int
    begin: float | None
    normalisation: str


@dataclass
class Certificate:
    """What a strategy made of a model, taken when training starts.

    Attributes:
        strategy: Its class.
        batchnorm: The policy for batch normalisation, resolved.
        parts: What learns where.
        trainable: Names of the parameters that learn at some time.
        frozen: Hash of each frozen parameter and buffer of the backbone, by name.
        after: Hash of all frozen values together once training was over.
        features: How the backbone's features came to the head.
        chosen: What was chosen on validation, by name.
    """

    strategy: str
    batchnorm: str
    parts: tuple[Part, ...]
    trainable: tuple[str, ...]
    frozen: Mapping[str, str]
    after: str | None = None
    features: dict[str, Any] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, strategy: Strategy) -> Certificate:
        """Look at a model that its strategy has set up."""
        trainable = strategy.trainable(model)
        return cls(
            strategy=type(strategy).__name__,
            batchnorm=strategy.policy,
            parts=tuple(_parts(model, strategy)),
            trainable=tuple(name for name, _ in model.named_parameters() if name in trainable),
            frozen=_hashes(_frozen(model, strategy)),
        )

    @property
    def before(self) -> str:
        """Hash of all frozen values when training started."""
        return _together(self.frozen)

    def verify(self, model: nn.Module) -> None:
        """Compare the frozen values with what they were.

        Raises:
            CertificateError: If any of them changed.
        """
        state = model.state_dict(keep_vars=True)
        now = _hashes({name: state[name] for name in self.frozen})
        self.after = _together(now)
        changed = [name for name in self.frozen if now[name] != self.frozen[name]]
        if changed:
            raise CertificateError(
                f"{len(changed)} of {len(self.frozen)} frozen tensors changed while training,"
                f" first '{changed[0]}'",
                remedy="the strategy, or code beside it, writes to what it declares frozen",
            )

    def describe(self) -> dict[str, Any]:
        """Return the certificate in plain values."""
        return {
            "strategy": self.strategy,
            "batchnorm": self.batchnorm,
            "features": self.features,
            "parts": [asdict(part) for part in self.parts],
            "trainable": list(self.trainable),
            "frozen": {
                "tensors": len(self.frozen),
                "sha256_before": self.before,
                "sha256_after": self.after,
                "equal": None if self.after is None else self.after == self.before,
            },
            "chosen": self.chosen,
        }


def _parts(model: nn.Module, strategy: Strategy) -> Iterable[Part]:
    begins = _begins(model, strategy)
    groups = {f"backbone {i}": names for i, names in enumerate(layer_groups(model))}
    groups["head"] = names_under(model, "head")
    parameters = dict(model.named_parameters())
    for part, names in groups.items():
        learning = [name for name in names if name in begins]
        yield Part(
            name=part,
            parameters=sum(parameters[name].numel() for name in names),
            learn=sum(parameters[name].numel() for name in learning),
            begin=min((begins[name] for name in learning), default=None),
            normalisation=_normalisation(model, names, strategy),
        )


def _begins(model: nn.Module, strategy: Strategy) -> dict[str, float]:
    """Return the share of all steps after which each parameter learns."""
    starts: dict[int, float] = {}
    for moment in range(MOMENTS + 1):
        starts.setdefault(strategy.phase(moment / MOMENTS), moment / MOMENTS)
    begins: dict[str, float] = {}
    for phase, start in starts.items():
        for name in strategy.trainable_in(model, phase):
            begins.setdefault(name, start)
    return begins


def _normalisation(model: nn.Module, names: Iterable[str], strategy: Strategy) -> str:
    """Return how the layers that own these parameters normalise."""
    trainable = strategy.trainable(model)
    kinds = set()
    for name in names:
        inner, marked, _ = name.partition(".parametrizations.")
        prefix = inner if marked else name.rpartition(".")[0]
        owner = model.get_submodule(prefix)
        if isinstance(owner, _BatchNorm):
            of_head = not prefix.startswith("backbone.")  # which no policy is about
            moves = of_head or _moves(owner, prefix, trainable, strategy)
            at_rest = "reestimate" if strategy.reestimated else "frozen"
            kinds.add(f"BatchNorm: {BATCHNORM['train' if moves else at_rest]}")
        elif "norm" in type(owner).__name__.lower() and not list(owner.children()):
            kinds.add(type(owner).__name__.removeprefix("Parametrized"))
    return "; ".join(sorted(kinds))


def _frozen(model: nn.Module, strategy: Strategy) -> dict[str, Tensor]:
    """Return the parameters and buffers of the backbone that nothing may change."""
    trainable = strategy.trainable(model)
    learning = {id(model.get_parameter(name)) for name in trainable}  # some bear two names
    moving = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, _BatchNorm) and _moves(module, prefix, trainable, strategy)
        for name, _ in module.named_buffers(recurse=False)
    }
    return {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if name.startswith("backbone.") and name not in moving and id(value) not in learning
    }


def _moves(module: nn.Module, prefix: str, trainable: set[str], strategy: Strategy) -> bool:
    """Whether the statistics of a layer follow the batches in some phase."""
    if strategy.policy != "train":
        return False
    own = [f"{prefix}.{name}" for name, _ in module.named_parameters()]
    return not own or any(name in trainable for name in own)


def _hashes(values: Mapping[str, Tensor]) -> dict[str, str]:
    with ThreadPoolExecutor(usable_cores()[0]) as threads:  # hashing lets others run meanwhile
        return dict(zip(values, threads.map(_hash, values.values()), strict=True))


def _hash(value: Tensor) -> str:
    flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def _together(hashes: Mapping[str, str]) -> str:
    text = "\n".join(f"{name} {value}" for name, value in hashes.items())
    return hashlib.sha256(text.encode()).hexdigest()

"""The typed schema of a configuration, and the one way from a `_target_` to an object.

Hydra refuses an unknown choice or override while it composes; a misspelt key inside a YAML file and
a value of the wrong type pass it. They are caught here, before anything heavy is built: fixed
sections by the models below, extensible groups against the signature of the class that their
`_target_` names.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails

from medtransfer.errors import ConfigError

T = TypeVar("T")

Leak = Literal["patient_overlap", "exam_overlap", "exact_duplicates", "near_duplicates"]
"""What may be alike on two sides of a split."""

Component = dict[str, Any]
"""A choice of an extensible group: `_target_` names its class, the other keys are its arguments."""


def _with_target(node: Component) -> Component:
    if not isinstance(node.get("_target_"), str):
        msg = "needs a `_target_`: the class that it names is built from the other keys"
        raise ValueError(msg)
    return node


ComponentField = Annotated[Component, AfterValidator(_with_target)]


class Section(BaseModel):
    """A fixed part of the configuration: every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Paths(Section):
    """Where things are read and written."""

    data: Path
    cache: Path
    output: Path


class Tracking(Section):
    """Where MLflow keeps the runs; null means the default under `paths.output`."""

    uri: str | None
    experiment: str = Field(min_length=1)
    artifacts: str | None


class Selection(Section):
    """The validation metric that picks the epoch; null means the task's headline metric."""

    metric: str | None
    mode: Literal["min", "max"] | None


class EarlyStopping(Section):
    """Stop after `patience` validations without gain on the selection metric; null means never."""

    patience: PositiveInt | None
    min_delta: NonNegativeFloat


class Budget(Section):
    """What every training needs to know of its steps and of the machine."""

    batch_size: PositiveInt
    gradient_clip: PositiveFloat | None
    precision: Literal["auto", "fp32", "bf16"]
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: PositiveInt
    threads: PositiveInt | Literal["auto"]
    workers: NonNegativeInt | Literal["auto"]


class TrainerConfig(Budget):
    """The budget and the machine of a trial, equal for every arm."""

    max_epochs: PositiveInt
    max_steps: PositiveInt | None
    validate_every: PositiveInt | None
    sampler: Literal["shuffle", "balanced"]
    checkpoint: Literal["best", "none"]
    selection: Selection
    early_stopping: EarlyStopping


class PretrainerConfig(Budget):
    """The budget and the machine of a pre-training."""

    max_steps: PositiveInt  # of each stage
    checkpoint_every: PositiveInt  # steps


class PassConfig(Budget):
    """The machine of a pass without learning; what only trainings need is fixed, and no key."""

    gradient_clip: None = None
    devices: Literal[1] = 1


class FeaturesConfig(Section):
    """Whether the features of a backbone that stays as it is are computed once, and kept."""

    mode: Literal["auto", "cached", "online"]
    views: PositiveInt
    dtype: Literal["fp32", "bf16"]
    max_gb: PositiveFloat


class KeptFeaturesConfig(Section):
    """How computed features are kept, in the words of `FeaturesConfig`."""

    dtype: Literal["fp32", "bf16"]
    max_gb: PositiveFloat


class StudyConfig(Section):
    """What names a sweep and decides its verdicts."""

    name: str | None
    arm: str | None
    arms: dict[str, tuple[str, ...]]
    axes: dict[str, tuple[Any, ...]]
    seeds: PositiveInt | tuple[NonNegativeInt, ...]
    rope: NonNegativeFloat


class AuditConfig(Section):
    """Which leaks are put up with, by their codes."""

    waive: tuple[Leak, ...]


class BaseConfig(Section):
    """What every command that computes shares."""

    seed: NonNegativeInt
    trusted_modules: tuple[str, ...]
    paths: Paths
    tracking: Tracking
    audit: AuditConfig
    trainer: Budget
    backbone: ComponentField


class LearningConfig(BaseConfig):
    """What every command that trains shares."""

    optimizer: ComponentField
    scheduler: ComponentField


class TrainConfig(LearningConfig):
    """The whole configuration of one trial."""

    trainer: TrainerConfig
    features: FeaturesConfig
    test: bool
    study: StudyConfig
    task: ComponentField
    dataset: ComponentField
    transform: ComponentField
    weights: ComponentField
    strategy: ComponentField
    head: ComponentField
    loss: ComponentField | None = None


class PretrainConfig(LearningConfig):
    """The whole configuration of one pre-training."""

    trainer: PretrainerConfig
    source: ComponentField
    weights: ComponentField
    dataset: ComponentField | None = None


class FrozenConfig(BaseConfig):
    """What the commands share that look through a frozen backbone; null means their own place."""

    trainer: PassConfig
    features: KeptFeaturesConfig
    batchnorm: Literal["auto", "frozen", "reestimate"]
    dataset: ComponentField
    weights: ComponentField
    out: Path | None


def _each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        msg = "names one of them twice"
        raise ValueError(msg)
    return names


class ExtractConfig(FrozenConfig):
    """The whole configuration of one extraction."""

    splits: Annotated[
        tuple[Literal["train", "val", "test"], ...], Field(min_length=1), AfterValidator(_each_once)
    ]


class SearchConfig(AuditConfig):
    """What an audit looks for besides."""

    embeddings: bool
    similarity: Annotated[float, Field(gt=0, le=1)]


class DatasetAuditConfig(FrozenConfig):
    """The whole configuration of an audit."""

    audit: SearchConfig


class RankConfig(FrozenConfig):
    """The configuration of one of the combinations that are ranked."""

    neighbours: PositiveInt


C = TypeVar("C", bound=Section)


def check(model: type[C], values: Mapping[str, Any]) -> C:
    """Validate a resolved configuration.

    Args:
        model: The schema.
        values: Plain containers, interpolations resolved.

    Returns:
        The typed, frozen configuration.

    Raises:
        ConfigError: For the first unknown key, missing key or value of the wrong type.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        details = error.errors()[0]
        known = _keys_beside(model, details["loc"])
        raise _config_error(details, "", values, known) from None


def build(
    node: Component,
    base: type[T],
    *,
    trusted: Iterable[str] = (),
    extra: Iterable[str] = (),
    **injected: Any,
) -> T:
    """Build the object that a component describes.

    Args:
        node: The component: `_target_` and arguments.
        base: The class that the target must derive from; it decides what a group may hold.
        trusted: Modules, besides this package, that the user trusts on the command line.
        extra: Library modules whose classes the group may name directly.
        **injected: Arguments that come from the program and not from the configuration.

    Raises:
        ConfigError: If the target is not a `base`, or an argument is unknown, missing or mistyped.
    """
    cls = locate(node["_target_"], base, trusted=trusted, extra=extra)
    return cls(**check_arguments(cls, base, node, injected), **injected)


def locate(
    target: str, base: type[T], *, trusted: Iterable[str] = (), extra: Iterable[str] = ()
) -> type[T]:
    """Return the class that `target` names, provided that it is trusted and derives from `base`.

    Importing a module runs it, so the prefix is checked before the import; the class is checked
    after it, because a prefix alone would reach any function of the library.
    """
    module_name, _, name = target.rpartition(".")
    allowed = ("medtransfer", *trusted, *extra)
    if not any(module_name == prefix or module_name.startswith(prefix + ".") for prefix in allowed):
        raise ConfigError(
            f"_target_ '{target}' is outside of the modules that may be run",
            choices=allowed,
            remedy=f"if you trust it, add 'trusted_modules=[{module_name}]' to the command line",
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(
            f"_target_ '{target}' cannot be imported: {error}",
            remedy="check the spelling, and that its folder is on PYTHONPATH",
        ) from None
    if not (isinstance(found, type) and issubclass(found, base)) or inspect.isabstract(found):
        raise ConfigError(
            f"_target_ '{target}' is not a {base.__module__}.{base.__qualname__}",
            remedy="name a class that derives from it",
        )
    return found


def check_arguments(
    cls: type, base: type, node: Component, injected: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the arguments in `node`, each converted to the type in the signature of `cls`.

    Args:
        cls: What is to be built.
        base: Its group's base class; the group is named after it.
        node: The component.
        injected: Arguments that come from the program.

    Raises:
        ConfigError: If an argument is unknown, missing or mistyped.
    """
    group = re.findall("[A-Z][a-z]*", base.__name__)[-1].lower()  # a MaskLoss is a choice of `loss`
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(cls).parameters.items()
        if name not in set(injected) and parameter.kind is not parameter.VAR_KEYWORD
    }
    given = {key: value for key, value in node.items() if key != "_target_"}
    for key in given:
        if key not in parameters:
            raise ConfigError(
                f"key '{group}.{key}' is unknown to {node['_target_']}",
                value=key,
                choices=sorted(parameters),
            )
    for name, parameter in parameters.items():
        if name not in given and parameter.default is parameter.empty:
            raise ConfigError(
                f"key '{group}.{name}' is missing for {node['_target_']}",
                remedy=f"add '{name}' to the YAML of this choice",
            )
    checked = {}
    for key, value in given.items():
        try:
            checked[key] = _adapter(cls, parameters[key]).validate_python(value)
        except ValidationError as error:
            raise _config_error(error.errors()[0], f"{group}.{key}", value, ()) from None
    return checked


def _adapter(cls: type, parameter: inspect.Parameter) -> TypeAdapter[Any]:
    annotation = parameter.annotation
    if isinstance(annotation, str):
        # An inherited __init__ is annotated in the names of the module that defines it.
        owner = next(c for c in cls.__mro__ if parameter.name in _own_arguments(c))
        annotation = eval(annotation, vars(sys.modules[owner.__module__]))
    if annotation is inspect.Parameter.empty:
        annotation = Any
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # dataclasses bring a configuration of their own
        return TypeAdapter(annotation)


def _own_arguments(cls: type) -> Iterable[str]:
    if "__dataclass_fields__" in vars(cls):
        return inspect.get_annotations(cls)
    init = vars(cls).get("__init__")
    return inspect.signature(init).parameters if init is not None else ()


def _config_error(
    details: ErrorDetails, prefix: str, values: Any, known: Iterable[str]
) -> ConfigError:
    """Say a pydantic error about `values` in the words of the configuration."""
    missing = details["type"] in {"missing", "missing_argument"}
    path = [prefix] if prefix else []
    part: Any
    for part in details["loc"]:
        # pydantic also names the branches of a union, which are no keys
        if (isinstance(values, Mapping) and part in values) or (
            isinstance(values, Sequence) and isinstance(part, int)
        ):
            values = values[part]
        elif not missing:
            continue
        path.append(str(part))
    where = ".".join(path)
    if details["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        key = str(details["loc"][-1])
        return ConfigError(
            f"key '{where}' is unknown",
            value=key,
            choices=known,
            remedy="medtransfer train --cfg job shows every key",
        )
    if missing:
        return ConfigError(f"key '{where}' is missing")
    message = details["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return ConfigError(f"{where}={details['input']!r} does not fit: {message}")


def _keys_beside(model: type[Section], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known where an unknown one was found."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return []
        model = annotation
    return sorted(model.model_fields)

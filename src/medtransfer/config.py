"""The typed schema of a configuration.

Hydra refuses an unknown choice or override while it composes; a misspelt key inside a YAML file and
a value of the wrong type pass it. They are caught before anything heavy is built: fixed sections by
the models below, extensible groups by `components`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    ValidationError,
    model_validator,
)

from medtransfer import __version__
from medtransfer.components import ComponentField, config_error
from medtransfer.errors import ConfigError

VERSION = 1
"""Of the keys of a configuration. It grows when one of them changes its name or its meaning."""

Leak = Literal["patient_overlap", "exam_overlap", "exact_duplicates", "near_duplicates"]
"""What may be alike on two sides of a split."""


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
    system_every: PositiveFloat | None = None  # older configurations have no such key


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
    max_seconds: PositiveFloat | None
    validate_every: PositiveInt | None
    sampler: Literal["shuffle", "balanced"]
    accumulate: PositiveInt = 1  # older configurations have no such key
    save_every: NonNegativeFloat | None
    checkpoint: Literal["best", "last", "none"]
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


class TuningBudget(Section):
    """What is spent on tuning each cell, an arm under one setting of the axes."""

    trials: NonNegativeInt
    max_steps: PositiveInt | None
    seconds: PositiveFloat | None


class SearchConfig(Section):
    """How settings are drawn from a strategy's search space, and given up."""

    sampler: Literal["random", "qmc", "tpe", "gp"]
    pruner: Literal["median"] | None


class Primary(Section):
    """The one contrast that a study is about; `at` is the setting of the axes, or part of it."""

    a: str
    b: str
    at: dict[str, Any] = {}


class StudyConfig(Section):
    """What a sweep compares, under which protocol, and what decides its verdicts."""

    name: str | None
    resume: bool
    retry_failed: bool
    dry_run: bool
    arms: dict[str, tuple[str, ...]]
    axes: dict[str, tuple[Any, ...]]
    seeds: PositiveInt | tuple[NonNegativeInt, ...]
    seed: NonNegativeInt
    budget: TuningBudget
    search: SearchConfig
    primary: Primary | None
    rope: NonNegativeFloat
    # of one trial, set by the study
    arm: str | None
    phase: Literal["tuning", "final"]
    draw: NonNegativeInt | None
    tuned: tuple[str, ...]

    @model_validator(mode="after")
    def _primary_is_of_the_arms(self) -> StudyConfig:
        if self.primary is not None and self.arms:
            for name in (self.primary.a, self.primary.b):
                if name not in self.arms:
                    msg = f"primary names arm '{name}', and the arms are {', '.join(self.arms)}"
                    raise ValueError(msg)
        return self


class AuditConfig(Section):
    """Which leaks are put up with, by their codes."""

    waive: tuple[Leak, ...]


class BaseConfig(Section):
    """What every command that computes shares."""

    config_version: int = VERSION  # older configurations have no such key
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
    external: ComponentField | None = None  # stands below dataset, where it is chosen

    @model_validator(mode="before")
    @classmethod
    def _external_apart(cls, values: Any) -> Any:
        dataset = values.get("dataset")
        if not isinstance(dataset, Mapping) or "external" not in dataset:
            return values
        own = {key: value for key, value in dataset.items() if key != "external"}
        return {**values, "dataset": own, "external": dataset["external"]}


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


class AuditSearchConfig(AuditConfig):
    """What an audit looks for besides."""

    embeddings: bool
    similarity: Annotated[float, Field(gt=0, le=1)]


class DatasetAuditConfig(FrozenConfig):
    """The whole configuration of an audit."""

    audit: AuditSearchConfig


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
        ConfigError: If it is of another version; or for the first unknown key, missing key or
            value of the wrong type.
    """
    if (found := values.get("config_version", VERSION)) != VERSION:
        raise ConfigError(
            f"this configuration is of version {found}, and medtransfer {__version__} reads version"
            f" {VERSION}",
            remedy="CHANGELOG.md tells what has changed: rename the keys and set"
            f" config_version={VERSION}; or install the version of medtransfer that it was written"
            " for",
        )
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        details = error.errors()[0]
        known = _keys_beside(model, details["loc"])
        raise config_error(details, "", values, known) from None


def _keys_beside(model: type[Section], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known where an unknown one was found."""
    for part in loc[:-1]:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, Section)):
            return []
        model = annotation
    return sorted(model.model_fields)

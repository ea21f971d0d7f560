"""From a configuration to a backbone at rest, and to the features that it gives of a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medtransfer import machine, transferability
from medtransfer.backbones.base import Backbone
from medtransfer.backbones.load import load_backbone
from medtransfer.backbones.weights import Provenance, Weights
from medtransfer.components import build
from medtransfer.config import FrozenConfig, RankConfig
from medtransfer.data.base import Dataset
from medtransfer.data.loading import Data
from medtransfer.data.seen import refuse_seen
from medtransfer.errors import ConfigError
from medtransfer.features import Extractor, Features, FeatureStore, Split, open_features
from medtransfer.feed import device_of
from medtransfer.quiet import quiet_libraries
from medtransfer.strategies.base import BatchNorm
from medtransfer.strategies.feature_extraction import FeatureExtraction
from medtransfer.strategies.freezing import reestimate_batchnorm


@dataclass(frozen=True)
class Counting(Extractor):
    """Tells after each batch how many images were in it.

    Attributes:
        tell: Is told.
    """

    tell: Callable[[int], None]

    def __call__(self, images: Tensor) -> dict[str, NDArray[Any]]:
        """See `Extractor.__call__`."""
        found = super().__call__(images)
        self.tell(len(images))
        return found


@dataclass(frozen=True)
class Extraction:
    """A backbone at rest, in front of a dataset.

    Attributes:
        data: Where images come from.
        backbone: In the state in which a frozen trial has it.
        provenance: Of its weights.
        batchnorm: The policy for its batch normalisation, resolved.
        extractor: Takes the embedding from it.
        store: Keeps what was computed.
    """

    data: Data
    backbone: Backbone
    provenance: Provenance
    batchnorm: BatchNorm
    extractor: Extractor
    store: FeatureStore

    def features(self, split: Split) -> Features:
        """Return the embeddings of a split's images as they are, computed where they are not kept.

        Raises:
            StoreError: If the cache cannot be written.
        """
        if split == "test":
            self.data.seal.open()
        return open_features(
            self.data, split, self.extractor, transform=None, views=1, store=self.store
        )


def open_data(config: FrozenConfig, *, whole: bool) -> Data:
    """Return the dataset, decoded and divided.

    Args:
        config: The configuration.
        whole: Take all training images, whatever fraction or shots the dataset names.

    Raises:
        ConfigError: If its samples have no class.
        DataError: If it cannot be used.
    """
    dataset = build(config.dataset, Dataset, trusted=config.trusted_modules)
    if "class" not in dataset.provides:
        raise ConfigError(
            f"dataset {type(dataset).__name__} has no annotation 'class', which is the target here",
            remedy="choose a dataset for classification",
        )
    if whole:
        dataset = replace(dataset, fraction=1.0, shots=None)
    return Data.open(dataset, cache=config.paths.cache, seed=config.seed, waived=config.audit.waive)


def open_same(configs: Sequence[FrozenConfig]) -> list[Data]:
    """Return the data of each configuration, opened once where they are the same.

    Raises:
        ConfigError: If the training images are not the same for all.
        DataError: If they cannot be used.
    """
    keys = [config.model_dump_json(include={"dataset", "seed"}) for config in configs]
    opened: dict[str, Data] = {}
    for key, config in zip(keys, configs, strict=True):
        if key not in opened:
            opened[key] = open_data(config, whole=False)
    if len({(data.spec.data_hash, *data.train.tolist()) for data in opened.values()}) > 1:
        raise ConfigError(
            "the combinations have different training images, so that estimates cannot be compared",
            remedy="one call for each dataset, split and subset",
        )
    return [opened[key] for key in keys]


def load(config: FrozenConfig, data: Data) -> tuple[Backbone, Provenance]:
    """Return the backbone with its weights; nothing is computed yet.

    Raises:
        MedtransferError: If it cannot be had, does not fit the images, or has seen test images.
    """
    quiet_libraries()
    backbone, provenance = load_backbone(
        config.backbone,
        config.weights,
        image_size=data.spec.image_size,
        channels=data.spec.channels,
        near=(data.spec.data_hash, data.spec.split_hash),
        seed=config.seed,
        trusted=config.trusted_modules,
    )
    refuse_seen(data, provenance.seen, f"the weights of '{provenance.source}'")
    return backbone, provenance


def prepare(config: FrozenConfig, data: Data, tell: Callable[[int], None]) -> Extraction:
    """Return a backbone in the state in which a frozen trial of the same configuration has it.

    Batch normalisation is estimated on the training subset, where its policy is so.

    Args:
        config: The configuration.
        data: What it looks at.
        tell: Is told how many images went through, batch by batch.

    Raises:
        MedtransferError: As `load` does, and if batch normalisation cannot be estimated.
    """
    backbone, provenance = load(config, data)
    settings = machine.resolve(config.trainer)
    torch.set_num_threads(int(settings.threads.value))
    frozen = FeatureExtraction(batchnorm=config.batchnorm, head_lr=1.0, search_space={})
    policy = frozen.resolve_batchnorm(statistics=provenance.statistics)
    # as trials lay it out: the last bits of the statistics, and so the cache's key, depend on it
    backbone.to(memory_format=torch.channels_last)
    if policy == "reestimate":
        loader = data.loader("train", batch_size=config.trainer.batch_size)
        reestimate_batchnorm(backbone, (batch["image"] for batch in loader))
    extractor = Counting(
        backbone=backbone,
        part="embedding",
        device=device_of(settings),
        precision="bf16" if settings.precision.value == "bf16" else "fp32",
        dtype=config.features.dtype,
        batch_size=config.trainer.batch_size,
        workers=int(settings.workers.value),
        tell=tell,
    )
    store = FeatureStore(config.paths.cache / "features", config.features.max_gb)
    return Extraction(data, backbone, provenance, policy, extractor, store)


def estimates(prepared: Extraction, config: RankConfig) -> dict[str, float | None]:
    """Return how well the embedding will serve the dataset, as far as its training images tell.

    Returns:
        `log_me`, `h_score`, `leep` and `knn`, as `transferability` defines them, of the training
        subset. `leep` is None where the weights came without a classifier of their own.

    Raises:
        DataError: If features are not finite, or all images are of one patient.
    """
    data = prepared.data
    embeddings, targets = prepared.features("train").table(data.train)
    x, y = embeddings.numpy(), targets.numpy()
    groups = [data.decoded.records[i].group_id for i in data.train]
    weights = build(config.weights, Weights, trusted=config.trusted_modules)
    classifier = weights.classifier(prepared.backbone)
    theta = None if classifier is None else _probabilities(classifier, embeddings)
    return {
        "log_me": transferability.log_me(x, y),
        "h_score": transferability.h_score(x, y),
        "leep": None if theta is None else transferability.leep(theta, y),
        "knn": transferability.knn_accuracy(x, y, groups, config.neighbours),
    }


@torch.no_grad()
def _probabilities(classifier: nn.Module, embeddings: Tensor) -> NDArray[np.float64]:
    return classifier(embeddings).double().softmax(1).numpy()  # type: ignore[no-any-return]

"""Nobody reads a test image before the test set is opened."""

import numpy as np
import pytest

from medtransfer.config import TrainConfig
from medtransfer.data.loading import Data
from medtransfer.data.seal import SealedError
from medtransfer.errors import ConfigError
from medtransfer.feed import Feed
from medtransfer.machine import resolve
from medtransfer.run import prepare


def test_test_images_are_read_after_opening_and_not_before(phantom, tmp_path):
    data = Data.open(phantom, cache=tmp_path, seed=0)
    for _ in range(2):
        with pytest.raises(SealedError):
            data.loader("test", batch_size=4)
    with pytest.raises(SealedError):
        data.views(data.division.test[:1], None, count=1, batch_size=1, workers=0)
    everything = np.arange(len(data.decoded.records))
    with pytest.raises(SealedError):
        data.views(everything, None, count=1, batch_size=1, workers=0)
    assert list(data.loader("val", batch_size=4))
    assert data.seal.open() == 1
    assert sum(len(b["index"]) for b in data.loader("test", batch_size=4)) == len(
        data.division.test
    )
    assert data.seal.open() == 2


def test_a_trial_that_tunes_cannot_open_it_nor_reach_it_by_features(compose, tiny):
    config = compose(*tiny, "test=false").typed(TrainConfig)
    trial = prepare(config)
    with pytest.raises(ConfigError, match="may not open the test set"):
        trial.data.seal.open()
    images = (batch["image"] for batch in trial.data.loader("train", batch_size=8))
    trial.model.strategy_.setup(trial.model, images, statistics=trial.provenance.statistics)
    feed = Feed(trial, resolve(config.trainer))
    with pytest.raises(SealedError):
        feed.ordered("test")


def test_what_a_seed_brings_is_the_same_for_every_arm(compose, tiny):
    arms = (
        ("strategy=feature_extraction",),
        ("strategy=fine_tuning", "optimizer.lr=0.003"),
        ("strategy=fine_tuning", "test=false"),
    )
    trials = [
        prepare(compose(*tiny, "dataset.fraction=0.5", "seed=4", *arm).typed(TrainConfig))
        for arm in arms
    ]
    first, *others = trials
    for other in others:
        assert np.array_equal(first.data.train, other.data.train)
        head, same = first.model.head.state_dict(), other.model.head.state_dict()
        assert all(bool((head[name] == same[name]).all()) for name in head)
        orders = [
            [batch["index"].tolist() for batch in loader]
            for loader in (
                trial.data.train_loader(trial.transform, batch_size=8, workers=0, sampler="shuffle")
                for trial in (first, other)
            )
        ]
        assert orders[0] == orders[1]
    moved = prepare(compose(*tiny, "dataset.fraction=0.5", "seed=5").typed(TrainConfig))
    assert not np.array_equal(first.data.train, moved.data.train)

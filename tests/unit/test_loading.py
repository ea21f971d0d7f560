from dataclasses import replace

import numpy as np
import pytest
import torch

from medtransfer.data.loading import Data
from medtransfer.data.sampling import EpochSampler
from medtransfer.data.transforms import Augment

STRENGTHS = ("rotation", "translation", "scale", "brightness", "contrast", "blur", "erasing")
LIGHT = Augment(flip=True, **dict.fromkeys(STRENGTHS, 0.3))
NONE = Augment(flip=False, **dict.fromkeys(STRENGTHS, 0.0))


@pytest.fixture(scope="module")
def opened(phantom, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def open_data(seed=0, **keys):
        dataset = replace(phantom, patients=36, **keys)
        return Data.open(dataset, cache=cache, seed=seed)

    return open_data


def epoch(data, *, number=0, workers=0, transform=LIGHT, sampler="shuffle", size=4):
    loader = data.train_loader(transform, batch_size=size, workers=workers, sampler=sampler)
    loader.sampler.set_epoch(number)
    batches = list(loader)
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


def test_the_seed_and_the_epoch_decide_order_and_pixels_whoever_loads(opened):
    first = epoch(opened())
    torch.manual_seed(99)
    assert same(first, epoch(opened()))
    assert same(first, epoch(opened(), workers=1))


def test_another_epoch_or_seed_has_another_order_and_other_pixels(opened):
    first = epoch(opened())
    for other in (epoch(opened(), number=1), epoch(opened(seed=1))):
        assert sorted(first["index"].tolist()) != first["index"].tolist()
        assert not torch.equal(first["index"], other["index"])
        common = set(first["index"].tolist()) & set(other["index"].tolist())
        image = {
            key: [e["image"][e["index"].tolist().index(key)] for e in (first, other)]
            for key in common
        }
        assert all(not torch.equal(a, b) for a, b in image.values())


def test_augmentation_takes_nothing_from_the_callers_randomness(opened):
    states = []
    for transform in (LIGHT, NONE):
        torch.manual_seed(0)
        epoch(opened(), transform=transform)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_batches_are_what_a_task_expects(opened):
    data = opened()
    batch = epoch(data, transform=NONE)
    assert batch["image"].dtype == torch.float32
    assert batch["target"].dtype == batch["index"].dtype == torch.int64
    for image, target, index in zip(*(batch[k] for k in ("image", "target", "index")), strict=True):
        assert np.array_equal((image * 255).round().numpy(), data.decoded.images[index])
        assert target == data.decoded.records[index].target


def test_a_last_smaller_batch_is_left_out_unless_it_is_the_only_one(opened):
    data = opened()
    assert len(data.train) == 18
    assert len(epoch(data, size=4)["index"]) == 16
    assert len(epoch(data, size=18)["index"]) == len(epoch(data, size=64)["index"]) == 18


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_sees_every_sample_once_in_order_and_as_it_is(opened, split):
    data = opened(seed=1, fraction=0.5)
    data.seal.open()
    loader = data.loader(split, batch_size=4)
    indices = torch.cat([batch["index"] for batch in loader])
    expected = data.train if split == "train" else getattr(data.division, split)
    assert indices.tolist() == expected.tolist()
    images = torch.cat([batch["image"] for batch in loader])
    assert torch.equal(images, torch.from_numpy(data.decoded.images[expected]).float().div(255))


def test_a_balanced_epoch_draws_every_class_equally_often():
    targets = np.array([0] * 90 + [1] * 10)
    weights = (1 / np.bincount(targets))[targets]
    sampler = EpochSampler(np.arange(100), 0, weights)
    drawn = []
    for number in range(20):
        sampler.set_epoch(number)
        drawn += [targets[index] for _, index in sampler]
    assert len(drawn) == 20 * len(sampler) == 2000
    assert abs(np.mean(drawn) - 0.5) < 0.04


def test_balancing_is_by_the_classes_of_the_training_subset(opened):
    data = opened()
    by_class = [data.train[data.targets[data.train] == label] for label in range(3)]
    kept = [indices[:count] for indices, count in zip(by_class, (6, 3, 1), strict=True)]
    uneven = replace(data, train=np.concatenate(kept))
    sampler = uneven.train_loader(NONE, batch_size=4, workers=0, sampler="balanced").sampler
    shares = np.bincount(data.targets[uneven.train], weights=sampler.weights)
    assert shares == pytest.approx([1 / 3] * 3)


def test_every_arm_of_a_seed_sees_the_same_subset_and_every_seed_the_same_test_set(opened):
    small = [opened(seed=seed, fraction=0.5) for seed in (0, 0, 1)]
    assert small[0].train.tolist() == small[1].train.tolist() != small[2].train.tolist()
    assert len({data.spec.split_hash for data in (*small, opened())}) == 1
    assert set(small[0].train) < set(opened().train)


def test_what_a_task_may_know_counts_the_subset(opened):
    spec = opened(shots=2).spec
    assert spec.train_counts == (2, 2, 2)
    assert (spec.channels, spec.image_size) == (1, 32)
    assert spec.class_names == ("normal", "benign", "malignant")

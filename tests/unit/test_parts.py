"""A batch that is cut into parts teaches what it would teach in one piece."""

from dataclasses import replace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from medtransfer.config import TrainConfig
from medtransfer.data.loading import Data
from medtransfer.data.sampling import CaseBatches, EpochSampler, Parts
from medtransfer.data.transforms import Augment
from medtransfer.features import Features
from medtransfer.run import prepare

STRENGTHS = ("rotation", "translation", "scale", "brightness", "contrast", "blur", "erasing")
LIGHT = Augment(flip=True, **dict.fromkeys(STRENGTHS, 0.3))

counts = st.integers(1, 4)


@pytest.fixture(scope="module")
def opened(phantom, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def open_data(annotation="class", **keys):
        dataset = replace(phantom, patients=36, **keys)
        return Data.open(dataset, annotation, cache=cache, seed=0)

    return open_data


def everyone(accumulate, ranks):
    """Return the parts of each rank."""
    return [Parts(accumulate, ranks, rank) for rank in range(ranks)]


def joined(loaders, accumulate):
    """Return what all ranks load, in the order of the parts."""
    each = [list(loader) for loader in loaders]
    assert len({len(batches) for batches in each}) == 1
    assert all(len(batches) == len(loader) for batches, loader in zip(each, loaders, strict=True))
    assert len(each[0]) % accumulate == 0
    return [batches[turn] for turn in range(len(each[0])) for batches in each]


@given(cases=st.integers(1, 50), accumulate=counts, ranks=counts)
def test_parts_are_disjoint_complete_and_in_order(cases, accumulate, ranks):
    batch, found, sizes = list(range(cases)), [], []
    for turn in range(accumulate):
        for parts in everyone(accumulate, ranks):
            start, end = parts.bounds(cases, turn)
            found += batch[start:end]
            sizes.append(end - start)
    assert found == batch
    assert max(sizes) - min(sizes) <= 1


@given(cases=st.integers(1, 50), accumulate=counts, ranks=counts, least=st.integers(1, 3))
def test_no_part_has_too_few_cases_if_it_has_any(cases, accumulate, ranks, least):
    found, shares = [], []
    for turn in range(accumulate):
        for parts in everyone(accumulate, ranks):
            start, end = parts.bounds(cases, turn, least=least)
            assert end == start or end - start >= min(least, cases)
            found += range(start, end)
            shares.append(parts.share(cases, turn, least=least))
    assert found == list(range(cases))
    assert np.mean(shares) == pytest.approx(1)


@given(
    cases=st.integers(1, 40),
    size=st.integers(1, 12),
    parts=st.tuples(counts, counts),
    drop_balanced_exams=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_ranks_together_see_the_batches_of_one(cases, size, parts, drop_balanced_exams):
    (drop, balanced, exams), (accumulate, ranks) = drop_balanced_exams, parts
    indices = np.arange(cases) * 2
    weights = np.arange(1.0, cases + 1) if balanced else None
    members = {int(i): np.array([i, i + 1]) for i in indices} if exams else None

    def batches(mine):
        sampler = EpochSampler(indices, 3, weights)
        sampler.set_epoch(5)
        keys = {"batch_size": size, "drop_last": drop, "members": members}
        return CaseBatches(sampler, parts=mine, **keys)

    expected = list(batches(Parts()))
    loaders = [batches(mine) for mine in everyone(accumulate, ranks)]
    count, yielded = accumulate * ranks, joined(loaders, accumulate)
    shares = [loader.share(n) for n in range(len(loaders[0])) for loader in loaders]
    assert len(yielded) == len(expected) * count
    for number, whole in enumerate(expected):
        these = slice(number * count, (number + 1) * count)
        together = list(zip(yielded[these], shares[these], strict=True))
        assert [key for part, share in together if share for key in part] == whole
        assert np.mean(shares[these]) == pytest.approx(1)
        for part, share in together:
            assert len(part) >= min(2 if size >= 2 * count else 1, len(whole))
            if share:  # of images as of cases, since each exam has two
                assert share == pytest.approx(count * len(part) / len(whole))


def test_one_part_is_the_loader_that_there_always_was(opened):
    keys = {"batch_size": 4, "workers": 0, "sampler": "shuffle"}
    for parts in (None, Parts()):
        loader = opened().train_loader(LIGHT, parts=parts, **keys)
        assert type(loader.batch_sampler) is torch.utils.data.BatchSampler
        assert loader.batch_size == 4
        assert loader.drop_last


@pytest.mark.parametrize("annotation", ["class", "exam", "mask", "boxes"])
@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_images_come_in_parts_as_they_would_whole(opened, annotation, sampler):
    data = opened(annotation, images=2 if annotation == "exam" else 1)
    keys = {"batch_size": 5, "workers": 0, "sampler": sampler}
    (whole, *_) = data.train_loader(LIGHT, **keys)
    loaders = [data.train_loader(LIGHT, parts=parts, **keys) for parts in everyone(2, 2)]
    parts = joined(loaders, 2)[:4]
    for name in whole:
        values = [part[name] for part in parts]
        if isinstance(whole[name], list):
            together = [value for each in values for value in each]
            assert all(torch.equal(a, b) for a, b in zip(together, whole[name], strict=True))
        elif name != "exam":
            assert torch.equal(torch.cat(values), whole[name])
    if annotation == "exam":  # numbered in each part anew, and never divided
        assert [part["exam"].tolist() for part in parts] == [[0, 0], [0, 0], [0, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("annotation", ["class", "exam"])
def test_features_come_in_the_parts_of_the_images(opened, annotation):
    data = opened(annotation, images=2 if annotation == "exam" else 1)
    rows = np.arange(len(data.decoded.records))
    stored = Features({"embedding": rows[:, None, None].astype(np.float32)}, rows, data, None)
    for parts in everyone(3, 2):
        images = data.train_loader(LIGHT, batch_size=8, workers=0, sampler="shuffle", parts=parts)
        features = stored.in_place_of(images)
        assert len(features) == len(images)
        for a, b in zip(images, features, strict=True):
            assert torch.equal(a["index"], b["index"])
            assert b["embedding"].flatten().tolist() == a["index"].tolist()


@given(
    cases=st.integers(1, 20),
    accumulate=counts,
    ranks=counts,
    seed=st.integers(0, 2**31 - 1),
)
def test_gradients_of_parts_average_to_that_of_the_batch(cases, accumulate, ranks, seed):
    torch.manual_seed(seed)
    model = torch.nn.Linear(5, 3).double()
    inputs, targets = torch.randn(cases, 5).double(), torch.randint(0, 3, (cases,))

    def gradient(chosen, share=1.0):
        (found,) = torch.autograd.grad(
            share * cross_entropy(model(inputs[chosen]), targets[chosen]), [model.weight]
        )
        return found

    every = list(range(cases))
    each = []
    for parts in everyone(accumulate, ranks):
        loader = CaseBatches(
            EpochSampler(np.array(every), 0), batch_size=cases, drop_last=False, parts=parts
        )
        for turn, keys in enumerate(loader):
            each.append(gradient([index for _, index in keys], loader.share(turn)))
    torch.testing.assert_close(torch.stack(each).mean(0), gradient(every), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [5, 99])
def test_training_in_parts_is_training_on_whole_batches(compose, tiny, tmp_path, size):
    config = compose(
        *(*tiny, "backbone.name=test_vit", "head.norm=none", "optimizer=sgd", "optimizer.lr=0.01"),
        f"paths.cache={tmp_path}",
    ).typed(TrainConfig)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")

    def trained(count):
        trial = prepare(config)
        trial.model.strategy_.setup(trial.model, (), statistics=True)
        loader = trial.data.train_loader(
            LIGHT, batch_size=size, workers=0, sampler="shuffle", parts=Parts(count)
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            accumulate_grad_batches=count,
            **dict.fromkeys(quiet, False),
        )
        trainer.fit(trial.model, loader)
        loss = float(trainer.callback_metrics["train/loss"])
        return trial.model.state_dict(), trainer.global_step, loss

    (expected, steps, loss), whole = trained(1), len(prepare(config).data.train) // size or 1
    assert steps == 2 * whole
    for count in (2, 7):
        found = trained(count)
        torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6)
        assert found[1] == steps
        assert found[2] == pytest.approx(loss, rel=1e-5)

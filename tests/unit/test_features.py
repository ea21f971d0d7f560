import multiprocessing
import os
import resource
import runpy
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from medtransfer.backbones.pixels import Pixels
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.data.loading import Data
from medtransfer.data.seal import SealedError
from medtransfer.data.splits import Split
from medtransfer.data.transforms import Augment
from medtransfer.errors import StoreError
from medtransfer.features import Extractor, FeatureStore, open_features, size_estimate
from medtransfer.seeding import derive

STRENGTHS = ("rotation", "translation", "scale", "brightness", "contrast", "blur", "erasing")
LIGHT = Augment(flip=True, **dict.fromkeys(STRENGTHS, 0.3))
NONE = Augment(flip=False, **dict.fromkeys(STRENGTHS, 0.0))
SPLIT = Split(kind="holdout", seed=0, file=None, ratios=(0.5, 0.2, 0.3))
NETWORKS = ("test_resnet", "test_convnext", "test_vit")


class Logged(Pixels):
    """Each pass leaves a line in `log`; before pass number `dies` the process is killed."""

    log: Path
    dies: int | None = None

    def embed(self, images):
        if self.passes() == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        with self.log.open("a") as file:
            file.write(f"{len(images)}\n")
        return super().embed(images)

    def passes(self):
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


def network(name="test_resnet", **options):
    torch.manual_seed(0)
    return TimmBackbone(name, 1, 32, **options).eval()


def extractor(backbone=None, **changes):
    fields = {"part": "embedding", "precision": "fp32", "dtype": "fp32", "batch_size": 4}
    device = torch.device("cpu")
    return Extractor(backbone or network(), device=device, workers=0, **{**fields, **changes})


@pytest.fixture(scope="module")
def opened(phantom, tmp_path_factory):
    cache = tmp_path_factory.mktemp("decoded")

    def open_data(seed=0, **keys):
        return Data.open(replace(phantom, **keys), cache=cache, seed=seed)

    return open_data


@pytest.fixture
def logged(tmp_path):
    backbone = Logged(1, 4, 32)
    backbone.log = tmp_path / "log"
    return backbone


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "features", None)


def features(data, split="train", by=None, *, transform=NONE, views=1, store=None):
    return open_features(
        data, split, by or extractor(), transform=transform, views=views, store=store
    )


def entries(store):
    return {path.name for path in store.folder.iterdir() if path.is_dir()}


def images(data, indices):
    return torch.from_numpy(data.decoded.images[np.asarray(indices)]).float() / 255


@pytest.fixture(scope="module", params=NETWORKS)
def embedded(request, opened, tmp_path_factory):
    """Return data, a network, and its stored features of the training images."""
    data, backbone = opened(), network(request.param)
    store = FeatureStore(tmp_path_factory.mktemp("features"), None)
    return data, backbone, features(data, by=extractor(backbone), store=store)


@given(data=st.data(), size=st.integers(1, 9))
def test_stored_embeddings_are_those_of_the_network_in_any_order(embedded, data, size):
    source, backbone, stored = embedded
    order = np.array(data.draw(st.permutations(source.train.tolist())))
    for start in range(0, len(order), size):
        some = order[start : start + size]
        with torch.no_grad():
            expected = backbone.embed(images(source, some))
        found = stored.read(some, np.zeros_like(some))["embedding"]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kept", ["disk", "memory"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_stored_pyramid_is_that_of_the_network(opened, store, name, kept):
    data, backbone = opened(), network(name)
    by = extractor(backbone, part="pyramid")
    stored = features(data, "val", by, store=store if kept == "disk" else None)
    (batch,) = stored.in_place_of(data.loader("val", batch_size=99))
    with torch.no_grad():
        expected = backbone.pyramid(images(data, data.division.val))
    assert set(batch) == {"index", "target", "levels"}
    for level, online in zip(batch["levels"], expected, strict=True):
        torch.testing.assert_close(level, online, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("split", ["val", "test"])
def test_disk_and_memory_hold_the_same(opened, store, split):
    data = opened()
    data.seal.open()
    for dtype in ("fp32", "bf16"):
        by = extractor(dtype=dtype)
        disk, memory = (features(data, split, by, store=s) for s in (store, None))
        assert np.array_equal(disk.arrays["embedding"], memory.arrays["embedding"])
        assert np.array_equal(disk.rows, memory.rows)


def test_bf16_takes_half_and_is_nearly_the_same(opened):
    data = opened()
    exact, rounded = (features(data, by=extractor(dtype=kind)) for kind in ("fp32", "bf16"))
    assert rounded.arrays["embedding"].nbytes * 2 == exact.arrays["embedding"].nbytes
    expected, found = (f.table(data.train)[0] for f in (exact, rounded))
    assert torch.equal(found, expected.bfloat16().float())


def test_bf16_computes_as_a_trial_does(opened):
    data, backbone = opened(), network()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = backbone.embed(images(data, data.train)).float()
    found, _ = features(data, by=extractor(backbone, precision="bf16")).table(data.train)
    exact, _ = features(data, by=extractor(backbone)).table(data.train)
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_views_are_the_images_that_the_seed_0_sees_in_its_first_epochs(opened):
    data = opened(seed=0)
    by = extractor(Pixels(1, 32, 32))
    stored = features(data, by=by, transform=LIGHT, views=3)
    assert stored.arrays["embedding"].shape == (len(data.division.train), 3, 32 * 32)
    for epoch in range(5):
        online = data.train_loader(LIGHT, batch_size=4, workers=0, sampler="shuffle")
        cached = stored.in_place_of(online)
        online.sampler.set_epoch(epoch)
        for batch, images in zip(cached, online, strict=True):
            same = torch.equal(batch["embedding"], by.backbone.embed(images["image"]))
            assert same == (epoch < 3)


@pytest.mark.parametrize("seed", [3, 4])
def test_views_come_from_no_trials_seed(opened, seed):
    by = extractor(Pixels(1, 32, 32))
    stored = features(opened(seed=seed), by=by, transform=LIGHT, views=2)
    data = opened()
    index = int(data.train[5])
    torch.manual_seed(derive(0, 1, index))
    expected = by.backbone.embed(LIGHT(images(data, [index])[0])[None])
    found = stored.read(np.array([index]), np.array([1]))["embedding"]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
@pytest.mark.parametrize("size", [4, 5, 64])
def test_cached_batches_have_the_indices_of_the_image_loaders(opened, sampler, size):
    data = opened(seed=2, fraction=0.6)
    stored = features(data, by=extractor(Pixels(1, 4, 32)), transform=LIGHT, views=2)
    orders = []
    for epoch in range(3):
        loaders = [
            data.train_loader(LIGHT, batch_size=size, workers=0, sampler=sampler) for _ in range(2)
        ]
        loaders[1] = stored.in_place_of(loaders[1])
        for loader in loaders:
            loader.sampler.set_epoch(epoch)
        online, cached = map(list, loaders)
        assert len(online) == len(cached) == len(loaders[1]) > 0
        for a, b in zip(online, cached, strict=True):
            assert torch.equal(a["index"], b["index"])
            assert torch.equal(a["target"], b["target"])
            assert a["index"].dtype == b["index"].dtype
            view = stored.read(b["index"].numpy(), np.full(len(b["index"]), epoch % 2))
            assert torch.equal(b["embedding"], view["embedding"])
        orders.append(torch.cat([batch["index"] for batch in cached]).tolist())
    assert orders[0] != orders[1] != orders[2]


def test_evaluation_batches_have_the_order_of_the_image_loaders(opened):
    data = opened()
    data.seal.open()
    for split in ("val", "test"):
        online = data.loader(split, batch_size=4)
        cached = features(data, split, extractor(Pixels(1, 4, 32))).in_place_of(online)
        for a, b in zip(online, cached, strict=True):
            assert torch.equal(a["index"], b["index"])
            assert torch.equal(a["target"], b["target"])


def test_lightning_tells_the_cached_loader_its_epoch(opened):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.seen = []

        def training_step(self, batch, _):
            self.seen.append((self.current_epoch, batch["index"].tolist()))
            return self.weight * batch["embedding"].mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = opened(seed=5)
    online = data.train_loader(NONE, batch_size=64, workers=0, sampler="shuffle")
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    module = Module()
    trainer = pl.Trainer(accelerator="cpu", max_epochs=3, **quiet)
    trainer.fit(module, features(data, by=extractor(Pixels(1, 4, 32))).in_place_of(online))
    for epoch, indices in module.seen:
        online.sampler.set_epoch(epoch)
        assert indices == [index for _, index in online.sampler]
    assert len(module.seen) == 3


def test_a_table_holds_every_view_of_the_subset_and_its_targets(opened):
    data = opened(seed=1, fraction=0.5)
    stored = features(data, by=extractor(Pixels(1, 4, 32)), transform=LIGHT, views=3)
    embeddings, targets = stored.table(data.train)
    assert embeddings.shape == (len(data.train) * 3, 16)
    for row, (embedding, target) in enumerate(zip(embeddings, targets, strict=True)):
        index = data.train[row // 3]
        assert target == data.targets[index]
        expected = stored.read(np.array([index]), np.array([row % 3]))["embedding"][0]
        assert torch.equal(embedding, expected)


def test_a_sample_of_another_split_is_refused(opened):
    data = opened()
    with pytest.raises(KeyError, match=str(data.division.test[0])):
        features(data, "val").read(data.division.test[:1], np.zeros(1, int))


def moved(name):
    backbone = network()
    with torch.no_grad():
        backbone.state_dict()[name].view(-1)[0] += 1e-3
    return backbone


BASE = {"data": {}, "by": {}, "split": "train", "transform": LIGHT, "views": 2}
SAME = {
    "nothing": {},
    "seed": {"data": {"seed": 7}},
    "fraction": {"data": {"fraction": 0.5}},
    "shots": {"data": {"shots": 1}},
    "batch size": {"by": {"batch_size": 3}},
    "another object": {"by": {"backbone": network}},
}
OTHER = {
    "weights": {"by": {"backbone": lambda: moved("model.layer1.0.conv1.weight")}},
    "normalisation": {"by": {"backbone": lambda: moved("mean")}},
    "architecture": {"by": {"backbone": lambda: network("test_vit")}},
    "what has no weights": {"by": {"backbone": lambda: Pixels(1, 4, 32)}},
    "its size": {"by": {"backbone": lambda: Pixels(1, 5, 32)}},
    "pyramid": {"by": {"part": "pyramid"}},
    "precision": {"by": {"precision": "bf16"}},
    "dtype": {"by": {"dtype": "bf16"}},
    "files": {"data": {"data_seed": 1}},
    "image size": {"data": {"image_size": 24}},
    "division": {"data": {"split": replace(SPLIT, seed=1)}},
    "split": {"split": "val"},
    "transform": {"transform": replace(LIGHT, flip=False)},
    "no transform": {"transform": NONE},
    "views": {"views": 3},
}


@pytest.fixture(scope="module")
def keys(opened, tmp_path_factory):
    """Return a function that gives the key of one case."""

    def key(data, by, split, transform, views):
        by = {name: value() if callable(value) else value for name, value in by.items()}
        store = FeatureStore(tmp_path_factory.mktemp("keys"), None)
        features(
            opened(**data), split, extractor(**by), transform=transform, views=views, store=store
        )
        (found,) = entries(store)
        return found

    return key


@pytest.mark.parametrize("case", SAME)
def test_trials_that_need_the_same_features_share_them(keys, case):
    assert keys(**BASE) == keys(**{**BASE, **SAME[case]})


@pytest.mark.parametrize("case", OTHER)
def test_what_changes_the_features_is_another_entry(keys, case):
    assert keys(**BASE) != keys(**{**BASE, **OTHER[case]})


def test_every_case_has_an_entry_of_its_own(keys):
    assert len({keys(**{**BASE, **case}) for case in OTHER.values()}) == len(OTHER)


@pytest.mark.parametrize("library", [torch, timm, torchvision])
def test_another_version_of_a_library_is_another_entry(keys, monkeypatch, library):
    before = keys(**BASE)
    monkeypatch.setattr(library, "__version__", "0")
    assert keys(**BASE) != before


def test_an_edited_network_is_another_entry(opened, store, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for number in (1, 2):
        code = (
            "from medtransfer.backbones.pixels import Pixels\n"
            "class Own(Pixels):\n"
            f"    def embed(self, images): return super().embed(images) * {number}\n"
        )
        (tmp_path / "own_network.py").write_text(code)
        own = runpy.run_path(str(tmp_path / "own_network.py"), run_name="own_network")["Own"]
        monkeypatch.setitem(
            sys.modules, "own_network", SimpleNamespace(__file__=str(tmp_path / "own_network.py"))
        )
        features(opened(), by=extractor(own(1, 4, 32)), store=store)
        assert len(entries(store)) == number


def test_views_are_of_no_use_where_nothing_is_random(opened):
    assert features(opened(), transform=NONE, views=4).views == 1
    assert features(opened(), "val", transform=LIGHT, views=4).views == 1
    assert features(opened(), transform=None, views=4).views == 1
    assert features(opened(), transform=LIGHT, views=4).views == 4


def test_nothing_of_the_test_images_is_computed_before_they_are_asked_for(opened, store, logged):
    data, by = opened(), extractor(logged, batch_size=1)
    for split in ("train", "val"):
        features(data, split, by, store=store)
    assert len(entries(store)) == 2
    before = logged.passes()
    with pytest.raises(SealedError):
        features(data, "test", by, store=store)
    assert logged.passes() == before
    data.seal.open()
    features(data, "test", by, store=store)
    assert len(entries(store)) == 3
    assert logged.passes() - before == len(data.division.test)


@pytest.mark.parametrize("part", ["embedding", "pyramid"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_size_is_known_beforehand(opened, part, dtype):
    data, by = opened(fraction=0.5), extractor(part=part, dtype=dtype)
    expected = size_estimate(data, "train", by, transform=LIGHT, views=3)
    stored = features(data, by=by, transform=LIGHT, views=3)
    assert expected == sum(array.nbytes for array in stored.arrays.values())


def test_a_hit_and_a_miss_leave_the_callers_randomness_alone(opened, store):
    by = extractor()
    state = torch.get_rng_state()
    for _ in range(2):
        features(opened(), by=by, transform=LIGHT, views=2, store=store)
        assert torch.equal(torch.get_rng_state(), state)


def test_workers_change_nothing(opened):
    plain, loaded = (
        features(opened(), by=replace(extractor(), workers=n), transform=LIGHT, views=2)
        for n in (0, 1)
    )
    assert np.array_equal(plain.arrays["embedding"], loaded.arrays["embedding"])


def _open(given):
    data, by, store = given
    return features(data, by=by, store=store).table(data.train)[0].sum().item()


def test_two_processes_at_once_do_the_work_once(opened, store, logged):
    data, by = opened(), extractor(logged, batch_size=1)
    with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
        found = set(pool.map(_open, [(data, by, store)] * 4))
    assert len(found) == 1
    assert logged.passes() == len(data.division.train)


def test_features_are_right_after_a_writer_was_killed(opened, store, logged):
    data, by = opened(), extractor(logged, batch_size=1)
    logged.dies = 4
    process = multiprocessing.get_context("fork").Process(target=_open, args=((data, by, store),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [name.startswith("partial-") for name in entries(store)] == [True]
    logged.dies = None
    found, _ = features(data, by=by, store=store).table(data.train)
    assert torch.equal(found, logged.embed(images(data, data.train)))
    assert [name.startswith("partial-") for name in entries(store)] == [False]


def test_a_damaged_file_is_told_and_computed_again(opened, store):
    data = opened()
    expected = features(data, store=store).table(data.train)[0]
    (file,) = store.folder.glob("*/embedding.npy")
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    os.utime(file, (1, 1))  # clocks of file systems are coarse
    with pytest.warns(UserWarning, match=r"'embedding.npy' is not as it was written"):
        found = features(data, store=store).table(data.train)[0]
    assert torch.equal(found, expected)


def test_a_full_disk_is_told_and_leaves_nothing(opened, store):
    data = opened()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            features(data, store=store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert entries(store) == set()


def test_the_store_is_kept_within_its_bound(opened, store):
    data, by = opened(), extractor(Pixels(1, 32, 32))
    data.seal.open()
    splits = {}
    for split in ("val", "train", "test"):
        before = entries(store) if splits else set()
        one = size_estimate(data, split, by, transform=None, views=1)
        bound = 1.5 * one / 1e9 if split == "test" else None
        features(data, split, by, store=replace(store, max_gb=bound))
        (splits[split],) = entries(store) - before
    assert entries(store) == {splits["test"]}

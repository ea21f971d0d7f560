"""The presets that follow a published protocol, and the parts that were made for them."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.transforms import Compose, Normalize, Pad

from medtransfer.app import App, config_dir
from medtransfer.backbones.base import Backbone
from medtransfer.backbones.files import File
from medtransfer.backbones.hub import Hub
from medtransfer.backbones.small_resnet import SmallResNet
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.backbones.weights import fit, save
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data import medmnist
from medtransfer.data.loading import Data
from medtransfer.errors import ConfigError, WeightsError
from medtransfer.features import Extractor, FeatureStore, open_features
from medtransfer.heads.unets import UNet
from medtransfer.run import check
from medtransfer.strategies.base import Strategy
from medtransfer.tasks.optimizing import optimizer_factory, scheduled
from medtransfer.tasks.schedulers import Scheduler

IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(scope="module")
def trials():
    """Return the trials of each preset's sweep, by name."""
    with App.open("train", None) as app:
        return {
            name: [app.compose(job).typed(TrainConfig) for job in app.plan([given]).jobs]
            for name in ("medmnist_v2", "doerrich")
            for given in [f"experiment={name}"]
        }


def published():
    text = Path(medmnist.__file__).with_name("medmnist_published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_figures_are_named_by_the_preset_and_the_arm_that_follow_their_protocol(trials):
    assert {row["protocol"] for row in published()} == set(trials) == set(medmnist.PAPERS)
    for protocol in trials:
        assert f"{protocol}.yaml" in {path.name for path in config_dir().glob("experiment/*")}
        known = {row["dataset"] for row in published() if row["protocol"] == protocol}
        assert len(known) == 12
    arms = {row["strategy"] for row in published() if row["protocol"] == "doerrich"}
    study = trials["doerrich"][0].study
    assert arms < set(study.arms)
    assert (study.primary.a, study.primary.b) == ("solved probe", "linear probe")


def test_a_preset_finds_its_figures_beside_the_official_file(trials, monkeypatch):
    monkeypatch.setattr(medmnist.MedMNIST, "official", True)
    for protocol, figure in {
        "medmnist_v2": "scratch resnet18 at 28 px AUROC 0.944, accuracy 0.854",
        "doerrich": "linear probe resnet18 at 28 px accuracy 0.7436 (SD 0.0026 over seeds)",
    }.items():
        (note,) = check(trials[protocol][0]).dataset.notes()
        (told,) = [part for part in note.split("; exp") if protocol in part]
        assert figure in told


def test_medmnist_v2_is_as_its_authors_state_it(trials):
    swept = trials["medmnist_v2"]
    names = ["resnet18_small"] * 3 + ["resnet50_small"] * 3
    assert [trial.backbone["name"] for trial in swept] == names
    assert [trial.seed for trial in swept] == [0, 1, 2] * 2
    for trial in swept:
        chosen = check(trial)
        assert (trial.dataset["size"], chosen.dataset.image_size) == (28, 28)
        assert (chosen.dataset.split.kind, chosen.dataset.split.leaks) == ("own", "refuse")
        assert set(trial.audit.waive) == {"exact_duplicates", "near_duplicates"}  # it stays whole
        assert not chosen.transform.random
        assert trial.weights["_target_"].endswith(".Random")
        assert trial.strategy["_target_"].endswith(".FineTuning")
        assert (trial.strategy["backbone_lr"], trial.strategy["head_lr"]) == (1, 1)
        assert trial.head["norm"] == "none"
        wanted = {"_target_": "torch.optim.Adam", "lr": 1e-3, "weight_decay": 0}
        assert trial.optimizer == wanted
        assert (trial.trainer.max_epochs, trial.trainer.batch_size) == (100, 128)
        assert trial.trainer.early_stopping.patience is None
        assert (chosen.metric, chosen.mode) == ("auroc", "max")
        assert (trial.backbone["mean"], trial.backbone["std"]) == (0.5, 0.5)


def test_doerrich_is_as_its_authors_state_it(trials):
    swept = trials["doerrich"]
    classes = ["FineTuning", "FeatureExtraction", "ClassicHead", "LinearProbe"]
    assert [trial.strategy["_target_"].rpartition(".")[2] for trial in swept] == classes * 3
    assert [trial.seed for trial in swept] == [0] * 4 + [1] * 4 + [2] * 4
    for trial in swept:
        chosen = check(trial)
        assert (trial.dataset["size"], trial.dataset["image_size"]) == (28, 28)
        assert (chosen.dataset.split.kind, chosen.dataset.split.leaks) == ("own", "refuse")
        assert (trial.backbone["name"], trial.backbone["pad_to"]) == ("resnet18", 224)
        assert trial.weights["_target_"].endswith(".Hub")
        assert not chosen.transform.random
        wanted = {"_target_": "torch.optim.AdamW", "lr": 1e-4, "weight_decay": 1e-2}
        assert trial.optimizer == wanted
        assert (trial.trainer.max_epochs, trial.trainer.batch_size) == (100, 64)
        assert trial.trainer.early_stopping.patience == 5
        assert (chosen.metric, chosen.mode) == ("loss", "min")
        halfway = [build(trial.scheduler, Scheduler).factor(share) for share in (0, 0.5, 1)]
        assert halfway == pytest.approx([1, 0.5, 0])
    tuned, probe, neighbours, solved = swept[:4]
    assert (tuned.strategy["backbone_lr"], tuned.strategy["head_lr"]) == (1, 1)
    assert (probe.strategy["head_lr"], probe.head["norm"]) == (1, "none")
    # the nearest to their moving statistics of a frozen network that a frozen network allows
    assert probe.strategy["batchnorm"] == "reestimate"
    with pytest.raises(ConfigError, match="batchnorm=train"):
        build({**probe.strategy, "batchnorm": "train"}, Strategy)
    assert (neighbours.strategy["kind"], neighbours.strategy["neighbours"]) == ("knn", [11])
    assert (solved.head["norm"], solved.strategy["batchnorm"]) == ("batch", "auto")


def test_sizes_and_sets_are_chosen_on_the_command_line():
    with App.open("train", None) as app:
        plan = app.plan(
            ["experiment=doerrich", "dataset.name=breastmnist", "dataset.size=28,224", "seed=0"]
        )
        found = [app.compose(job).typed(TrainConfig).dataset for job in plan.jobs]
    assert [d["image_size"] for d in found] == [28] * 4 + [224] * 4
    assert {d["name"] for d in found} == {"breastmnist"}


@pytest.mark.parametrize("steps", [1, 7, 37])
def test_the_steps_of_its_schedule_are_those_of_torch(steps, trials):
    trial = trials["medmnist_v2"][0]
    make = optimizer_factory(trial.optimizer, ())
    ours, theirs = (make(params=[nn.Parameter(torch.zeros(1))]) for _ in range(2))
    schedule = build(trial.scheduler, Scheduler)
    trainer = SimpleNamespace(estimated_stepping_batches=100 * steps)
    each_step = scheduled(ours, schedule.factor, trainer)["lr_scheduler"]["scheduler"]
    each_epoch = torch.optim.lr_scheduler.MultiStepLR(theirs, [50, 75], gamma=0.1)
    for _ in range(100):
        for _ in range(steps):
            assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])
            ours.step()
            each_step.step()
        theirs.step()
        each_epoch.step()


def small(name="resnet18_small", channels=1, size=28):
    torch.manual_seed(0)
    return SmallResNet(name, channels, 0.5, 0.5, size).eval()


@pytest.mark.parametrize(
    ("name", "widths"),
    [("resnet18_small", (64, 128, 256, 512)), ("resnet50_small", (256, 512, 1024, 2048))],
)
def test_a_small_stem_keeps_images_as_large_as_they_are(name, widths):
    backbone = small(name)
    embedding, levels = backbone.features(torch.rand(2, 1, 28, 28))
    assert [level.shape for level in levels] == [
        (2, width, side, side) for width, side in zip(widths, (28, 14, 7, 4), strict=True)
    ]
    assert embedding.shape == (2, backbone.embedding_size) == (2, widths[-1])
    assert backbone.channels == widths
    assert backbone.strides == (1, 2, 4, 7)  # 28 / 4: the last level is filled up
    grouped = [parameter for group in backbone.layer_groups() for parameter in group]
    assert sorted(grouped) == sorted(parameter for parameter, _ in backbone.named_parameters())
    assert backbone.layer_groups()[0][0] == "model.conv1.weight"


def test_a_small_network_of_other_images_has_strides_of_1_to_8_and_serves_dense_heads():
    backbone = small(channels=3, size=64)
    assert backbone.strides == (1, 2, 4, 8)
    levels = backbone.pyramid(torch.rand(2, 3, 64, 64))
    pyramid = {"channels": backbone.channels, "strides": backbone.strides, "image_size": 64}
    head = UNet(outputs=2, upsampling="interpolation", widths=(32, 16, 8, 8, 4), **pyramid)
    assert head(levels, (64, 64)).shape == (2, 2, 64, 64)


@pytest.mark.parametrize("depth", [18, 50])
def test_a_small_network_is_what_its_authors_make_of_torchvisions(depth):
    backbone = small(f"resnet{depth}_small", channels=3)
    oracle = getattr(torchvision.models, f"resnet{depth}")().eval()
    oracle.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    oracle.maxpool, oracle.fc = nn.Identity(), nn.Identity()
    oracle.load_state_dict(backbone.model.state_dict())
    images = torch.rand(2, 3, 28, 28)
    expected = oracle(Normalize([0.5] * 3, [0.5] * 3)(images))
    torch.testing.assert_close(backbone.embed(images), expected, atol=1e-4, rtol=1e-4)


def test_the_stages_of_a_small_network_give_its_levels():
    backbone = small()
    images = torch.rand(2, 1, 28, 28)
    found = [backbone.normalised(images)]
    for stage in backbone.stages():
        found.append(stage(found[-1]))
    torch.testing.assert_close(found[1:], backbone.pyramid(images))
    staged = {parameter for stage in backbone.stages() for parameter in stage.parameters()}
    assert staged == set(backbone.parameters())


def test_weights_of_the_network_with_a_large_stem_are_refused(tmp_path):
    backbone = small(channels=3)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    with pytest.raises(WeightsError, match="no weights for 'resnet18_small'"):
        Hub(path=None, tag=None, sha256=None).load(backbone)
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    shapes = r"'model\.conv1\.weight' is \(64, 3, 7, 7\) and should be \(64, 3, 3, 3\)"
    with pytest.raises(WeightsError, match=shapes):
        fit(backbone, state, source="a file")
    save(TimmBackbone("resnet18", 3, 28), tmp_path / "large.safetensors", source="simclr")
    file = {"path": None, "tag": None, "sha256": None, "source": "simclr", "made_on": "any"}
    with pytest.raises(WeightsError, match="no weights of source 'simclr'"):
        File(folder=tmp_path, **file).load(backbone)
    assert all(torch.equal(before[name], v) for name, v in backbone.state_dict().items())
    save(backbone, tmp_path / "small.safetensors", source="simclr")
    twin = SmallResNet("resnet18_small", 3, 0.1, 0.1, 28).eval()
    File(folder=tmp_path, **file).load(twin)
    images = torch.rand(1, 3, 28, 28)
    assert torch.equal(twin.embed(images), backbone.embed(images))


def test_a_deviation_of_nothing_is_refused(compose):
    node = compose("experiment=medmnist_v2", "backbone.std=0").plain()["backbone"]
    with pytest.raises(ConfigError, match="std"):
        build(node, Backbone, image_size=28)


@pytest.mark.parametrize("size", [28, 64, 128, 29])
def test_a_margin_is_of_zeros_after_normalisation_to_the_bit(size):
    backbone = TimmBackbone("test_resnet", 3, size, pad_to=224)
    backbone.normalise_by(SimpleNamespace(mean=IMAGENET.mean, std=IMAGENET.std))
    images = torch.rand(2, 3, size, size)
    before, total = (224 - size) // 2, 224 - size
    theirs = Compose([IMAGENET, Pad((before, before, total - before, total - before))])
    assert torch.equal(backbone.normalised(images), theirs(images))


def test_a_network_sees_images_with_their_margin_under_the_same_weights():
    torch.manual_seed(0)
    plain = TimmBackbone("test_resnet", 3, 64).eval()
    padded = TimmBackbone("test_resnet", 3, 28, pad_to=64).eval()
    padded.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 28, 28)
    seen = nn.functional.pad(plain.normalised(images), (18, 18, 18, 18))
    expected = plain.model(seen)
    assert torch.equal(padded.embed(images), expected)
    assert not torch.allclose(plain.embed(images), expected)
    # maps of a canvas do not lie on the image
    assert padded.pyramid(images) == []
    assert (padded.channels, padded.strides, padded.features(images)[1]) == ((), (), [])
    assert padded.embedding_size == plain.embedding_size


def test_images_as_large_as_the_margin_stay_as_they_are():
    backbone = TimmBackbone("test_resnet", 3, 64, pad_to=64).eval()
    assert backbone.strides == TimmBackbone("test_resnet", 3, 64).strides
    assert len(backbone.pyramid(torch.rand(1, 3, 64, 64))) == len(backbone.strides)
    with pytest.raises(ConfigError, match=r"pad_to=32 is less than dataset.image_size=64"):
        TimmBackbone("test_resnet", 3, 64, pad_to=32)


def test_features_of_images_with_a_margin_are_others(phantom, tmp_path):
    data = Data.open(phantom, cache=tmp_path, seed=0)
    store = FeatureStore(tmp_path / "features", None)
    torch.manual_seed(0)
    plain = TimmBackbone("test_resnet", 1, 32).eval()
    found = []
    for pad_to in (None, 48, 64):
        backbone = TimmBackbone("test_resnet", 1, 32, pad_to=pad_to).eval()
        backbone.load_state_dict(plain.state_dict())
        extractor = Extractor(backbone, "embedding", torch.device("cpu"), "fp32", "fp32", 8, 0)
        opened = open_features(data, "val", extractor, transform=None, views=1, store=store)
        found.append(torch.tensor(opened.arrays["embedding"]))
    assert not torch.allclose(found[0], found[1])
    assert not torch.allclose(found[1], found[2])


def test_dense_tasks_are_refused_where_images_have_a_margin():
    backbone = TimmBackbone("test_resnet", 3, 28, pad_to=64)
    pyramid = {"channels": backbone.channels, "strides": backbone.strides, "image_size": 28}
    with pytest.raises(ConfigError, match="no feature maps"):
        UNet(outputs=2, upsampling="interpolation", widths=(32, 16, 8, 8, 4), **pyramid)

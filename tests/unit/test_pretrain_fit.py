"""The loop of pre-training: stages, provenance, and going on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.functional import mse_loss

from medtransfer.app import App
from medtransfer.backbones import weights
from medtransfer.config import PretrainConfig
from medtransfer.errors import ConfigError, WeightsError
from medtransfer.pretrain import fit as loop
from medtransfer.pretrain.base import DatasetSource, Learner, Material, Source
from medtransfer.pretrain.images import Images
from medtransfer.tracking.runs import Interrupted, open_run
from medtransfer.tracking.store import open_store

STEPS, BATCH = 5, 4
SMALL = (
    *("backbone=timm", "backbone.name=test_resnet", f"trusted_modules=[{__name__}]", "source=toy"),
    *(f"trainer.max_steps={STEPS}", f"trainer.batch_size={BATCH}", "trainer.checkpoint_every=2"),
    *("trainer.threads=1", "trainer.workers=0", "trainer.accelerator=cpu"),
)
DATA = ("dataset=phantom", "dataset.patients=18", "dataset.size=32", "dataset.image_size=32")


class Noise(Material):
    """Images of nothing, with the number of their step."""

    image_size = 32

    def draw(self, step, size, channels, generator):
        return {"image": torch.rand(size, channels, 32, 32, generator=generator), "step": step}

    def describe(self):
        return {"trained_on": "noise", "licence": "CC0"}


class TwoStages(Learner):
    """First the stem learns and then the rest, with batch statistics and much at random."""

    stages = ("stem", "rest")

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.predict = nn.Sequential(nn.Dropout(0.5), nn.Linear(backbone.embedding_size, 2))

    def begin(self, stage):
        stem, *rest = self.backbone.layer_groups()
        learning = set(stem if stage == 0 else sum(rest, ()))
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in learning)
        self.train()

    def forward(self, batch):
        Watch.enter(batch)
        images = batch["image"]
        wanted = torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1)
        found = self.predict(self.backbone.embed(images))
        return {"loss": mse_loss(found, wanted + 0.1 * torch.randn_like(wanted))}

    def measure(self, seen, unseen):
        assert not self.training
        Watch.enter_measure()
        return {"toy/seen": float(len(seen)), "toy/unseen": float(len(unseen))}


@dataclass(frozen=True, kw_only=True)
class Toy(Source):
    """Learns from a dataset where there is one, and from noise otherwise."""

    def material(self, images):
        return images or Noise()

    def learner(self, backbone, material):  # noqa: ARG002
        return TwoStages(backbone)


class OnData(DatasetSource):
    """Learns from a dataset alone."""

    def learner(self, backbone, material):  # noqa: ARG002
        return TwoStages(backbone)


class Watch(loop.Recorder):
    """Notes each step, and raises where it is told to."""

    steps: list[tuple]
    calls: int
    fail: tuple[str, int, BaseException] | None

    @classmethod
    def reset(cls, fail=None):
        cls.steps, cls.calls, cls.measured, cls.fail = [], 0, 0, fail

    @classmethod
    def _reached(cls, place, count):
        if cls.fail is not None and cls.fail[:2] == (place, count):
            raise cls.fail[2]

    @classmethod
    def enter(cls, batch):
        cls.calls += 1
        cls._reached("forward", cls.calls)
        cls.batch = batch.get("step")

    @classmethod
    def enter_measure(cls):
        cls.measured += 1
        cls._reached("measure", cls.measured)

    def on_train_batch_end(self, trainer, module, outputs, *_):
        (group,) = trainer.optimizers[0].param_groups
        now = (module.stage, Watch.batch, trainer.global_step, group["lr"], float(outputs["loss"]))
        self.steps.append(now)
        self._reached("callback", len(self.steps))  # before the Keeper comes to its turn
        super().on_train_batch_end(trainer, module, outputs, *_)


@pytest.fixture(autouse=True, scope="module")
def _watched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Recorder", Watch)
        Watch.reset()
        yield


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return a config folder with the source above."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "source").mkdir()
    (folder / "source" / "toy.yaml").write_text(f"# A toy.\n_target_: {__name__}.Toy\n")
    return folder


@pytest.fixture(scope="module")
def prepare(own):
    """Return a function that builds a small pre-training."""

    def run(*overrides):
        with App.open("pretrain", own) as app:
            return loop.prepare(app.compose([*SMALL, *overrides]).typed(PretrainConfig))

    return run


@pytest.fixture(scope="module")
def learn(prepare, home_template, tmp_path_factory):
    """Return a function that runs a small pre-training, or what is left of it."""
    home = shutil.copytree(home_template, tmp_path_factory.mktemp("store") / "home")
    store = open_store(f"sqlite:///{home}/mlflow.db", "mine", None, home)

    def run(path, *overrides, fail=None):
        Watch.reset(fail)
        with open_run(store, "pretrain", {}) as outer:
            known = loop.fit(
                prepare(*overrides), outer, path, begin=loop.progress(path), source="toy"
            )
        return known, list(Watch.steps)

    return run


@pytest.fixture(scope="module")
def straight(learn, tmp_path_factory):
    """Return the file and the steps of a pre-training that nothing interrupts."""
    path = tmp_path_factory.mktemp("straight") / "w.safetensors"
    return path, learn(path)[1]


SEEN = ("groups", "images")


def header(path):
    with safe_open(path, "pt") as file:
        return weights.metadata(file)


def test_every_stage_takes_its_steps_in_order_and_follows_the_schedule(straight):
    path, steps = straight
    assert [step[:3] for step in steps] == [
        (stage, batch, batch + 1) for stage in range(2) for batch in range(STEPS)
    ]
    first, second = ([lr for stage, _, _, lr, _ in steps if stage == s] for s in range(2))
    assert first == second
    assert first[0] > first[1] > first[-2] > first[-1] == pytest.approx(0, abs=1e-9)
    assert not list(path.parent.glob("*.ckpt"))
    assert not list(path.parent.glob("*.partial"))


PLACES = [
    *(("forward", n) for n in (1, 4, 6, 8)),
    *(("callback", n) for n in (2, 5, 6, 10)),
]


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0]}{place[1]}")
def test_an_interrupted_run_goes_on_to_the_same_bits(learn, straight, tmp_path, place):
    expected, steps = straight
    path = tmp_path / "w" / "broken.safetensors"
    with pytest.raises(RuntimeError, match="the coffee is cold"):
        learn(path, fail=(*place, RuntimeError("the coffee is cold")))
    before = list(Watch.steps)
    assert before == steps[: len(before)]
    assert not path.exists()

    stage, done = loop.progress(path)
    _, after = learn(path)
    assert after == steps[stage * STEPS + done :]
    finished = place[1] - 1  # steps that came to their end
    kept = [n for n in (0, 2, 4, 5, 7, 9, 10) if n <= finished][-1]
    assert stage * STEPS + done == kept
    assert path.read_bytes() == expected.read_bytes()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("workers", [0, 1])
def test_several_interruptions_of_any_kind_end_at_the_same_bits(learn, straight, tmp_path, workers):
    expected, steps = straight
    path = tmp_path / "w" / "broken.safetensors"
    taken = []
    for call, error in [(4, KeyboardInterrupt()), (2, Interrupted(15)), (5, MemoryError())]:
        with pytest.raises((type(error), SystemExit)):
            learn(path, f"trainer.workers={workers}", fail=("forward", call, error))
        stage, done = loop.progress(path)
        taken.append(stage * STEPS + done)
        path.with_suffix(".partial").write_bytes(b"half")  # what a killed writer leaves
    assert taken == [2, 2, 5]
    learn(path, "trainer.checkpoint_every=1")
    assert list(Watch.steps) == steps[5:]
    assert path.read_bytes() == expected.read_bytes()


def test_an_interruption_while_a_stage_is_measured_costs_no_step(learn, tmp_path):
    path, broken = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    _, steps = learn(path, *DATA)
    assert len(steps) == 2 * STEPS
    for measured in (1, 1):  # after the first stage; and when it is measured again
        with pytest.raises(OSError, match="full"):
            learn(broken, *DATA, fail=("measure", measured, OSError("full")))
        assert loop.progress(broken) == (0, STEPS)
    assert Watch.steps == []
    learn(broken, *DATA)
    assert Watch.measured == 2
    assert broken.read_bytes() == path.read_bytes()


def test_only_what_a_stage_teaches_moves_in_it(learn, prepare, tmp_path):
    start = {k: v.clone() for k, v in prepare().learner.state_dict().items()}
    path = tmp_path / "w.safetensors"
    with pytest.raises(RuntimeError):
        learn(path, fail=("forward", STEPS + 1, RuntimeError()))
    kept = torch.load(path.with_suffix(".ckpt"), weights_only=True)["state_dict"]
    middle = {k.removeprefix("learner."): v for k, v in kept.items()}
    learn(path)
    stem, *rest = prepare().learner.backbone.layer_groups()
    end, _ = weights.read_tensors(path)
    assert not [n for n in stem if torch.equal(start[f"backbone.{n}"], middle[f"backbone.{n}"])]
    assert all(torch.equal(middle[f"backbone.{n}"], end[n]) for n in stem)
    others = sum(rest, ())
    assert all(torch.equal(start[f"backbone.{n}"], middle[f"backbone.{n}"]) for n in others)
    assert not [n for n in others if torch.equal(middle[f"backbone.{n}"], end[n])]


DAMAGES = {
    "empty": lambda _: b"",
    "cut": lambda content: content[: len(content) // 2],
    "text": lambda _: b"who put this here?",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_to_be_deleted(learn, tmp_path, damage):
    path = tmp_path / "w.safetensors"
    with pytest.raises(RuntimeError):
        learn(path, fail=("forward", 4, RuntimeError()))
    kept = path.with_suffix(".ckpt")
    kept.write_bytes(damage(kept.read_bytes()))
    with pytest.raises(WeightsError, match=r"w\.ckpt' .* is damaged") as error:
        loop.progress(path)
    assert "delete it" in error.value.remedy
    kept.unlink()
    assert loop.progress(path) == (0, 0)


def test_a_checkpoint_of_something_else_is_to_be_deleted(tmp_path):
    for content in ({"state_dict": {}}, [1, 2], {"stage": "x", "global_step": 1}):
        torch.save(content, tmp_path / "w.ckpt")
        with pytest.raises(WeightsError, match="is damaged"):
            loop.progress(tmp_path / "w.safetensors")


def test_the_header_tells_how_the_weights_came_about(learn, prepare, tmp_path):
    path = tmp_path / "w.safetensors"
    known, _ = learn(path, *DATA)
    spec = prepare(*DATA).material.data.spec
    found = header(path)
    assert found.pop("recipe") == prepare(*DATA).recipe
    seen = found.pop("seen")
    assert {key: len(values) for key, values in seen.items()} == {"groups": 6, "images": 6}
    assert found == {
        "backbone": "test_resnet",
        "channels": 3,
        "source": "toy",
        "trained_on": "6 training images of Phantom 0",
        "licence": "that of the images",
        "data_hash": spec.data_hash,
        "split_hash": spec.split_hash,
        "images": 2 * STEPS * BATCH,
        "started_from": "random",
    }
    assert known["file_sha256"] == weights.hash_file(path)
    assert "patient" not in json.dumps(seen)


def test_what_is_gone_on_from_is_loaded_and_its_seen_images_stay_seen(learn, prepare, tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    learn(first, *DATA)
    start = ("weights=file", f"weights.path={first}")
    other = (*DATA, "dataset.data_seed=1", *start)
    prepared = prepare(*other)
    loaded, _ = weights.read_tensors(first)
    state = prepared.learner.backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in loaded.items())

    learn(second, *other)
    seen = [set(header(path)["seen"][kind]) for path in (first, second) for kind in SEEN]
    assert seen[0] < seen[2]
    assert seen[1] < seen[3]
    assert [len(part) for part in seen] == [6, 6, 12, 12]
    assert header(second)["started_from"] == "toy"
    # what saw images goes on with noise, and has seen them all the same
    learn(second, *start)
    assert header(second)["seen"] == header(first)["seen"]


CHANGES = {
    "seed": ("seed=1",),
    "budget": ("trainer.max_steps=6",),
    "rate": ("optimizer.lr=0.1",),
    "backbone": ("backbone.name=test_convnext",),
    "data": (*DATA, "dataset.data_seed=1"),
    "split": (*DATA, "dataset.split.seed=1"),
    "fraction": (*DATA, "dataset.fraction=0.5"),
    "size": (*DATA, "dataset.image_size=64"),
    "dataset": DATA,
}


def test_a_recipe_is_what_decides_the_weights(prepare, tmp_path):
    recipes = [prepare(*change).recipe for change in ((), *CHANGES.values())]
    assert len(set(recipes)) == len(recipes)
    machine = ("trainer.workers=1", "trainer.checkpoint_every=77", f"paths.output={tmp_path}/o")
    assert prepare(*machine).recipe == recipes[0]
    for name in "ab":
        path = tmp_path / f"{name}.safetensors"
        backbone = prepare().learner.backbone
        nn.init.constant_(next(backbone.parameters()), ord(name))
        weights.save(backbone, path)
        recipes.append(prepare("weights=file", f"weights.path={path}").recipe)
    assert len(set(recipes)) == len(recipes)


def test_a_source_that_learns_from_a_dataset_needs_one(prepare):
    target = f"source._target_={__name__}.OnData"
    with pytest.raises(
        ConfigError, match="OnData learns from a dataset, and none is chosen"
    ) as error:
        prepare(target)
    assert "dataset=NAME" in error.value.remedy
    assert isinstance(prepare(target, *DATA).material, Images)


def test_a_source_of_its_own_images_takes_no_dataset(compose):
    config = compose("source=synthetic", *DATA, name="pretrain").typed(PretrainConfig)
    with pytest.raises(ConfigError, match="takes no dataset"):
        loop.prepare(config)


def test_a_dataset_with_other_channels_than_the_backbone_is_refused(prepare):
    with pytest.raises(ConfigError, match=r"backbone\.channels=3 and dataset\.channels=1 differ"):
        prepare(*DATA, "dataset.channels=1")
    prepared = prepare(*DATA, "dataset.channels=1", "backbone.channels=1")
    assert prepared.learner.backbone.channels_in == 1


@pytest.mark.parametrize("size", [1, 4, 6, 7, 13])
def test_batches_of_images_are_permutations_of_the_training_subset(prepare, size):
    prepared = prepare(*DATA)
    material = prepared.material
    train = material.data.train
    everything = torch.tensor(material.data.decoded.images) / 255

    drawn = []
    for step in range(-(-3 * len(train) // size)):
        batch = material.draw(step, size, 3, torch.Generator())
        again = material.draw(step, size, 3, torch.Generator().manual_seed(1))
        assert torch.equal(batch["image"], again["image"])
        for image, target in zip(batch["image"], batch["target"], strict=True):
            (index,) = (everything == image).flatten(1).all(1).nonzero().flatten().tolist()
            assert material.data.targets[index] == target
            drawn.append(index)
    epochs = [drawn[k : k + len(train)] for k in range(0, 3 * len(train), len(train))]
    assert all(sorted(epoch) == sorted(train) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("limit", [1, 2, 4, 100])
def test_some_images_are_of_their_split_alone(prepare, limit):
    data = (material := prepare(*DATA).material).data
    for split, indices in (("train", data.train), ("val", data.division.val)):
        some = material.some(split, limit)
        assert len(some) == min(limit, len(indices))
        members = {data.decoded.images[i].tobytes() for i in indices}
        assert {(image * 255).round().byte().numpy().tobytes() for image in some} <= members


@pytest.mark.parametrize(
    ("error", "status"),
    [(Interrupted(15), "KILLED"), (MemoryError("no coffee"), "FAILED")],
    ids=["killed", "failed"],
)
def test_the_store_tells_of_both_runs_and_a_third_one_has_nothing_to_do(
    cli, own, list_runs, error, status
):
    folder = Path(os.environ["MEDTRANSFER_HOME"], "weights")
    command = ("pretrain", "--config-dir", own, *SMALL)
    Watch.reset(("forward", STEPS + 4, error))
    if status == "FAILED":
        with pytest.raises(MemoryError, match="no coffee"):
            cli(*command)
    else:
        assert cli(*command).code == 143

    def told():
        """Return parent, name and status of each run, in the order of their beginning."""
        runs = sorted(list_runs(), key=lambda run: (run.info.start_time, run.info.run_name))
        names = {run.info.run_id: run.info.run_name for run in runs}
        parents = [names.get(run.data.tags.get("mlflow.parentRunId")) for run in runs]
        return sorted(
            (str(parent), run.info.run_name, run.info.status)
            for parent, run in zip(parents, runs, strict=True)
        )

    name = "pretrain toy/test_resnet seed=0"
    broken = [
        ("None", name, status),
        (name, "rest", status),
        (name, "stem", "FINISHED"),
    ]
    assert told() == sorted(broken)
    assert [p.suffix for p in folder.iterdir()] == [".ckpt"]

    Watch.reset()
    assert cli(*command).code == 0
    assert len(Watch.steps) == 3  # 2 of the second stage were kept
    finished = [("None", name, "FINISHED"), (name, "rest", "FINISHED")]
    assert told() == sorted([*broken, *finished])
    (path,) = folder.iterdir()
    assert path.name.startswith("toy-test_resnet-")
    assert header(path)["source"] == "toy"

    Watch.reset()
    result = cli(*command)
    assert (result.code, Watch.steps) == (0, [])
    assert "made before" in result.out
    assert len(list_runs()) == 5


def test_a_damaged_checkpoint_is_told_before_a_run_is_opened(cli, own, home, list_runs):
    command = ("pretrain", "--config-dir", own, *SMALL)
    Watch.reset(("forward", 4, Interrupted(2)))
    assert cli(*command).code == 130
    runs = len(list_runs())
    (kept,) = (home / "weights").glob("*.ckpt")
    kept.write_bytes(kept.read_bytes()[:1000])
    result = cli(*command)
    assert result.code == 2
    assert str(kept) in result.err
    assert "delete it" in result.err
    assert len(list_runs()) == runs
    kept.unlink()
    Watch.reset()
    assert cli(*command).code == 0
    assert len(Watch.steps) == 2 * STEPS


def test_weights_of_the_own_dataset_are_found_and_may_not_be_tested_on_what_they_saw(cli, own):
    own_config = ("--config-dir", own)
    assert cli("pretrain", *own_config, *SMALL, *DATA).code == 0
    train = (
        *("train", "backbone=timm", "backbone.name=test_resnet", *DATA, "weights=sae"),
        *("weights.source=toy", "trainer=quick", "trainer.max_epochs=1", "trainer.threads=1"),
    )
    assert cli(*train).code == 0
    leaked = cli(*train, "dataset.split.seed=1")
    assert leaked.code == 3
    assert "the weights of 'toy' were trained on" in leaked.err
    assert "dataset.split" in leaked.err

    other = ("dataset.data_seed=1", "dataset.split.seed=1")
    unknown = cli(*train, *other)
    assert unknown.code == 2
    assert "of source 'toy' for backbone 'test_resnet' made on this dataset" in unknown.err
    # other patients, though their names are the same
    assert cli(*train, *other, "weights.made_on=any").code == 0

"""What every choice of every config group keeps, the ones of the future included."""

import inspect

import pytest
import yaml

from medtransfer.app import App, config_dir
from medtransfer.backbones.base import Backbone
from medtransfer.backbones.weights import Weights
from medtransfer.commands.catalog import choices
from medtransfer.components import check_arguments, locate
from medtransfer.config import PretrainConfig, TrainConfig
from medtransfer.data.base import Dataset
from medtransfer.data.transforms import Transform
from medtransfer.heads.base import Head
from medtransfer.pretrain.base import Source
from medtransfer.strategies.base import Strategy
from medtransfer.tasks.base import Task
from medtransfer.tasks.losses import Loss
from medtransfer.tasks.optimizing import LIBRARIES, optimizer_factory
from medtransfer.tasks.schedulers import Scheduler

# The base class of each group whose choices name one, and the arguments that the program gives.
GROUPS = {
    "backbone": (Backbone, ["image_size"]),
    "dataset": (Dataset, []),
    "head": (
        Head,
        [
            *("in_features", "outputs", "views"),
            *("channels", "strides", "image_size", "boxes_seen", "pyramid"),
        ],
    ),
    "loss": (Loss, ["counts"]),
    "scheduler": (Scheduler, []),
    "source": (Source, []),
    "strategy": (Strategy, []),
    "task": (Task, ["parts", *inspect.signature(Task).parameters]),
    "transform": (Transform, []),
    "weights": (Weights, ["near"]),
}
NEEDS = {
    "backbone=timm": ["backbone.name=test_resnet"],
    "dataset=image_folder": ["dataset.root=images"],
    "dataset=mask_folder": ["dataset.root=images", "dataset.values={lesion: 255}"],
    "dataset=voc": ["dataset.root=images", "dataset.classes=[cell]"],
    "dataset=coco": ["dataset.root=images"],
    "dataset=csv_manifest": ["dataset.root=images", "dataset.file=exams.csv"],
    "dataset=medmnist": ["dataset.name=pneumoniamnist"],
}
MADE = {"synthetic", "sae", "rbm", "simclr", "supervised"}  # by a source of the same name
# What scripts and checks outside of the project rely on, as far as it exists today.
PINNED = {
    "backbone": ["channels"],
    "dataset": [
        *("image_size", "fraction", "shots", "on_error"),
        *("split.kind", "split.seed", "split.file", "split.index", "split.column"),
    ],
    "strategy": ["batchnorm", "search_space"],
    "study": ["name"],
    "tracking": ["uri", "experiment", "artifacts"],
    "trainer": [
        *("max_epochs", "max_steps", "batch_size", "precision", "threads", "workers", "devices"),
        *("selection.metric", "selection.mode"),
    ],
    "weights": ["path", "tag", "sha256"],
}
CHOICES = [
    (path.parent.name, path.stem)
    for path in sorted(config_dir().glob("*/*.yaml"))
    if path.parent.name != "common"  # what the choices of other groups share
]


@pytest.fixture(scope="module")
def composed():
    """Return a function that composes each choice once."""
    known = {}

    def compose(group, choice):
        if (group, choice) not in known:
            name = "pretrain" if group == "source" else "train"
            override = f"{group}={choice}"
            with App.open(name, None) as app:
                known[group, choice] = app.compose([override, *NEEDS.get(override, [])])
        return known[group, choice]

    return compose


def test_every_group_has_choices():
    assert {group for group, _ in CHOICES} >= {*GROUPS, *PINNED, "optimizer", "experiment"}


def test_every_choice_says_in_one_line_what_it_is():
    with App.open("train", None) as app:
        described = choices(app)
    for group, choice in CHOICES:
        text = described[group][choice]
        assert len(text) > 10, f"{group}={choice} starts with no comment that describes it"
        assert text[-1] in ".:%" or text[-1].isalnum(), f"{group}={choice}: {text}"
        assert not text.startswith("@package"), f"{group}={choice}"


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_to_a_configuration_that_fits_the_schema(composed, group, choice):
    config = composed(group, choice).typed(PretrainConfig if group == "source" else TrainConfig)
    assert config.seed >= 0
    assert composed(group, choice).choices[group] == choice


@pytest.mark.parametrize(("group", "choice"), [pair for pair in CHOICES if pair[0] in GROUPS])
def test_every_target_takes_the_keys_of_its_choice(composed, group, choice):
    base, injected = GROUPS[group]
    node = composed(group, choice).plain()[group]
    cls = locate(node["_target_"], base)
    assert set(check_arguments(cls, base, node, injected)) == set(node) - {"_target_"}


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "optimizer"])
def test_every_optimizer_takes_the_keys_of_its_choice(composed, choice):
    import torch

    node = composed("optimizer", choice).plain()["optimizer"]
    made = optimizer_factory(node, ())(params=[torch.zeros(1, requires_grad=True)])
    assert isinstance(made, torch.optim.Optimizer)
    assert made.defaults["lr"] == node["lr"]
    assert node["_target_"].rpartition(".")[0] in LIBRARIES


@pytest.mark.parametrize(("group", "choice"), [pair for pair in CHOICES if pair[0] in PINNED])
def test_every_choice_has_the_keys_that_others_rely_on(composed, group, choice):
    node = composed(group, choice).plain()[group]
    for key in PINNED[group]:
        inner = node
        for part in key.split("."):
            assert part in inner, f"{group}={choice} lacks {key}"
            inner = inner[part]


@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "source"])
def test_every_source_composes_with_a_dataset_too(choice):
    needs = NEEDS.get(f"source={choice}", [])
    with App.open("pretrain", None) as app:
        composed = app.compose([f"source={choice}", "dataset=phantom", *needs])
    config = composed.typed(PretrainConfig)
    assert config.dataset is not None
    assert composed.choices["dataset"] == "phantom"


@pytest.mark.parametrize("choice", sorted(MADE))
def test_weights_that_are_made_name_what_makes_them(composed, choice):
    node = composed("weights", choice).plain()["weights"]
    assert node["source"] == choice
    # what learns from images without labels learns from the dataset that it is to serve
    own = {"sae": "own", "rbm": "own", "simclr": "own", "supervised": "other"}
    assert node["made_on"] == own.get(choice, "any")
    with App.open("pretrain", None) as app:
        assert choice in choices(app)["source"]


@pytest.mark.parametrize("name", ["train", "pretrain"])
def test_keys_of_the_whole_are_there(name):
    with App.open(name, None) as app:
        plain = app.compose([]).plain()
    assert plain["seed"] == 0
    assert plain["trusted_modules"] == []
    assert set(plain["paths"]) == {"data", "cache", "output"}


def test_a_study_is_chosen_without_a_plus():
    text = yaml.safe_load((config_dir() / "train.yaml").read_text(encoding="utf-8"))
    assert {"study": "none"} in text["defaults"]

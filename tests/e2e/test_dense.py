"""Segmentation and detection from the command line to the answer, with all of their parts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from omegaconf import OmegaConf
from torch import nn

from medtransfer.analysis.cases import matrix, values_of
from medtransfer.app import config_dir
from medtransfer.components import locate
from medtransfer.config import TrainConfig
from medtransfer.feed import Feed
from medtransfer.heads.base import Head
from medtransfer.heads.segmentation import SegmentationHead
from medtransfer.machine import resolve
from medtransfer.run import prepare

TASKS = {
    "segmentation": ("task=segmentation", "head.widths=[16,16,8,8,8]"),
    "detection": (
        *("task=detection", "head=retinanet", "head.levels.width=32", "head.levels.extra=0"),
        "head.min_score=0.0",  # an untrained head is sure of nothing
    ),
}
HEADLINES = {"segmentation": "dice", "detection": "map"}
ONE_STEP = ("trainer.max_steps=1", "trainer.batch_size=4", "trainer.precision=fp32")
FROZEN, TUNED = "strategy=feature_extraction", "strategy=fine_tuning"
BOTH = f"{FROZEN},fine_tuning"

every_task = pytest.mark.parametrize("task", sorted(TASKS))


def artifact(run, name: str) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://")) / name


def certificate(run) -> dict:
    return json.loads(artifact(run, "certificate.json").read_text())


def tables(run) -> dict[str, pd.DataFrame]:
    """Return the tables of predictions of a run by name."""
    files = artifact(run, "predictions").glob("*.parquet")
    return {path.stem: pd.read_parquet(path) for path in files}


def same(one: dict[str, pd.DataFrame], other: dict[str, pd.DataFrame], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, frame in one.items():
        pd.testing.assert_frame_equal(frame, other[name], atol=tolerance, rtol=tolerance)


@pytest.fixture
def trials(cli, list_runs):
    """Return a function that runs a command and returns the trials that it added, first first."""

    def run(*arguments):
        before = {run.info.run_id for run in list_runs()}
        done = cli("train", *arguments)
        assert done.code == 0, done.err
        new = [run for run in list_runs() if run.info.run_id not in before]
        final = [run for run in new if run.data.tags["medtransfer.phase"] == "final"]
        assert {run.info.status for run in final} == {"FINISHED"}
        return sorted(final, key=lambda run: run.info.start_time)

    return run


@pytest.fixture
def prepared(compose, tmp_path, tiny):
    """Return a function that prepares a trial without running it."""

    def make(*overrides):
        places = (f"paths.output={tmp_path}", "trainer.accelerator=cpu")
        return prepare(compose(*tiny, *places, *overrides).typed(TrainConfig))

    return make


SOURCES = {
    "sae": ("dataset=phantom",),
    "simclr": ("dataset=phantom",),
    "supervised": ("dataset=phantom", "dataset.data_seed=1"),
    "synthetic": (),
}


@pytest.fixture
def made(cli):
    """Return a function that writes the weights of a source in one step."""

    def make(source, *arguments):
        done = cli("pretrain", f"source={source}", *arguments, *ONE_STEP[:2])
        assert done.code == 0, done.err

    return make


def test_weights_of_every_source_serve_both_tasks(made, trials, tiny):
    for source, on in SOURCES.items():
        made(source, *tiny[:3], *on, *(tiny[3:] if on else ()))
    for task, chosen in TASKS.items():
        runs = trials("-m", *tiny, *chosen, *ONE_STEP, f"weights={','.join(SOURCES)}", BOTH)
        told = {(r.data.tags["medtransfer.weights"], r.data.tags["medtransfer.arm"]) for r in runs}
        assert len(told) == len(runs) == 2 * len(SOURCES)
        assert {weights for weights, _ in told} == SOURCES.keys()
        for run in runs:
            known = json.loads(artifact(run, "weights.json").read_text())
            assert known["source"] == run.data.tags["medtransfer.weights"]
            for split in ("best", "test"):
                assert np.isfinite(run.data.metrics[f"{split}/{HEADLINES[task]}"])


def test_a_boltzmann_machine_serves_both_tasks(made, trials, tiny):
    network = ("backbone=sigmoid_encoder", "backbone.widths=[8,8,8]", tiny[2])
    made("rbm", *network, "dataset=phantom", *tiny[3:])
    for task, chosen in TASKS.items():
        runs = trials("-m", *network, *tiny[3:], *chosen, *ONE_STEP, "weights=rbm", BOTH)
        assert len(runs) == 2
        for run in runs:
            assert json.loads(artifact(run, "weights.json").read_text())["source"] == "rbm"
            assert np.isfinite(run.data.metrics[f"test/{HEADLINES[task]}"])


@every_task
def test_cached_and_online_training_end_with_the_same_predictions(task, trials, tiny):
    plain = (*tiny, *TASKS[task], "trainer=quick", "trainer.precision=fp32", "trainer.max_epochs=2")
    cached, online = (
        trials(*plain, "transform=none", f"features.mode={mode}")[0]
        for mode in ("cached", "online")
    )
    assert certificate(cached)["features"]["mode"] == "cached"
    assert certificate(online)["features"] == {"mode": "online", "why": "as configured"}
    same(tables(cached), tables(online), 1e-5)
    expected = {"val", "test"}
    if task == "detection":
        expected |= {"detections", "val_detections"}
        assert len(tables(cached)["detections"])
    assert tables(cached).keys() == expected


@every_task
def test_what_is_learned_from_cached_views_is_what_they_show(task, prepared, tiny):
    keys = ("transform=strong", "features.views=2", *ONE_STEP)
    trial = prepared(*TASKS[task], *keys)
    trial.model.strategy_.setup(trial.model, [torch.rand(4, 3, 32, 32)], statistics=False)
    feed = Feed(trial, resolve(trial.config.trainer))
    assert feed.describe() == {"mode": "cached", "dtype": "fp32", "views": 2}
    data, seen = trial.data, []
    views = data.views(data.train, trial.transform, count=2, batch_size=1, workers=0)
    shown = {(int(b["index"]), k % 2): b for k, b in enumerate(views)}
    loader = feed.train()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            with torch.no_grad():
                for row, index in enumerate(batch["index"].tolist()):
                    view = shown[index, epoch % 2]
                    levels = trial.model.backbone.pyramid(view["image"])
                    for ours, theirs in zip(batch["levels"], levels, strict=True):
                        torch.testing.assert_close(ours[row], theirs[0], rtol=1e-4, atol=1e-3)
                    for key in ("mask", "boxes", "labels"):
                        assert (key in batch) == (key in view)
                        if key in view:
                            assert torch.equal(batch[key][row], view[key][0])
                            seen.append((index, epoch, view[key][0]))
    assert len({(index, epoch) for index, epoch, _ in seen}) > len(data.train)
    masks = {int(value.sum()) for *_, value in seen}
    assert len(masks) > 3  # they are not all empty


@every_task
def test_strategies_that_end_in_another_form_end_well(task, trials, tiny):
    ending = "strategy=lora,ssf,wise_ft"
    runs = trials("-m", *tiny, *TASKS[task], *ONE_STEP, ending, "trainer.max_steps=4")
    assert len(runs) == 3
    for run in runs:
        assert np.isfinite(run.data.metrics[f"test/{HEADLINES[task]}"])
    told = [certificate(run) for run in runs]
    assert all(each["frozen"]["equal"] for each in told)
    (mixing,) = [each["chosen"]["mixing"] for each in told if "mixing" in each["chosen"]]
    assert 0 <= mixing <= 1


def test_patches_as_large_as_the_image_are_the_image(trials, tiny):
    chosen = (*tiny, *TASKS["segmentation"], *ONE_STEP)
    plain, patched = (trials(*chosen, f"task.patch={patch}")[0] for patch in ("null", "64"))
    same(tables(plain), tables(patched), 0.0)
    assert certificate(patched)["features"]["mode"] == "cached"


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning", "delta"])
def test_a_trial_on_patches_says_why_it_is_online(strategy, trials, tiny):
    chosen = (*tiny[:-1], "dataset.image_size=64", *TASKS["segmentation"], *ONE_STEP)
    (run,) = trials(*chosen, "task.patch=32", f"strategy={strategy}")
    why = "training takes patches" if strategy == "feature_extraction" else "the backbone learns"
    assert certificate(run)["features"] == {"mode": "online", "why": why}
    assert np.isfinite(run.data.metrics["test/dice"])


class Pointwise(nn.Module):
    """Looks at one pixel at a time: where windows lie cannot matter to it."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, outputs, 1)

    def forward(self, levels, size):  # noqa: ARG002
        return self.mix(levels[0])


@pytest.mark.parametrize("size", [48, 64])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.7])
def test_where_windows_lie_does_not_matter_to_what_looks_at_one_pixel(size, overlap, prepared):
    trial = prepared(
        *(*TASKS["segmentation"], f"dataset.image_size={size}", "task.patch=32"),
        f"task.overlap={overlap}",
    )
    model = trial.model.eval()
    model.head = Pointwise(3)
    model.backbone.pyramid = lambda images: [images]
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(model(images), model.head.mix(images), rtol=1e-4, atol=1e-5)


@every_task
def test_a_sweep_ends_with_intervals_over_cases(task, cli, list_runs, home, tiny):
    chosen = (*tiny, *TASKS[task], "trainer=quick", "trainer.max_epochs=2", "seed=0,1")
    done = cli("train", "-m", *chosen, BOTH)
    assert done.code == 0, done.err
    headline = HEADLINES[task]
    assert {"dice": "Dice by arm", "map": "mAP by arm"}[headline] in done.out
    (file,) = (home / "reports").glob("*/results.json")
    results = json.loads(file.read_text())
    assert results["metric"] == headline
    assert not [note for note in results["notes"] if "predictions give" in note]
    assert len(results["arms"]) == 2
    for arm in results["arms"]:
        wanted = {"medtransfer.arm": arm["arm"], "medtransfer.phase": "final"}.items()
        runs = [run for run in list_runs() if wanted <= run.data.tags.items()]
        assert arm["n_seeds"] == len(runs) == 2
        logged = [run.data.metrics[f"test/{headline}"] for run in runs]
        assert arm["mean"] == pytest.approx(np.mean(logged))
        frame = tables(runs[0])["test"]
        truths = frame.filter(like="truths_")
        if task == "detection":
            assert 0 < (truths.sum(axis=1) == 0).sum() < len(truths)  # some show nothing
            assert arm["n_cases"] == len(frame)
        assert arm["n_cases"] > 0
        assert arm["over"] == "cases and seeds"
        assert 0 <= arm["lo"] <= arm["mean"] <= arm["hi"]
    (contrast,) = results["contrasts"]
    assert contrast["n_cases"] > 0
    means = {arm["arm"]: arm["mean"] for arm in results["arms"]}
    assert contrast["diff"] == pytest.approx(means[contrast["a"]] - means[contrast["b"]])


def dice_table(found: dict[str, list[float]]) -> pd.DataFrame:
    """Return what a trial writes of the Dice of its classes in each image, in brief."""
    values = pd.DataFrame({f"dice_{name}": column for name, column in found.items()})
    ids = [f"s{i}" for i in range(len(values))]
    values.insert(0, "dice", values.mean(axis=1))
    return values.assign(sample_id=ids, group_id=ids).set_index("sample_id", drop=False)


def test_a_false_alarm_that_one_trial_alone_raises_counts_against_it():
    nan = np.nan
    quiet = {"a": [0.8, 0.6, nan, nan, nan, nan], "b": [nan, nan, 0.5, 0.7, nan, nan]}
    alarmed = {"a": [0.8, 0.6, nan, 0.0, 0.0, nan], "b": [0.0, nan, 0.5, 0.7, 0.0, nan]}
    found = {"quiet": dice_table(quiet), "alarmed": dice_table(alarmed)}
    logged = {"quiet": (0.7 + 0.6) / 2, "alarmed": (1.4 / 4 + 1.2 / 4) / 2}
    runs = [
        SimpleNamespace(run_id=name, split_hash="one", metrics={"dice": value})
        for name, value in logged.items()
    ]
    values = matrix(runs, found, "dice")
    assert values.values.mean(axis=0) == pytest.approx(list(logged.values()))
    assert values.n_cases == 5  # the last one shows nothing, and nothing was found in it


def test_rare_and_frequent_classes_of_one_quality_leave_no_doubt_about_it():
    rare = dice_table({"a": [0.7, *[np.nan] * 9], "b": [np.nan, *[0.7] * 9]})
    assert values_of(rare, "dice") == pytest.approx(np.full(10, 0.7))


@every_task
def test_channels_precision_and_a_last_batch_of_one_image(task, trials, tiny):
    sizes = ("trainer.batch_size=5", "trainer.max_steps=2")  # six images are validated on
    swept = ("dataset.channels=1,3", "trainer.precision=fp32,bf16", BOTH)
    runs = trials("-m", *tiny, *TASKS[task], *sizes, *swept)
    assert len(runs) == 8
    for run in runs:
        assert len(tables(run)["val"]) == 6
        assert np.isfinite(run.data.metrics[f"test/{HEADLINES[task]}"])


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("detection", "ap50"),
        ("detection", "sensitivity_8"),
        ("segmentation", "hd95"),
        ("segmentation", "jaccard_malignant"),
    ],
)
def test_any_metric_can_select_the_epoch(task, metric, trials, home, tiny):
    best = min if metric == "hd95" else max
    chosen = (*tiny, *TASKS[task], "trainer=quick", "trainer.max_epochs=3", "optimizer.lr=0.01")
    (run,) = trials(*chosen, f"trainer.selection.metric={metric}")
    history = MlflowClient(f"sqlite:///{home}/mlflow.db").get_metric_history
    values = [entry.value for entry in history(run.info.run_id, f"val/{metric}")]
    assert len(values) == 3
    assert run.data.metrics[f"best/{metric}"] == pytest.approx(best(values), abs=1e-6)
    assert run.data.metrics["best/epoch"] == values.index(best(values))


def test_every_suppression_and_every_detector_runs(trials, tiny):
    few = ("head.levels.width=32", "head.levels.extra=0", "head.min_score=0.0")
    kinds = "head.nms.kind=hard,agnostic,soft,weighted_fusion"
    runs = trials("-m", *tiny, "task=detection", "head=retinanet,fcos", *few, kinds, *ONE_STEP)
    assert len(runs) == 8
    assert all(len(tables(run)["detections"]) for run in runs)
    small = ("head.regions.hidden=32", "head.proposals.kept=20")
    (run,) = trials(*tiny, "task=detection", *few, *small, *ONE_STEP)
    assert len(tables(run)["detections"])


def test_every_decoder_runs(trials, tiny):
    files = (config_dir() / "head").glob("*.yaml")
    made_for = {path.stem: locate(OmegaConf.load(path)["_target_"], Head) for path in files}
    heads = {name for name, kind in made_for.items() if issubclass(kind, SegmentationHead)}
    large = {"pan", "dpt"}  # one wants many pixels, the other a transformer
    assert large < heads
    swept = f"head={','.join(sorted(heads - large))}"
    runs = trials("-m", *tiny, "task=segmentation", *ONE_STEP, swept)
    runs += trials(*tiny[:-1], "dataset.image_size=128", "task=segmentation", *ONE_STEP, "head=pan")
    network = ("backbone=timm", "backbone.name=test_vit", *tiny[2:])
    runs += trials(*network, "task=segmentation", *ONE_STEP, "head=dpt")
    learned = "head=unet,unetplusplus,manet"
    runs += trials(
        "-m", *tiny, "task=segmentation", *ONE_STEP, learned, "head.upsampling=transposed"
    )
    assert len(runs) == len(heads) + 3
    assert all(np.isfinite(run.data.metrics["test/dice"]) for run in runs)

"""A trained model in use: what it says of files, in other programs' formats, and why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from PIL import Image as PILImage

from hospital import save_dicom
from medtransfer.components import build, locate
from medtransfer.config import TrainConfig
from medtransfer.data.base import Dataset
from medtransfer.data.loading import Data
from medtransfer.deploy import exporting
from medtransfer.deploy.trained import open_trained
from medtransfer.tasks.base import Task
from medtransfer.tracking.store import open_client

SMALL = (
    *("backbone=timm", "backbone.name=test_resnet", "trainer=quick", "trainer.threads=1"),
    *("trainer.max_epochs=2", "trainer.batch_size=8", "trainer.precision=fp32"),
    *("dataset=phantom", "dataset.patients=36", "dataset.size=64", "dataset.image_size=64"),
)
DETECTION = ("task=detection", "head.levels.width=32", "head.levels.extra=0", "head.min_score=0.0")
TASKS = {
    "classification": ("task=classification",),
    "multilabel": ("task=multilabel",),
    "exam_classification": (
        *("task=exam_classification", "dataset.images=3", "head.pooling=gated_attention"),
    ),
    "segmentation": ("task=segmentation", "head.widths=[16,16,8,8,8]"),
    "detection": (*DETECTION, "head=retinanet"),
}
OTHERS = {
    "late_fusion": ("task=exam_classification", "dataset.images=3", "head.pooling=late_fusion"),
    "max": ("task=exam_classification", "dataset.images=2", "head.pooling=max"),
    "patches": ("task=segmentation", "head.widths=[16,16,8,8,8]", "task.patch=32"),
    "fcos": (*DETECTION, "head=fcos"),
    "faster_rcnn": (*DETECTION, "head=faster_rcnn"),
    "vit": ("task=classification", "backbone.name=test_vit"),
    "convnext": ("task=classification", "backbone.name=test_convnext"),
    "lora": ("task=classification", "backbone.name=test_vit", "strategy=lora"),
}
every_task = pytest.mark.parametrize("task", sorted(TASKS))


@pytest.fixture
def trial(cli, list_runs, home):
    """Return a function that runs one trial and returns its run."""

    def run(*arguments):
        before = {run.info.run_id for run in list_runs()}
        done = cli("train", *SMALL, *arguments)
        assert done.code == 0, done.err
        (new,) = [run for run in list_runs() if run.info.run_id not in before]
        return new

    return run


@pytest.fixture
def opened(trial, home):
    """Return a function that runs one trial and opens its model."""

    def run(*arguments):
        client = open_client(f"sqlite:///{home}/mlflow.db")
        return open_trained(client, trial(*arguments).info.run_id, home)

    return run


@pytest.fixture
def images(compose, tmp_path):
    """Return a function that writes the test images of a trial as files, and their folder."""

    def write(*arguments) -> Path:
        config = compose(*SMALL, *arguments).typed(TrainConfig)
        dataset = build(config.dataset, Dataset)
        task = locate(config.task["_target_"], Task)
        exams = task.requires == "exam"
        data = Data.open(dataset, task.requires, cache=tmp_path / "c", seed=0)
        root = tmp_path / "given"
        for index in data.division.test:
            record = data.decoded.records[index]
            name = f"{record.exam_id}/{record.view}" if exams else record.sample_id
            path = root / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PILImage.fromarray(dataset.read(record)).save(path)
        return root

    return write


def logged(run, name="test") -> pd.DataFrame:
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    return pd.read_parquet(root / f"predictions/{name}.parquet")


@every_task
def test_it_says_of_files_what_it_said_in_the_test(task, trial, images, cli, tmp_path):
    run, given, out = trial(*TASKS[task]), images(*TASKS[task]), tmp_path / "out"
    done = cli("predict", run.info.run_id, given, "--out", out)
    assert done.code == 0, done.err
    assert str(out / "predictions.csv") in done.out
    found = pd.read_csv(out / "predictions.csv")
    told = json.loads((out / "predictions.json").read_text())
    assert [case["sample_id"] for case in told["cases"]] == list(found["sample_id"])
    assert told["run_id"] == run.info.run_id
    expected = logged(run)
    name = [Path(each).with_suffix("").name for each in found["sample_id"]]
    found.index = pd.Index(name)
    assert sorted(name) == sorted(expected["sample_id"])
    found = found.loc[expected["sample_id"]]
    for column in [c for c in expected if c.startswith(("score_", "found_"))]:
        np.testing.assert_allclose(found[column], expected[column], atol=1e-5)
    if task == "segmentation":
        for mask, overlay in zip(found["mask"], found["overlay"], strict=True):
            assert PILImage.open(out / mask).size == (64, 64)
            assert PILImage.open(out / overlay).width == 640
        shares = [np.asarray(PILImage.open(out / mask)) for mask in found["mask"]]
        assert [int((mask == 1).sum()) for mask in shares] == list(found["pixels_benign"])
    if task == "exam_classification":
        weights = pd.read_csv(out / "images.csv")
        theirs = logged(run, "images").groupby("exam_id")["weight"].apply(sorted)
        ours = weights.assign(e=[Path(e).name for e in weights["exam_id"]]).groupby("e")["weight"]
        for exam, values in ours.apply(sorted).items():
            np.testing.assert_allclose(values, theirs[exam], atol=1e-5)
        assert set(weights["view"]) == {"view0", "view1", "view2"}


def test_boxes_and_masks_come_back_in_the_pixels_of_the_file(trial, cli, tmp_path):
    wide = tmp_path / "wide.png"
    rng = np.random.default_rng(0)
    PILImage.fromarray(rng.integers(0, 256, (60, 200), dtype=np.uint8)).save(wide)
    run = trial(*TASKS["segmentation"])
    assert cli("predict", run.info.run_id, wide, "--out", tmp_path / "masks").code == 0
    (mask,) = (tmp_path / "masks" / "masks").iterdir()
    assert PILImage.open(mask).size == (200, 60)
    run = trial(*TASKS["detection"], "head.nms.score=0.0")
    assert cli("predict", run.info.run_id, wide, "--out", tmp_path / "boxes").code == 0
    boxes = pd.read_csv(tmp_path / "boxes" / "detections.csv")
    assert len(boxes) > 0
    assert boxes[["x0", "y0"]].min().min() >= 0
    assert boxes["x1"].max() <= 200
    assert boxes["y1"].max() <= 60
    assert set(boxes["class"]) <= {"benign", "malignant"}


def test_an_exam_is_what_its_dicom_headers_say(trial, cli, tmp_path):
    run = trial(*TASKS["exam_classification"])
    (tmp_path / "in").mkdir()
    for number in range(4):
        header = {"PatientID": "p", "StudyInstanceUID": f"1.2.{number // 2}"}
        save_dicom(tmp_path / "in" / f"{number}.dcm", seed=number, **header)
    done = cli("predict", run.info.run_id, tmp_path / "in", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert list(pd.read_csv(tmp_path / "out" / "images.csv").groupby("exam_id").size()) == [2, 2]


def test_a_study_is_used_by_its_name(cli, images, tmp_path):
    given = images(*TASKS["classification"])
    study = ("study.name=choice", "strategy=feature_extraction,fine_tuning")
    assert cli("train", "-m", *SMALL, *study).code == 0
    done = cli("predict", "choice", given, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "fine_tuning" in done.out or "feature_extraction" in done.out


@pytest.mark.parametrize("form", ["onnx", "torch_export"])
@pytest.mark.parametrize("name", sorted(TASKS | OTHERS))
def test_what_is_exported_agrees_with_the_trial_on_fifty_images(name, form, opened, tmp_path):
    trained = opened(*(TASKS | OTHERS)[name])
    path = tmp_path / "model"
    if (name, form) == ("faster_rcnn", "torch_export"):
        with pytest.raises(exporting.ConfigError, match="Faster R-CNN"):
            exporting.export(trained, form, path, "")
        assert list(tmp_path.glob("*model*")) == []
        return
    exporting.export(trained, form, path, "card")
    assert (tmp_path / "model.md").read_text() == "card"
    signature = exporting.signature_of(trained)
    run = exporting.runner(form, path)
    given = exporting.examples(50, 3, signature.inputs["image"].shape[-1], seed=7)
    size = 5 if signature.varies else 1
    largest = 0.0
    for start in range(0, 50, size):
        inputs = {"image": given[start : start + size]}
        if "view" in signature.inputs:
            inputs["view"] = torch.arange(size) % max(1, len(trained.spec.views))
        found = exporting.difference(trained.model, inputs, run, signature.outputs)
        largest = max(largest, found)
    assert largest <= exporting.TOLERANCE


def test_an_exported_file_says_what_it_is(opened, tmp_path):
    trained = opened(*TASKS["classification"])
    exporting.export(trained, "onnx", tmp_path / "m.onnx", "")
    props = {each.key: each.value for each in onnx.load(tmp_path / "m.onnx").metadata_props}
    facts = json.loads(props["medtransfer"])
    assert facts["run_id"] == trained.run_id
    assert facts["class_names"] == ["normal", "benign", "malignant"]
    extra = {exporting.FACTS: ""}
    exporting.export(trained, "torch_export", tmp_path / "m.pt2", "")
    torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    assert json.loads(extra[exporting.FACTS])["outputs"] == ["scores"]


def test_what_does_not_agree_is_not_written(opened, tmp_path, monkeypatch):
    trained = opened(*TASKS["classification"])
    monkeypatch.setattr(exporting, "TOLERANCE", -1.0)
    with pytest.raises(exporting.ExportError, match="differs"):
        exporting.export(trained, "onnx", tmp_path / "m.onnx", "")
    assert list(tmp_path.glob("*m.*")) == []


def test_the_command_writes_a_card_with_an_interval(trial, cli, tmp_path):
    run = trial(*TASKS["classification"])
    done = cli("export", run.info.run_id, "--format", "onnx", "--out", tmp_path / "m.onnx")
    assert done.code == 0, done.err
    assert "agreement" in done.out
    card = (tmp_path / "m.md").read_text()
    assert run.info.run_id in card
    assert "95 % CI" in card
    assert "normal, benign, malignant" in card
    assert "no medical device" in card


def test_classifiers_of_scikit_learn_judge_and_are_not_exported(trial, cli, images, tmp_path):
    run = trial("task=classification", "strategy=classic_head")
    given = images("task=classification")
    done = cli("predict", run.info.run_id, given, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    found = pd.read_csv(tmp_path / "out" / "predictions.csv")
    expected = logged(run).set_index("sample_id")
    found.index = pd.Index([Path(each).stem for each in found["sample_id"]])
    np.testing.assert_allclose(
        found.loc[expected.index, "score_benign"], expected["score_benign"], atol=1e-5
    )
    done = cli("export", run.info.run_id, "--format", "onnx", "--out", tmp_path / "m.onnx")
    assert done.code == 2
    assert "scikit-learn" in done.err


@every_task
def test_it_shows_where_it_looked(task, trial, images, cli, tmp_path):
    run, given, out = trial(*TASKS[task]), images(*TASKS[task]), tmp_path / "out"
    some = sorted(given.iterdir())[:3]
    done = cli("explain", run.info.run_id, *some, "--out", out)
    assert done.code == 0, done.err
    told = json.loads((out / "explanations.json").read_text())
    assert len(told["cases"]) == 3
    for case in told["cases"]:
        assert PILImage.open(out / case["picture"]).width >= 800
        if task == "exam_classification":
            assert sum(image["weight"] for image in case["images"]) == pytest.approx(1, abs=1e-4)


def test_a_class_that_is_asked_about(trial, images, cli, tmp_path):
    run, given = trial(*TASKS["classification"]), images(*TASKS["classification"])
    first = sorted(given.iterdir())[0]
    done = cli("explain", run.info.run_id, first, "--out", tmp_path / "a", "--class", "benign")
    assert done.code == 0, done.err
    (case,) = json.loads((tmp_path / "a" / "explanations.json").read_text())["cases"]
    assert case["class"] == "benign"
    done = cli("explain", run.info.run_id, first, "--out", tmp_path / "b", "--class", "begnin")
    assert done.code == 2
    assert "did you mean 'benign'" in done.err


def test_mistakes_are_told_and_leave_nothing(trial, images, cli, home, tmp_path):
    run, given = trial(*TASKS["classification"]), images(*TASKS["classification"])
    out = tmp_path / "out"

    def refused(*arguments) -> str:
        done = cli("predict", *arguments, "--out", out)
        assert done.code == 2
        assert "Traceback" not in done.err
        assert not out.exists()
        return done.err

    assert "unknown" in refused("nonsense", given)
    assert "no file or folder" in refused(run.info.run_id, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused(run.info.run_id, tmp_path / "empty")
    bad = given / "bad.png"
    bad.write_bytes(b"no image")
    assert "bad.png" in refused(run.info.run_id, given)
    done = cli("predict", run.info.run_id, given, "--out", out, "--skip-unreadable")
    assert done.code == 0
    assert "left out" in done.out
    assert cli("predict", run.info.run_id, given, "--out", out).code == 2  # it is not empty
    shutil.rmtree(out)
    shutil.rmtree(home / "checkpoints")
    assert "no checkpoint" in refused(run.info.run_id, given)


def test_code_that_the_store_names_is_not_run(trial, images, cli, home, tmp_path):
    run, given = trial(*TASKS["classification"]), images(*TASKS["classification"])
    config = Path(run.info.artifact_uri.removeprefix("file://")) / "config.yaml"
    config.write_text(config.read_text().replace("trusted_modules: []", "trusted_modules: [evil]"))
    done = cli("predict", run.info.run_id, given, "--out", tmp_path / "out")
    assert done.code == 2
    assert "trusted_modules=[evil]" in done.err


def test_a_configuration_of_another_version_is_told(trial, images, cli, tmp_path):
    run, given = trial(*TASKS["classification"]), images(*TASKS["classification"])
    config = Path(run.info.artifact_uri.removeprefix("file://")) / "config.yaml"
    config.write_text(config.read_text().replace("config_version: 1", "config_version: 7"))
    done = cli("predict", run.info.run_id, given, "--out", tmp_path / "out")
    assert done.code == 2
    assert "version 7" in done.err
    assert "CHANGELOG" in done.err

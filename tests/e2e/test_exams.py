"""Exams of several images, and images with several labels, from the command line to the answer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image as PILImage
from sklearn.metrics import roc_auc_score

from hospital import save_dicom
from medtransfer.components import build
from medtransfer.config import TrainConfig
from medtransfer.data.base import Dataset
from medtransfer.data.loading import Data

SMALL = (
    *("backbone=timm", "backbone.name=test_resnet", "trainer=quick", "trainer.threads=1"),
    *("trainer.max_epochs=2", "trainer.batch_size=8", "trainer.precision=fp32"),
)
PHANTOM = (
    *("dataset=phantom", "dataset.patients=36", "dataset.images=3", "dataset.lesion_views=1"),
    *("dataset.size=32", "dataset.image_size=32"),
)
EXAM = ("task=exam_classification", *SMALL, *PHANTOM)
POOLINGS = ("mean", "max", "attention", "gated_attention", "late_fusion")


def artifact(run, name: str) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://")) / name


@pytest.fixture
def trial(cli, list_runs):
    """Return a function that runs one trial and returns its run."""

    def run(*arguments):
        before = {run.info.run_id for run in list_runs()}
        done = cli("train", *arguments)
        assert done.code == 0, done.err
        (new,) = [run for run in list_runs() if run.info.run_id not in before]
        assert new.info.status == "FINISHED"
        return new

    return run


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_an_exam_is_one_case_whatever_its_images(trial, strategy, pooling):
    run = trial(*EXAM, f"strategy={strategy}", f"head.pooling={pooling}")
    exams = pd.read_parquet(artifact(run, "predictions/test.parquet"))
    images = pd.read_parquet(artifact(run, "predictions/images.parquet"))
    assert list(exams["sample_id"]) == list(exams["exam_id"])
    assert exams["exam_id"].is_unique
    assert len(images) == 3 * len(exams)
    # how much each image counts sums to one in each exam
    sums = images.groupby("exam_id")["weight"].sum()
    assert set(sums.index) == set(exams["exam_id"])
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    scores = exams.filter(like="score_").to_numpy()
    expected = roc_auc_score(exams["target"], scores, multi_class="ovr")
    assert run.data.metrics["test/auroc"] == pytest.approx(expected, abs=1e-6)
    assert "test/image_auroc" in run.data.metrics
    cached = json.loads(artifact(run, "certificate.json").read_text())["features"]["mode"]
    assert cached == ("cached" if strategy == "feature_extraction" else "online")


def test_cached_and_online_features_of_exams_give_the_same_predictions(trial):
    frozen = (*EXAM, "strategy=feature_extraction", "head.pooling=attention", "transform=none")
    tables = [
        pd.read_parquet(
            artifact(trial(*frozen, f"features.mode={mode}"), "predictions/test.parquet")
        )
        for mode in ("cached", "online")
    ]
    pd.testing.assert_frame_equal(*tables, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_probe_is_solved_on_pooled_exams(trial, pooling):
    run = trial(*EXAM, "strategy=linear_probe", f"head.pooling={pooling}")
    assert len(pd.read_parquet(artifact(run, "predictions/test.parquet"))) == 18


def test_a_probe_with_a_pooling_that_learns_is_refused(cli, list_runs):
    done = cli("train", *EXAM, "strategy=linear_probe", "head.pooling=attention")
    assert done.code == 2
    assert "head.pooling=mean" in done.err
    assert not list_runs()


def test_a_sweep_over_exams_ends_in_an_answer_over_exams(cli, list_runs, home):
    done = cli(
        *("train", "-m", *EXAM, "strategy=feature_extraction,fine_tuning", "seed=0,1"),
        *("trainer.max_epochs=1", "head.pooling=mean"),
    )
    assert done.code == 0, done.err
    (results,) = (home / "reports").glob("*/results.json")
    (contrast,) = json.loads(results.read_text())["contrasts"]
    assert contrast["n_cases"] == 18
    report = results.with_name("report.md").read_text()
    pictures = sorted(results.with_name("pictures").glob("*.png"))
    assert len(pictures) == 2  # one for each arm
    assert all(f"(pictures/{path.name})" in report for path in pictures)


def exams_of(folder: Path, rng: np.random.Generator) -> list[dict[str, str]]:
    """Write images of one to four views for each exam, some views missing; return the rows."""
    rows = []
    for number in range(36):
        target = number % 2
        for view in ("CC", "MLO", "XCCL", "LM")[: 1 + number % 4]:
            name = f"{number:02}_{view}.png"
            pixels = rng.integers(0, 120, (40, 32), dtype=np.uint8) + np.uint8(80 * target)
            PILImage.fromarray(pixels).save(folder / name)
            rows.append(
                {
                    "path": name,
                    "diagnosis": ("benign", "malignant")[target],
                    "patient": f"P-{number}",
                    "exam": f"E{number}",
                    "view": view,
                    "site": "AB"[number % 3 == 0],
                }
            )
    return rows


@pytest.fixture
def manifest(tmp_path):
    """Return the arguments that name a manifest of exams of one to four images."""
    folder = tmp_path / "hospital"
    folder.mkdir()
    rows = exams_of(folder, np.random.default_rng(0))
    pd.DataFrame(rows).to_csv(folder / "exams.csv", index=False)
    return (
        *("dataset=csv_manifest", f"dataset.root={folder}", "dataset.file=exams.csv"),
        *("dataset.image=path", "dataset.label=diagnosis", "dataset.patient=patient"),
        *("dataset.exam=exam", "dataset.view=view", "dataset.attributes=[site]"),
        "dataset.image_size=32",
    )


def test_exams_of_one_to_four_images_with_missing_views(trial, manifest):
    for pooling in ("gated_attention", "late_fusion"):
        run = trial("task=exam_classification", *SMALL, *manifest, f"head.pooling={pooling}",
                    "strategy=feature_extraction", "trainer.max_epochs=20")  # fmt: skip
        images = pd.read_parquet(artifact(run, "predictions/images.parquet"))
        assert set(images.groupby("exam_id").size()) >= {1, 4}
        assert run.data.metrics["test/auroc"] > 0.9


def test_a_column_names_the_sites_to_test_on(trial, manifest):
    run = trial(
        *("task=exam_classification", *SMALL, *manifest, "head.pooling=mean"),
        *("dataset.split.kind=column", "dataset.split.column=site", "dataset.split.test=[B]"),
    )
    split = json.loads(artifact(run, "split.json").read_text())
    tested = {name.partition("_")[0] for name in split["test"]}
    assert tested == {f"{number:02}" for number in range(0, 36, 3)}


def test_the_secret_does_not_decide_who_is_tested(compose, manifest, tmp_path):
    tested = []
    for number in range(3):
        salt = f"dataset.salt={tmp_path / f'salt{number}'}"
        config = compose(*manifest, salt, "dataset.shots=3").typed(TrainConfig)
        dataset = build(config.dataset, Dataset)
        data = Data.open(dataset, "exam", cache=tmp_path / "cache", seed=0)
        records = data.decoded.records
        # the hashes of the images are all that two secrets leave the same
        tested.append(
            [
                sorted(data.decoded.contents[records[i].sample_id] for i in part)
                for part in (data.division.test, data.division.val, data.train)
            ]
        )
        assert {r.group_id for r in records}.isdisjoint(f"P-{i}" for i in range(36))
    assert tested[0] == tested[1] == tested[2]


def test_hashed_names_have_no_order(cli, manifest, list_runs):
    done = cli("train", *SMALL, *manifest, "dataset.split.kind=ordered")
    assert done.code == 2
    assert "dataset.identifiers=plain" in done.err
    assert not list_runs()


def test_patients_are_not_named_in_what_is_kept(trial, manifest):
    run = trial("task=exam_classification", *SMALL, *manifest)
    kept = [path for path in artifact(run, ".").rglob("*") if path.is_file()]
    frame = pd.read_parquet(artifact(run, "predictions/test.parquet"))
    assert not frame["group_id"].str.startswith("P-").any()
    assert not frame["exam_id"].str.fullmatch(r"E\d+").any()
    assert not any(b"P-3" in path.read_bytes() for path in kept)


def test_several_labels_of_one_image(trial):
    run = trial("task=multilabel", *SMALL, *PHANTOM)
    frame = pd.read_parquet(artifact(run, "predictions/test.parquet"))
    for label in ("lesion", "malignant"):
        expected = roc_auc_score(frame[f"target_{label}"], frame[f"score_{label}"])
        assert run.data.metrics[f"test/auroc_{label}"] == pytest.approx(expected, abs=1e-6)


def test_a_sweep_over_several_labels_has_intervals_of_the_macro_mean(cli, home):
    done = cli("train", "-m", "task=multilabel", *SMALL, *PHANTOM, "weights=random", "seed=0,1",
               "strategy=feature_extraction,fine_tuning", "trainer.max_epochs=1")  # fmt: skip
    assert done.code == 0, done.err
    (path,) = (home / "reports").glob("*/results.json")
    results = json.loads(path.read_text())
    (contrast,) = results["contrasts"]
    assert contrast["n_cases"] == 54
    assert contrast["lo"] < contrast["diff"] < contrast["hi"]


def test_grades_have_a_weighted_kappa(trial):
    run = trial(*SMALL, *PHANTOM, "task.ordinal=true", "trainer.selection.metric=quadratic_kappa")
    assert -1 <= run.data.metrics["test/quadratic_kappa"] <= 1


@pytest.mark.real_data("busi")
@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
def test_exams_of_real_images_from_a_manifest(trial, tmp_path, strategy):
    """Exams are made up of one to three scans of one class: BUSI names no patients."""
    root = Path(os.environ["MEDTRANSFER_DATA"], "busi")
    rows = []
    for kind in ("benign", "malignant"):
        names = sorted(path.name for path in (root / kind).glob("*.png"))[:72]
        exam = 0
        while names:
            views = [names.pop() for _ in range(min(len(names), 1 + exam % 3))]
            rows += [
                {"image": f"{kind}/{name}", "label": kind, "exam": f"{kind}{exam}"}
                for name in views
            ]
            exam += 1
    pd.DataFrame(rows).to_csv(tmp_path / "exams.csv", index=False)
    run = trial(
        *("task=exam_classification", *SMALL, f"strategy={strategy}", "head.pooling=attention"),
        *("dataset=csv_manifest", f"dataset.root={root}", f"dataset.file={tmp_path / 'exams.csv'}"),
        *("dataset.exam=exam", "dataset.image_size=32"),
    )
    mode = json.loads(artifact(run, "certificate.json").read_text())["features"]["mode"]
    assert mode == ("cached" if strategy == "feature_extraction" else "online")
    with PILImage.open(artifact(run, "pictures/test.png")) as page:
        assert min(page.size) > 300


def test_nothing_of_a_dicom_header_but_what_is_allowed_is_kept(cli, tmp_path, home, list_runs):
    names = {"PatientName": "Doe^Jane", "PatientBirthDate": "19500101", "AccessionNumber": "A77123"}
    rows = []
    for i in range(30):
        header = {**names, "PatientID": f"MRN{i // 2:05}", "InstitutionName": "Old Hospital"}
        study = f"1.2.826.0.{i // 2}"
        save_dicom(tmp_path / "scans" / f"{i}.dcm", seed=i, **header, StudyInstanceUID=study)
        rows.append({"image": f"{i}.dcm", "label": "no" if i // 2 % 2 else "yes"})
    pd.DataFrame(rows).to_csv(tmp_path / "scans" / "all.csv", index=False)
    done = cli(
        *("train", "-m", "task=exam_classification", *SMALL, "seed=0,1", "trainer.max_epochs=1"),
        *("dataset=csv_manifest", f"dataset.root={tmp_path / 'scans'}", "dataset.file=all.csv"),
        *("dataset.image_size=16", "head.pooling=mean"),
    )
    assert done.code == 0, done.err
    exams = [pd.read_parquet(path) for path in home.rglob("predictions/test.parquet")]
    assert {len(frame) for frame in exams} == {4}  # of two images each, told by the header
    kept = [path for path in home.rglob("*") if path.is_file() and path.name != "salt"]
    for path in kept:
        content = path.read_bytes()
        for word in (b"Doe^Jane", b"19500101", b"A77123", b"MRN0", b"Old Hospital", b"1.2.826.0."):
            assert word not in content, path
    assert not any(word in done.out + done.err for word in ("Doe^Jane", "MRN0", "A77123"))

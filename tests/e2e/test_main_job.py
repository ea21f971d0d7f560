"""The main job from the command line into a store of its own, read back by MLflow's own client."""

import json
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

QUICK = ("trainer=quick", "trainer.max_epochs=2")
PRETRAIN = (
    "pretrain",
    "backbone=timm",
    "backbone.name=test_resnet",
    "source.image_size=32",
    "trainer.max_steps=4",
    "trainer.batch_size=8",
    "trainer.threads=1",
)


@pytest.fixture
def client(home):
    return MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")


def split_off_parent(runs):
    (parent,) = [run for run in runs if run.data.tags["medtransfer.phase"] == "study"]
    of_it = {"mlflow.parentRunId": parent.info.run_id, "medtransfer.phase": "final"}.items()
    return parent, [run for run in runs if of_it <= run.data.tags.items()]


def artifact(client, run, name):
    return Path(client.download_artifacts(run.info.run_id, name))


def test_a_sweep_answers_and_the_store_alone_repeats_it(cli, tiny, client, list_runs, tmp_path):
    assert cli(*PRETRAIN)[0] == 0
    code, out, _ = cli(
        "train",
        "-m",
        *tiny,
        *QUICK,
        "strategy=feature_extraction,fine_tuning",
        "weights=random,file",
        "seed=0,1",
        "study.name=first",
    )
    assert code == 0, out
    parent, trials = split_off_parent(list_runs())
    assert len(trials) == 8
    assert {run.info.status for run in [parent, *trials]} == {"FINISHED"}
    assert len({run.data.tags["medtransfer.trial_id"] for run in trials}) == 8
    assert {run.data.tags["medtransfer.arm"] for run in trials} == {
        f"{strategy}/{weights}"
        for strategy in ("feature_extraction", "fine_tuning")
        for weights in ("random", "file")
    }
    for run in trials:
        tags = {k.removeprefix("medtransfer."): v for k, v in run.data.tags.items()}
        assert tags["study_id"] == parent.data.tags["medtransfer.study_id"]
        assert (tags["task"], tags["dataset"]) == ("classification", "phantom")
        assert (tags["backbone"], tags["fraction"]) == ("test_resnet", "1.0")
        assert (tags["phase"], tags["test_openings"]) == ("final", "1")
        assert run.data.params["trainer.max_epochs"] == "2"
        assert {"test/auroc", "val/auroc", "train/loss", "best/auroc"} <= run.data.metrics.keys()
        assert run.data.metrics["cost/train_seconds"] > 0
        assert run.data.metrics["cost/peak_memory_mb"] > 0
        history = client.get_metric_history(run.info.run_id, "val/auroc")
        assert [point.step for point in history] == [0, 1]
        assert len(client.get_metric_history(run.info.run_id, "test/auroc")) == 1

    frozen = {
        r.data.metrics["cost/trainable_parameters"] for r in trials if "extr" in r.info.run_name
    }
    assert frozen == {96 * 3 + 3}
    frame = pd.read_parquet(artifact(client, trials[0], "predictions/test.parquet"))
    assert list(frame)[:5] == ["sample_id", "group_id", "exam_id", "split", "target"]
    assert list(frame)[5:] == ["score_normal", "score_benign", "score_malignant"]
    assert set(frame["split"]) == {"test"}
    for name in ("config.yaml", "environment.json", "weights.json", "split.json", "data.json"):
        assert artifact(client, trials[0], name).read_text()

    results = json.loads(artifact(client, parent, "report/results.json").read_text())
    assert len(results["arms"]) == 4
    assert len(results["contrasts"]) == 6
    assert all(contrast["provisional"] for contrast in results["contrasts"])
    assert "provisional" in out
    assert results["headline"] in " ".join(out.split())

    code, again, _ = cli("report", "first", "--out", str(tmp_path / "again"))
    assert code == 0
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == results
    assert {"report.md", "results.csv"} <= {p.name for p in (tmp_path / "again").iterdir()}
    assert results["headline"] in " ".join(again.split())

    code, alone, _ = cli("report", trials[0].info.run_id, "--out", str(tmp_path / "alone"))
    assert code == 0
    assert trials[0].data.tags["medtransfer.arm"] in alone


def test_equal_seeds_give_equal_results_to_the_last_bit(cli, tiny, client, list_runs):
    for seed in (3, 3, 4):
        code, *_ = cli("train", *tiny, *QUICK, "strategy=fine_tuning", f"seed={seed}")
        assert code == 0
    runs = sorted(list_runs(), key=lambda run: run.info.start_time)
    scored = [
        {k: v for k, v in run.data.metrics.items() if not k.startswith(("cost/", "system/"))}
        for run in runs
    ]
    assert scored[0] == scored[1]
    assert scored[0] != scored[2]
    frames = [pd.read_parquet(artifact(client, run, "predictions/test.parquet")) for run in runs]
    pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)
    assert not frames[0].equals(frames[2])
    ids = [run.data.tags["medtransfer.trial_id"] for run in runs]
    assert ids[0] == ids[1] != ids[2]


def test_fractions_are_rows_of_their_own(cli, tiny, client, list_runs):
    code, out, _ = cli("train", "-m", *tiny, *QUICK, "dataset.fraction=0.5,1.0", "seed=0,1")
    assert code == 0, out
    parent, _ = split_off_parent(list_runs())
    results = json.loads(artifact(client, parent, "report/results.json").read_text())
    assert [arm["axes"] for arm in results["arms"]] == [
        {"dataset.fraction": "0.5"},
        {"dataset.fraction": "1.0"},
    ]
    assert results["contrasts"] == []


def test_without_the_test_set_nothing_of_it_is_opened(cli, tiny, client, list_runs):
    assert cli("train", *tiny, *QUICK, "test=false")[0] == 0
    (run,) = list_runs()
    assert run.data.tags["medtransfer.test_openings"] == "0"
    assert not [name for name in run.data.metrics if name.startswith("test/")]
    assert [f.path for f in client.list_artifacts(run.info.run_id, "predictions")] == [
        "predictions/val.parquet"
    ]


@pytest.mark.parametrize(
    "choices",
    [
        ("loss=balanced_cross_entropy", "optimizer=sgd", "scheduler=constant", "transform=none"),
        ("loss=focal", "optimizer=adam", "scheduler=multistep", "transform=strong"),
        ("trainer.sampler=balanced", "trainer.selection.metric=balanced_accuracy"),
        ("trainer.early_stopping.patience=1", "trainer.selection.metric=loss", "dataset.shots=2"),
        ("dataset.channels=1", "trainer.precision=fp32", "trainer.checkpoint=none"),
        ("trainer.max_steps=3", "trainer.batch_size=6", "trainer.workers=1"),
    ],
    ids=lambda choices: choices[0],
)
def test_other_choices_run(cli, tiny, home, list_runs, choices):
    code, _, err = cli("train", *tiny, *QUICK, *choices)
    assert code == 0, err
    (run,) = list_runs()
    assert run.info.status == "FINISHED"
    kept = list((home / "checkpoints").rglob("*.ckpt"))
    assert len(kept) == (0 if "trainer.checkpoint=none" in choices else 1)


@pytest.mark.parametrize("strategy", ["feature_extraction", "fine_tuning"])
@pytest.mark.parametrize("backbone", ["conv_encoder", "sigmoid_encoder", "dense_encoder"])
def test_encoders_are_trained_on_like_any_backbone(cli, tiny, list_runs, backbone, strategy):
    data = [choice for choice in tiny if not choice.startswith("backbone")]
    chosen = (f"backbone={backbone}", "backbone.widths=[8,6]", f"strategy={strategy}")
    result = cli("train", *data, *QUICK, *chosen, "trainer.max_epochs=1", "dataset.channels=1")
    assert result.code == 0, result.err
    (run,) = list_runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["medtransfer.backbone"] == backbone
    assert "test/auroc" in run.data.metrics
    head = 6 * 3 + 3
    trained = run.data.metrics["cost/trainable_parameters"]
    assert (trained == head) is (strategy == "feature_extraction")


def test_weights_for_colour_serve_grey_images(cli, tiny, client, list_runs):
    assert cli(*PRETRAIN)[0] == 0
    grey = ("weights=synthetic", "dataset.channels=1", "trainer.max_epochs=1")
    code, _, err = cli("train", *tiny, *QUICK, *grey)
    assert code == 0, err
    (run,) = [run for run in list_runs() if run.data.tags["medtransfer.phase"] != "pretrain"]
    known = json.loads(artifact(client, run, "weights.json").read_text())
    assert known["source"] == "synthetic"
    assert known["detail"]["keys"]["channels"] == "3 to 1"


def test_pretraining_is_done_once_and_says_where_it_comes_from(cli, client, home, list_runs):
    code, out, _ = cli(*PRETRAIN)
    assert code == 0
    (path,) = (home / "weights").glob("*.safetensors")
    assert str(path) in out
    before = path.read_bytes()
    code, out, _ = cli(*PRETRAIN)
    assert code == 0
    assert "made before" in out
    (run,) = list_runs()
    assert run.data.tags["medtransfer.phase"] == "pretrain"
    known = json.loads(artifact(client, run, "weights.json").read_text())
    assert known["source"] == "synthetic"
    assert known["images"] == 32

    path.unlink()
    assert cli(*PRETRAIN)[0] == 0
    assert path.read_bytes() == before


@pytest.mark.real_data("busi")
def test_busi_runs_as_it_lies_there(cli, tiny_network, client, list_runs):
    code, _, err = cli(
        "train",
        "-m",
        "dataset=busi",
        "dataset.image_size=32",
        "dataset.fraction=0.05",
        *tiny_network,
        *QUICK,
        "strategy=feature_extraction,fine_tuning",
    )
    assert code == 0, err
    _, (trial, _) = split_off_parent(list_runs())
    split = json.loads(artifact(client, trial, "split.json").read_text())
    assert sum(len(ids) for ids in split.values()) == 780
    frame = pd.read_parquet(artifact(client, trial, "predictions/test.parquet"))
    assert len(frame) == len(split["test"])

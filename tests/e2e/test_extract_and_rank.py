"""Features in a file, and backbones ranked by them, from the command line."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import timm
import torch
from huggingface_hub import constants
from mlflow import MlflowClient
from safetensors.torch import save_file

from medtransfer import __version__, console, transferability
from medtransfer.backbones import weights
from medtransfer.backbones.hub import Hub
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.commands import extract
from medtransfer.commands.rank import Candidate, in_order
from medtransfer.components import build
from medtransfer.config import RankConfig
from medtransfer.data.base import Dataset
from medtransfer.data.loading import Data, _Samples
from medtransfer.data.seen import seen

ESTIMATES = ("log_me", "h_score", "leep", "knn")
COMMANDS = pytest.mark.parametrize("command", ["extract", "rank"])


@pytest.fixture
def run(cli, tiny):
    """Return a function that runs a command with a tiny network on tiny data."""
    return lambda command, *more: cli(command, *tiny, "trainer.precision=fp32", *more)


@pytest.fixture
def data(compose, tiny, home):
    """Return the data that every command here looks at."""
    config = compose(*tiny, name="rank").typed(RankConfig)
    return Data.open(build(config.dataset, Dataset), cache=config.paths.cache, seed=0)


@pytest.fixture
def trained(tmp_path):
    """Return a network with weights of its own, the file that holds them, and its overrides."""
    torch.manual_seed(5)
    backbone = TimmBackbone("test_resnet", 3, 32).train()
    for _ in range(3):
        backbone.embed(torch.rand(8, 3, 32, 32))  # statistics that say something
    path = tmp_path / "mine.safetensors"
    known = {"source": "mine", "licence": "CC0-1.0", "trained_on": "noise", "statistics": True}
    weights.save(backbone, path, **known)
    return backbone.eval(), path, ("weights=file", f"weights.path={path}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Put a network with its classifier into a local cache of the hub, and return it."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(3)
    model = timm.create_model("test_resnet").eval()
    repository = folder / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    return model


@pytest.fixture
def passes(monkeypatch):
    """Return a list that notes how many images each pass through a network has."""
    noted, embed = [], TimmBackbone.embed

    def noting(self, images):
        if images.any():  # shapes are found out with a black one
            noted.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(TimmBackbone, "embed", noting)
    return noted


def pixels(data, indices):
    return torch.from_numpy(data.decoded.images[np.asarray(indices)]).float() / 255


@torch.no_grad()
def embedded(backbone, data, indices):
    return backbone.embed(pixels(data, indices)).numpy()


def entries(home):
    folder = home / "cache" / "features"
    return {path.name for path in folder.iterdir() if path.is_dir()} if folder.exists() else set()


def only(runs, phase):
    (found,) = [each for each in runs if each.data.tags["medtransfer.phase"] == phase]
    return found


def test_extract_writes_what_the_network_gives_with_its_origin(run, trained, data, home, list_runs):
    backbone, _, mine = trained
    code, out, err = run("extract", *mine)
    assert code == 0, err
    path = home / "features" / "phantom-test_resnet-file.parquet"
    assert f"features: {path}\n" in out
    assert "rows:     36 (12 train, 6 val, 18 test)\n" in out
    assert f"pandas.read_parquet('{path}')" in out

    frame = pd.read_parquet(path)
    assert out.count(", ".join(frame.columns)) == 1
    assert list(frame) == [
        *("sample_id", "group_id", "exam_id", "split", "target", "class_name", "embedding")
    ]
    positions = {record.sample_id: i for i, record in enumerate(data.decoded.records)}
    indices = [positions[name] for name in frame["sample_id"]]
    assert sorted(indices) == list(range(36))
    records = [data.decoded.records[i] for i in indices]
    for column in ("group_id", "exam_id", "target"):
        assert frame[column].tolist() == [getattr(record, column) for record in records]
    names = [data.spec.class_names[record.target] for record in records]
    assert frame["class_name"].tolist() == names
    for split in ("train", "val", "test"):
        chosen = np.array(indices)[frame["split"] == split]
        assert chosen.tolist() == getattr(data.division, split).tolist()
    found = np.stack(frame["embedding"])
    np.testing.assert_allclose(found, embedded(backbone, data, indices), rtol=1e-5, atol=1e-5)

    file = pq.ParquetFile(path)
    kind = file.schema_arrow.field("embedding").type
    assert (str(kind.value_type), kind.list_size) == ("float", 96)
    told = {k.decode(): v.decode() for k, v in file.schema_arrow.metadata.items()}
    assert told["medtransfer.version"] == __version__
    assert told["medtransfer.backbone"] == "test_resnet"
    assert told["medtransfer.weights.source"] == "mine"
    assert told["medtransfer.weights.licence"] == "CC0-1.0"
    assert told["medtransfer.weights.sha256"] == weights.hash_tensors(backbone.state_dict())
    assert told["medtransfer.data_hash"] == data.spec.data_hash
    assert told["medtransfer.split_hash"] == data.spec.split_hash
    assert told["medtransfer.image_size"] == "32"

    logged = only(list_runs(), "extract")
    assert logged.info.status == "FINISHED"
    assert logged.data.params["weights.path"] == str(trained[1])
    assert logged.data.params["features_file"] == str(path)


def test_the_file_grows_by_groups_of_rows_so_that_memory_stays_flat(run, home, monkeypatch):
    assert run("extract", f"out={home}/whole").code == 0
    monkeypatch.setattr(extract, "ROWS", 5)
    assert run("extract", f"out={home}/parts").code == 0
    file = pq.ParquetFile(home / "parts")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert groups == [5, 5, 2, 5, 1, 5, 5, 5, 3]
    assert file.read().equals(pq.read_table(home / "whole"))


def test_a_second_call_and_a_later_trial_compute_nothing(run, trained, passes, tmp_path, home):
    out = tmp_path / "far" / "away.parquet"
    assert run("extract", *trained[2], f"out={out}").code == 0
    assert sum(passes) == 36
    first, kept = pq.read_table(out), entries(home)
    passes.clear()
    assert run("extract", *trained[2], f"out={out}").code == 0
    assert pq.read_table(out).equals(first)
    trial = ("transform=none", "strategy=feature_extraction", "trainer.max_epochs=1")
    assert run("train", *trained[2], *trial).code == 0
    assert passes == []
    assert entries(home) == kept


def test_random_weights_rest_on_the_statistics_that_a_frozen_trial_has(run, home):
    assert (
        run(
            "extract",
        ).code
        == 0
    )
    kept = entries(home)
    trial = ("transform=none", "strategy=feature_extraction", "trainer.max_epochs=1")
    assert run("train", *trial).code == 0
    assert entries(home) == kept
    assert run("extract", "batchnorm=frozen").code == 0
    assert len(entries(home) - kept) == 3


def test_splits_can_be_left_out_and_nothing_of_them_is_computed(run, trained, passes, home):
    code, out, _ = run("extract", *trained[2], "splits=[val,train]")
    assert code == 0
    assert "18 (6 val, 12 train)" in out
    assert sum(passes) == 18
    frame = pd.read_parquet(home / "features" / "phantom-test_resnet-file.parquet")
    assert frame["split"].tolist() == ["val"] * 6 + ["train"] * 12


@pytest.mark.parametrize("part", ["dataset.fraction=0.4", "dataset.shots=1"])
def test_all_images_are_extracted_whatever_part_a_trial_would_see(run, part, home):
    assert run("extract", f"out={home}/whole").code == 0
    assert run("extract", part, f"out={home}/part").code == 0
    assert pq.read_table(home / "part").equals(pq.read_table(home / "whole"))


def test_rank_looks_at_training_images_alone(run, data, home, monkeypatch):
    read, get = set(), _Samples.__getitem__
    monkeypatch.setattr(
        _Samples, "__getitem__", lambda self, key: read.add(key[1]) or get(self, key)
    )
    assert run("rank", "batchnorm=frozen,reestimate").code == 0
    assert read == set(data.division.train.tolist())
    assert len(entries(home)) == 2


def test_rank_tells_its_estimates_in_a_table_in_files_and_in_the_store(
    run, trained, data, home, list_runs
):
    given = ("weights=random,file", f"weights.path={trained[1]}", f"out={home}/ranked")
    code, out, err = run("rank", *given, "neighbours=3")
    assert code == 0, err

    content = json.loads((home / "ranked" / "rank.json").read_text())
    assert (content["cases"], content["groups"]) == (12, 12)
    rows = {row["weights"]: row for row in content["rows"]}
    assert list(rows) == sorted(rows, key=lambda name: -rows[name]["estimates"]["log_me"])
    x, y = embedded(trained[0], data, data.train), data.targets[data.train]
    found = rows["file"]["estimates"]
    assert found["log_me"] == pytest.approx(transferability.log_me(x, y), abs=1e-4)
    assert found["h_score"] == pytest.approx(transferability.h_score(x, y), abs=1e-3)
    groups = [data.decoded.records[i].group_id for i in data.train]
    assert found["knn"] == transferability.knn_accuracy(x, y, groups, 3)
    assert found["leep"] is None
    assert rows["file"]["source"] == "mine"
    assert rows["file"]["embedding_size"] == 96
    assert rows["file"]["batchnorm"] == "frozen"
    assert rows["random"]["batchnorm"] == "reestimate"
    assert rows["file"]["seconds"] > 0
    assert sorted(row["ranks"]["log_me"] for row in rows.values()) == [1, 2]
    flat = pd.read_csv(home / "ranked" / "rank.csv")
    assert flat["weights"].tolist() == list(rows)
    assert flat["estimates.log_me"][0] == content["rows"][0]["estimates"]["log_me"]

    best = content["rows"][0]
    assert f"{best['estimates']['log_me']:.3f} (1)" in out
    assert re.search(rf"^best by LogME.*: test_resnet/{best['weights']}$", out, re.MULTILINE)
    assert re.search(rf"^try: .* train .* weights={best['weights']} ", out, re.MULTILINE)
    assert content["note"] in out
    assert "hints" in content["note"]
    logged = only(list_runs(), "rank")
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["log_me/test_resnet/file"] == found["log_me"]
    assert logged.data.tags["medtransfer.best"] == f"test_resnet/{best['weights']}"
    assert logged.data.params["neighbours"] == "3"
    assert "weights._target_" not in logged.data.params  # it differs
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    kept = Path(client.download_artifacts(logged.info.run_id, "rank.json")).read_text()
    assert json.loads(kept) == content


def test_rank_scores_the_subset_that_a_trial_would_see(run, trained, data, home):
    given = (*trained[2], f"out={home}/out")
    assert run("rank", *given, "dataset.shots=2").code == 0
    part = json.loads((home / "out" / "rank.json").read_text())
    assert part["cases"] == 6


def test_leep_comes_from_the_classifier_of_the_hubs_checkpoint(
    run, hub, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(console.out, "_width", 100)
    code, out, err = run("rank", "weights=random,imagenet", f"out={tmp_path}/out")
    assert code == 0, err
    rows = json.loads((tmp_path / "out" / "rank.json").read_text())["rows"]
    rows = {row["weights"]: row for row in rows}
    known = timm.get_pretrained_cfg("test_resnet")
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (known.mean, known.std))
    with torch.no_grad():
        theta = hub((pixels(data, data.train) - mean) / std).softmax(1).numpy()
    expected = transferability.leep(theta, data.targets[data.train])
    assert rows["imagenet"]["estimates"]["leep"] == pytest.approx(expected, abs=1e-5)
    assert rows["imagenet"]["ranks"]["leep"] == 1
    assert rows["random"]["estimates"]["leep"] is None
    (line,) = [line for line in out.splitlines() if line.split()[:2] == ["test_resnet", "random"]]
    assert " - " in line
    assert "LEEP" not in out.partition("best by")[2]  # the only one that has it wins nothing


def test_what_is_no_plain_classifier_on_the_embedding_is_none(hub, monkeypatch):
    source = Hub(path=None, tag=None, sha256=None)
    backbone = TimmBackbone("test_resnet", 3, 32)
    assert source.classifier(backbone).out_features == 1000
    backbone.embedding_size += 1
    assert source.classifier(backbone) is None
    backbone.embedding_size -= 1
    head = timm.models.ResNet.forward_head

    def with_more(self, x, pre_logits=False):
        return head(self, x, pre_logits=pre_logits) + (0 if pre_logits else 1)

    monkeypatch.setattr(timm.models.ResNet, "forward_head", with_more)
    assert source.classifier(backbone) is None
    monkeypatch.undo()


def test_one_combination_that_cannot_be_loaded_is_a_row_with_its_reason(
    run, trained, tmp_path, list_runs
):
    given = ("backbone.name=test_resnet,test_resnett,test_vit", *trained[2], f"out={tmp_path}/out")
    code, out, _ = run("rank", *given)
    assert code == 1
    rows = json.loads((tmp_path / "out" / "rank.json").read_text())["rows"]
    assert [row["backbone"] for row in rows] == ["test_resnet", "test_resnett", "test_vit"]
    assert rows[0]["failure"] is None
    assert "timm has no model 'test_resnett'" in rows[1]["failure"]
    assert "does not fit backbone 'test_vit'" in rows[2]["failure"]
    assert rows[1]["estimates"] == dict.fromkeys(ESTIMATES)
    assert f"failed: test_resnett/file: {rows[1]['failure']}\n" in out
    assert only(list_runs(), "rank").info.status == "FINISHED"


def test_what_fails_while_it_is_scored_is_a_row_too(run, tmp_path, monkeypatch, passes):
    score = transferability.log_me

    def tired(x, y):
        if x.shape[1] == 64:
            raise RuntimeError("the coffee is cold")
        return score(x, y)

    monkeypatch.setattr(transferability, "log_me", tired)
    given = ("backbone.name=test_vit,test_resnet", f"out={tmp_path}/out")
    code, out, _ = run("rank", *given)
    assert code == 1
    assert "failed: test_vit/random: RuntimeError: the coffee is cold" in out
    rows = json.loads((tmp_path / "out" / "rank.json").read_text())["rows"]
    assert [row["backbone"] for row in rows] == ["test_resnet", "test_vit"]


def candidate(name, **estimates):
    return Candidate(None, None, name, "w", {}, (), estimates=estimates)


def test_the_order_is_by_logme_and_ties_stay_as_given():
    given = [
        candidate("a", log_me=1.0, knn=0.5),
        candidate("failed"),
        candidate("b", log_me=2.0, knn=0.5, leep=-1.0),
        candidate("c", log_me=1.0, knn=0.7, leep=None),
        candidate("d", log_me=1.0, knn=0.1),
    ]
    found = in_order(given)
    assert [c.backbone for c in found] == ["b", "a", "c", "d", "failed"]
    assert [c.ranks.get("log_me") for c in found] == [1, 2, 2, 2, None]
    assert [c.ranks.get("knn") for c in found] == [2, 2, 1, 4, None]
    assert [c.ranks.get("leep") for c in found] == [1, None, None, None, None]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("neighbours=1,2", ["'neighbours' has several values"]),
        ("dataset.split.seed=0,1", ["different training images"]),
        ("weights=random,imagnet", ["weights 'imagnet'", "did you mean 'imagenet'"]),
        ("neighbours=0", ["neighbours=0"]),
        ("backbone.name=test_resnett", ["did you mean 'test_resnet'"]),
        ("weights=imagenet", ["HF_HUB_OFFLINE", "HF_HOME"]),
    ],
)
def test_a_mistake_in_a_ranking_is_told_before_any_run(run, list_runs, home, given, said):
    result = run("rank", given)
    assert_refused(result, list_runs, said)
    assert not (home / "rank").exists()


MISTAKES = {
    "ouut=x": ["'ouut' is unknown", "did you mean 'out'"],
    "batchnorm=sometimes": ["batchnorm='sometimes'", "'reestimate'"],
    "trainer.batch_size=none": ["trainer.batch_size='none'"],
    "dataset=phantm": ["dataset 'phantm'", "did you mean 'phantom'"],
    "out={file}/below/x": ["cannot be written", "out="],
    "tracking.uri=sqlite:///{file}/mlflow.db": ["file/mlflow.db", "tracking.uri"],
    "paths.cache={file}/cache": ["file/cache", "paths.cache"],
}


@COMMANDS
@pytest.mark.parametrize("given", MISTAKES)
def test_a_mistake_is_told_and_leaves_nothing(run, list_runs, tmp_path, command, given):
    (tmp_path / "file").write_text("")
    result = run(command, given.format(file=tmp_path / "file"))
    assert_refused(result, list_runs, MISTAKES[given])
    assert {path.name for path in (tmp_path / "home").iterdir()} <= {"mlflow.db", "cache"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("splits=[]", ["splits=[]"]),
        ("splits=[train,train]", ["splits=['train', 'train']", "twice"]),
        ("splits=[trian]", ["splits.0='trian'", "'train'"]),
        ("splits=train", ["splits='train'"]),
        ("out=.", ["'.' is a folder", "FILE.parquet"]),
        ("trainer.batch_size=1", ["batch normalisation cannot be estimated"]),
        ("weights=file", ["no pre-trained weights", "medtransfer pretrain"]),
    ],
)
def test_a_mistake_in_an_extraction_is_told_before_any_run(run, list_runs, given, said):
    assert_refused(run("extract", given), list_runs, said)


def test_a_ranking_of_which_nothing_can_be_scored_fails(run, list_runs, home):
    result = run("rank", "trainer.batch_size=1", "batchnorm=auto,reestimate")
    assert result.code == 2
    assert "batch normalisation cannot be estimated" in result.err
    assert only(list_runs(), "rank").info.status == "FAILED"
    assert not (home / "rank").exists()


def test_what_fails_while_it_is_written_leaves_the_file_of_before(
    run, list_runs, home, monkeypatch
):
    out = home / "features" / "phantom-test_resnet-random.parquet"
    out.parent.mkdir()
    out.write_text("before")
    batches = extract._batches

    def tired(prepared, split, schema):
        if split == "test":
            raise RuntimeError("the coffee is cold")
        return batches(prepared, split, schema)

    monkeypatch.setattr(extract, "_batches", tired)
    with pytest.raises(RuntimeError, match="the coffee is cold"):
        run(
            "extract",
        )
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert out.read_text() == "before"
    assert only(list_runs(), "extract").info.status == "FAILED"


@COMMANDS
def test_weights_that_have_seen_test_images_are_refused(run, trained, data, list_runs, command):
    path = trained[1].with_name("leaking.safetensors")
    weights.save(trained[0], path, source="mine", seen=seen(data, data.division.test[:2]))
    result = run(command, "weights=file", f"weights.path={path}")
    assert result.code == 3
    assert "were trained on 2 of the 18 groups" in result.err
    assert list_runs() == []


def test_a_dataset_without_classes_is_refused(run, list_runs, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "only_masks.py").write_text(
        "from medtransfer.data.phantom import Phantom\n\n\nclass OnlyMasks(Phantom):\n"
        "    provides = frozenset({'mask'})\n"
    )
    (tmp_path / "own" / "dataset").mkdir(parents=True)
    text = "# Masks.\ndefaults:\n  - phantom\n\n_target_: only_masks.OnlyMasks\n"
    (tmp_path / "own" / "dataset" / "masks.yaml").write_text(text)
    own = ("--config-dir", tmp_path / "own", "trusted_modules=[only_masks]", "dataset=masks")
    for command in ("extract", "rank"):
        result = run(
            command,
            *own,
        )
        assert_refused(result, list_runs, ["OnlyMasks has no annotation 'class'"])


@COMMANDS
def test_the_configuration_can_be_looked_at(cli, command):
    result = cli(command, "--cfg", "job")
    assert result.code == 0
    assert "batchnorm: auto" in result.out


def assert_refused(result, list_runs, said):
    assert result.code == 2, result
    assert result.err.startswith("error: ")
    for part in said:
        assert part in result.err
    assert "Traceback" not in result.out + result.err
    assert result.out == ""
    assert list_runs() == []

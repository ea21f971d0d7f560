"""Studies read from a real store."""

import mlflow
import pandas as pd
import pytest
from simulated import FE, FT, ODD, log_parent, log_trial

from medtransfer.analysis import load
from medtransfer.analysis.load import load_study
from medtransfer.errors import StoreError


@pytest.mark.parametrize("name", ["sid", "BUSI | probe", "parent"])
def test_a_study_goes_by_its_id_its_name_and_its_run(store, name):
    client, ids = store
    study = load_study(client, ids.get(name, name))
    assert (study.study_id, study.name, study.run_id) == ("sid", "BUSI | probe", ids["parent"])
    assert (study.metric, study.rope) == ("auroc", 0.02)
    assert [(t.arm, t.seed, t.status) for t in study.trials] == [
        (ODD, 0, "FINISHED"),
        (ODD, 1, "FAILED"),
        (ODD, 2, "FINISHED"),
        *[(arm, seed, "FINISHED") for arm in (FE, FT) for seed in range(3)],
    ]


def test_of_a_retried_trial_the_finished_attempt_counts(store):
    client, ids = store
    study = load_study(client, "sid")
    assert ids["odd 2"] in {trial.run_id for trial in study.trials}
    assert study.notes == ("earlier attempts replaced by a retry: 2",)


def test_a_trial_holds_its_metrics_costs_and_failure(store):
    client, _ = store
    failed, finished = load_study(client, "sid").trials[1:3]
    assert failed.failure == "CUDA | out of <memory>\x1b[31m"
    assert not failed.metrics
    assert not finished.failure
    assert set(finished.metrics) == {"auroc"}
    assert set(finished.cost) == {"train_seconds", "trainable_parameters", "peak_memory_mb"}
    assert finished.split_hash == "abc"


def test_predictions_come_on_demand_and_once(store, monkeypatch):
    client, ids = store
    study = load_study(client, "sid")
    frame = study.predictions(ids["odd 0"])
    assert isinstance(frame, pd.DataFrame)
    assert list(frame.columns)[-3:] == ["target", "score_benign", "score_malignant"]
    assert study.predictions(ids["odd 0"]) is frame
    assert study.predictions(study.trials[1].run_id) is None


def test_damaged_predictions_name_their_run(store, tmp_path):
    client, ids = store
    run = client.create_run(client.get_run(ids["stranger"]).info.experiment_id).info.run_id
    (tmp_path / "test.parquet").write_bytes(b"PAR1 no")
    client.log_artifact(run, str(tmp_path / "test.parquet"), "predictions")
    with pytest.raises(StoreError, match=run):
        load_study(client, "sid").predictions(run)
    client.delete_run(run)


def test_of_two_studies_with_one_name_the_newest_counts(store):
    client, ids = store
    study = load_study(client, "twice")
    assert study.run_id == ids["new"]
    assert study.notes == ("'twice' names 2 studies; this is the newest, new, not old",)
    assert load_study(client, "old").run_id == ids["old"]


def test_a_study_resumed_under_a_second_parent_is_one(store):
    client, ids = store

    experiment = client.get_run(ids["stranger"]).info.experiment_id
    parents = [log_parent(client, experiment, "resumed", "rid", start=s) for s in (1, 2)]
    runs = [log_trial(client, experiment, p, FE, i, status="KILLED") for i, p in enumerate(parents)]
    study = load_study(client, "resumed")
    assert [trial.run_id for trial in study.trials] == runs
    assert study.trials[0].failure == "killed, no reason recorded"
    for run in (*runs, *parents):
        client.delete_run(run)


def test_a_run_id_gives_a_standalone_trial(store):
    client, ids = store
    study = load_study(client, ids["standalone"])
    assert study.run_id == ids["standalone"]
    assert study.metric == "auroc"
    assert study.rope == load.DEFAULT_ROPE
    (trial,) = study.trials
    assert trial.axes == {"dataset.shape": "[1, 2]", "x": "y"}


@pytest.mark.parametrize("name", ["BUSI probe", "nothing like it", "a/b?", "", "stranger"])
def test_what_is_unknown_is_named_with_the_nearest(store, name):
    client, ids = store
    with pytest.raises(StoreError) as caught:
        load_study(client, ids.get(name, name))
    assert f"'{ids.get(name, name)}' is unknown" in str(caught.value)
    assert "BUSI | probe" in caught.value.choices or name == "stranger"
    if name == "BUSI probe":
        assert caught.value.nearest == "BUSI | probe"


def test_a_deleted_trial_is_unknown(store):
    client, ids = store
    client.delete_run(ids["standalone"])
    with pytest.raises(StoreError, match="is unknown"):
        load_study(client, ids["standalone"])
    client.restore_run(ids["standalone"])


def test_a_store_that_cannot_answer_is_not_called_unknown(store, monkeypatch):
    client, _ = store

    def broken(run_id):
        raise mlflow.exceptions.MlflowException("no disk")

    monkeypatch.setattr(client, "get_run", broken)
    with pytest.raises(mlflow.exceptions.MlflowException, match="no disk"):
        load_study(client, "0" * 32)


def test_pages_are_followed_to_the_end(store, monkeypatch):
    client, _ = store
    asked = []

    def small(search):
        def wrapped(*args, **options):
            asked.append(options["page_token"])
            return search(*args, **options, max_results=2)

        return wrapped

    monkeypatch.setattr(client, "search_runs", small(client.search_runs))
    monkeypatch.setattr(client, "search_experiments", small(client.search_experiments))
    assert len(load_study(client, "sid").trials) == 9
    assert sum(token is not None for token in asked) > 4

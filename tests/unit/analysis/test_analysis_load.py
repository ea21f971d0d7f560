"""Studies read from a real store."""

import json

import mlflow
import pandas as pd
import pytest
from simulated import FE, FT, ODD, log_parent, log_trial, predictions

from medtransfer.analysis import load
from medtransfer.analysis.load import load_study
from medtransfer.analysis.report.build import build
from medtransfer.errors import StoreError
from medtransfer.tracking import records
from medtransfer.tracking.ledger import Ledger


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


@pytest.fixture
def protocol(store, tmp_path):
    """Return a client, the parent and the runs of a study with all that a protocol writes."""
    client, ids = store
    experiment = client.get_run(ids["stranger"]).info.experiment_id
    declared = {"primary": {"a": FT, "b": FE, "at": {}}, "seeds": [0, 1]}
    parent = log_parent(client, experiment, "declared", "pid", protocol=json.dumps(declared))
    # a run needs a time of its own: a ledger is told from the store by what began later
    given = {"folder": tmp_path, "start": 5000}
    runs = {}
    for arm, skill in ((FE, 1.0), (FT, 2.5)):
        for seed in range(2):
            runs[arm, seed] = log_trial(
                client,
                experiment,
                parent,
                arm,
                seed,
                frame=predictions(skill, seed),
                tables={
                    "val": predictions(skill, seed, n=40),
                    "external": predictions(1.0, seed, n=80),
                },
                metrics={"external/auroc": 0.7, "best/auroc": 0.8},
                tags={"settings": '{"lr": 0.1}', "tuned": "yes"},
                **given,
            )
        tags = {"draw": "0", "settings": '{"lr": 0.1}'}
        runs[arm, "draw"] = log_trial(
            client, experiment, parent, arm, 0, phase="tuning", status="KILLED", tags=tags, **given
        )
    client.log_dict(runs[FE, 0], {"python": "3.11"}, "environment.json")
    log_trial(client, experiment, parent, FE, 0, phase="summary", status="KILLED", start=9000)
    yield client, parent, runs
    for run in (*runs.values(), parent):
        client.delete_run(run)


def test_what_a_protocol_writes_is_read(protocol):
    client, _, runs = protocol
    study = load_study(client, "pid")
    assert study.protocol["primary"] == {"a": FT, "b": FE, "at": {}}
    assert study.environment == {"python": "3.11"}
    assert [trial.run_id for trial in study.trials] == [
        runs[a, s] for a in (FE, FT) for s in (0, 1)
    ]
    assert [trial.run_id for trial in study.tuning] == [runs[a, "draw"] for a in (FE, FT)]
    trial, draw = study.trials[0], study.tuning[0]
    assert (trial.settings, trial.draw, draw.settings, draw.draw) == (
        {"lr": 0.1},
        None,
        {"lr": 0.1},
        0,
    )
    assert (trial.external, trial.best) == ({"auroc": 0.7}, {"auroc": 0.8})
    assert len(study.predictions(trial.run_id, "val")) == 40
    assert len(study.predictions(trial.run_id, "external")) == 80
    assert study.predictions(draw.run_id, "val") is None
    assert study.notes == ()


def test_an_older_study_declared_nothing(store):
    client, _ = store
    study = load_study(client, "sid")
    assert (study.protocol, study.tuning, study.environment) == ({}, (), {})
    assert [trial.run_id for trial in study.replaced] != []


def test_a_whole_ledger_is_read_instead_of_the_store(protocol, tmp_path, monkeypatch):
    client, _, runs = protocol
    ledger = Ledger(tmp_path / "pid")
    ledger.rebuild(client, load.parents_of(client, "pid"))
    fresh = load_study(client, "pid")
    read = load_study(client, "pid", lambda study_id: tmp_path / study_id)
    assert read == fresh
    assert build(read) == build(fresh)

    fetched = []
    expected = fresh.predictions(runs[FT, 1], "external").reset_index(drop=True)
    monkeypatch.setattr(records, "table", lambda *given: fetched.append(given))
    again = load_study(client, "pid", lambda study_id: tmp_path / study_id)
    pd.testing.assert_frame_equal(again.predictions(runs[FT, 1], "external"), expected)
    assert not fetched


def test_a_ledger_that_lacks_a_trial_is_passed_over(protocol, tmp_path):
    client, parent, runs = protocol
    folder = tmp_path / "pid"

    def ledger(study_id):
        return tmp_path / study_id

    whole = load_study(client, "pid")
    assert load_study(client, "pid", ledger) == whole  # none is there
    Ledger(folder).append(records.row(client.get_run(runs[FE, 0])), {})
    Ledger(folder).consolidate()
    assert load_study(client, "pid", ledger) == whole  # nobody said that it has all

    Ledger(folder).rebuild(client, [parent])
    experiment = client.get_run(parent).info.experiment_id
    later = log_trial(client, experiment, parent, FE, 2, status="FAILED", failure="x", start=6000)
    assert len(load_study(client, "pid", ledger).trials) == 5
    client.delete_run(later)

    Ledger(folder).rebuild(client, [parent])
    (folder / "trials.parquet").write_bytes(b"PAR1 no")
    assert load_study(client, "pid", ledger) == whole


def test_a_trial_that_was_deleted_from_the_store_does_not_count(protocol, tmp_path):
    client, parent, runs = protocol
    Ledger(tmp_path / "pid").rebuild(client, [parent])
    client.delete_run(runs[FT, 1])
    found = load_study(client, "pid", lambda study_id: tmp_path / study_id)
    assert runs[FT, 1] not in {trial.run_id for trial in found.trials}
    assert found == load_study(client, "pid")
    client.restore_run(runs[FT, 1])

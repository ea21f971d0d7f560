import time

import pytest

from medtransfer.tracking import records
from medtransfer.tracking.runs import open_run
from medtransfer.tracking.store import open_store
from medtransfer.tracking.usage import sampled


@pytest.fixture
def store(tmp_path):
    return open_store(f"sqlite:///{tmp_path}/mlflow.db", "test", None, tmp_path)


def told(store, run_id, name):
    return [(each.step, each.value) for each in store.client.get_metric_history(run_id, name)]


def test_what_the_machine_does_is_logged_again_and_again_in_mlflows_names(store):
    with open_run(store, "a trial", {}) as run, sampled(run, 0.05):
        time.sleep(1)
    for name in ("cpu_utilization_percentage", "system_memory_usage_percentage"):
        samples = told(store, run.run_id, f"system/{name}")
        assert [step for step, _ in samples] == list(range(len(samples)))
        assert len(samples) > 2
        assert all(0 <= value <= 100 for _, value in samples)
    assert told(store, run.run_id, "system/system_memory_usage_megabytes")[0][1] > 100


@pytest.mark.parametrize("every", [None, 60.0])
def test_a_run_that_is_shorter_than_the_time_between_samples_has_none(store, every):
    started = time.monotonic()
    with open_run(store, "a trial", {}) as run, sampled(run, every):
        run.metrics({"val/loss": 1.0})
    assert time.monotonic() - started < 30
    assert set(store.client.get_run(run.run_id).data.metrics) == {"val/loss"}


def test_samples_are_no_results(store):
    with open_run(store, "a trial", {}) as run, sampled(run, 0.05):
        run.metrics({"val/loss": 1.0})
        time.sleep(0.3)
    row = records.row(store.client.get_run(run.run_id))
    assert [name for name in row if name.startswith("metrics.")] == ["metrics.val/loss"]


def test_an_error_inside_ends_the_sampling(store):
    opened = open_run(store, "a trial", {})
    with pytest.raises(ValueError, match="inside"), opened as run, sampled(run, 0.05):
        raise ValueError("inside")
    before = told(store, run.run_id, "system/cpu_utilization_percentage")
    time.sleep(0.3)
    assert told(store, run.run_id, "system/cpu_utilization_percentage") == before

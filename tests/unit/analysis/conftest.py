"""One real store for the whole folder: creating its tables is what costs."""

import mlflow
import pytest
from simulated import FE, FT, ODD, log_parent, log_trial, predictions


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Return a client and the ids of what was written, by name."""
    folder = tmp_path_factory.mktemp("store")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    first = client.create_experiment("first", artifact_location=(folder / "one").as_uri())
    second = client.create_experiment("second", artifact_location=(folder / "two").as_uri())
    given = {"folder": folder}
    ids = {}

    # The study: two tidy arms, and a third with everything that goes wrong.
    parent = ids["parent"] = log_parent(client, second, "BUSI | probe", "sid")
    for seed in range(3):
        log_trial(client, second, parent, FE, seed, frame=predictions(1.0, seed), **given)
        log_trial(client, second, parent, FT, seed, frame=predictions(2.5, seed), **given)
    odd = (client, second, parent, ODD)
    ids["odd 0"] = log_trial(*odd, 0, frame=predictions(1.2, 0), **given)
    log_trial(*odd, 1, status="FAILED", failure="CUDA | out of <memory>\x1b[31m")
    # Seed 2 failed at first, worked, and was started once more.
    log_trial(*odd, 2, status="FAILED", failure="disk", start=1000)
    ids["odd 2"] = log_trial(*odd, 2, frame=predictions(1.2, 2), start=2000, **given)
    log_trial(*odd, 2, status="RUNNING", start=3000)
    # A tuning trial is no trial of the answer.
    log_trial(client, second, parent, FE, 9, frame=predictions(1, 9), phase="tune", **given)

    ids["old"] = log_parent(client, first, "twice", "old", start=1)
    ids["new"] = log_parent(client, first, "twice", "new", start=2)
    ids["standalone"] = log_trial(
        client,
        first,
        None,
        FT,
        0,
        frame=predictions(2, 0, k=3),
        axes="dataset.shape=[1, 2], x=y",
        **given,
    )
    ids["stranger"] = client.create_run(first).info.run_id
    return client, ids

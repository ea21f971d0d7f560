"""Where MLflow's pages are opened."""

from mlflow import MlflowClient

from medtransfer.commands.ui import address


def test_pages_open_at_the_newest_study_and_at_the_start_where_there_is_none(home):
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    assert address(client, 5001) == "http://127.0.0.1:5001"
    experiment = client.create_experiment("medtransfer")
    ids = []
    for second in (1, 3, 2):
        made = client.create_run(experiment, start_time=1000 * second)
        client.set_tag(made.info.run_id, "medtransfer.phase", "study")
        ids.append(made.info.run_id)
    client.create_run(experiment, start_time=9000)
    assert address(client, 5001).endswith(f"/#/experiments/{experiment}/runs/{ids[1]}")

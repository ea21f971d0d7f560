"""An exported model answers a real request over HTTP, as MLflow serves it."""

from __future__ import annotations

import json
from urllib.request import Request, urlopen

import mlflow.pyfunc
import numpy as np
import pytest
import yaml

from medtransfer.deploy import exporting
from medtransfer.deploy.trained import open_trained
from medtransfer.tracking.store import open_client
from servers import model_server

SMALL = (
    *("backbone=timm", "backbone.name=test_resnet", "trainer=quick", "trainer.threads=1"),
    *("trainer.max_epochs=1", "dataset=phantom", "dataset.patients=36"),
    *("dataset.size=32", "dataset.image_size=32"),
)


@pytest.mark.enable_socket
def test_a_served_model_says_what_the_trial_says(cli, home, list_runs, tmp_path):
    assert cli("train", *SMALL).code == 0
    (run,) = list_runs()
    folder = tmp_path / "model"
    done = cli("export", run.info.run_id, "--format", "mlflow", "--out", folder)
    assert done.code == 0, done.err
    assert "mlflow models serve" in done.out
    assert (folder / exporting.CARD).is_file()
    about = yaml.safe_load((folder / "MLmodel").read_text())
    assert set(about["flavors"]) == {"onnx", "python_function"}  # nothing is pickled
    assert not list(folder.rglob("*.pkl"))
    assert "signature" in about
    assert about["saved_input_example_info"]

    client = open_client(f"sqlite:///{home}/mlflow.db")
    trained = open_trained(client, run.info.run_id, home)
    images = exporting.examples(3, 3, 32, seed=5)
    expected = trained.model.outputs(images)["scores"].detach().numpy()
    loaded = mlflow.pyfunc.load_model(str(folder)).predict({"image": images.numpy()})
    np.testing.assert_allclose(loaded["scores"], expected, atol=1e-4)
    with model_server(folder) as address:
        body = json.dumps({"inputs": {"image": images.tolist()}}).encode()
        request = Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            assert answer.status == 200
            told = json.loads(answer.read())
    np.testing.assert_allclose(told["predictions"]["scores"], expected, atol=1e-4)

"""Heads on features that are there already are trained by one thread."""

import pytest
import torch

from lives import Notebook, before_batch
from medtransfer.execution import execute


@pytest.mark.parametrize(
    ("overrides", "during"),
    [
        (["strategy=feature_extraction"], 1),
        (["strategy=feature_extraction", "features.mode=online"], 2),
        (["strategy=fine_tuning"], 2),
    ],
)
def test_only_networks_are_trained_by_all_threads(prepared, overrides, during):
    found = []
    trial = prepared(*overrides, "trainer.threads=2", "trainer.max_epochs=1")
    before = torch.get_num_threads()
    try:
        with before_batch(1, lambda _: found.append(torch.get_num_threads())):
            execute(trial, Notebook())
        assert (found, torch.get_num_threads()) == ([during], 2)
    finally:
        torch.set_num_threads(before)

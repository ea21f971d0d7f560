"""A sweep holds one trial at a time, however many it has."""

import gc

import pytest

from medtransfer import run
from medtransfer.tasks.base import Task

TINY = (
    *("backbone=timm", "backbone.name=test_resnet", "weights=random", "strategy=fine_tuning"),
    *("dataset.patients=36", "dataset.size=32", "dataset.image_size=32"),
    *("trainer.threads=1", "trainer.workers=0", "trainer.max_epochs=1", "trainer.checkpoint=none"),
)


@pytest.fixture
def alive(monkeypatch):
    """Return how many models there are each time that a trial is prepared."""
    found, usual = [], run.prepare

    def prepare(config):
        found.append(sum(1 for each in gc.get_objects() if isinstance(each, Task)))
        return usual(config)

    monkeypatch.setattr(run, "prepare", prepare)
    return found


def test_the_model_of_a_trial_is_gone_before_the_next_is_made(cli, alive):
    automatic = gc.isenabled()
    gc.disable()  # Python itself would come to it sooner or later
    try:
        assert cli("train", "-m", *TINY, "seed=range(0,4)").code == 0
    finally:
        if automatic:
            gc.enable()
    assert alive[-4:] == [0] * 4

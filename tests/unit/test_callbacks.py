"""What ends a training early."""

from types import SimpleNamespace

import pytest

from medtransfer.callbacks import Median


def watched(mode, others, values):
    """Return after which validation a training of these values was given up, or None."""
    median = Median("val/auroc", mode, others)
    for number, value in enumerate(values):
        trainer = SimpleNamespace(callback_metrics={"val/auroc": value}, should_stop=False)
        median.on_validation_end(trainer, None)
        assert trainer.should_stop == median.pruned
        if trainer.should_stop:
            return number
    return None


@pytest.mark.parametrize(("mode", "sign"), [("max", 1), ("min", -1)])
def test_a_training_below_the_median_of_the_others_is_given_up(mode, sign):
    others = [[sign * (level + 0.1 * step) for step in range(4)] for level in (0.3, 0.5, 0.7)]
    assert watched(mode, others, [sign * 0.2] * 4) == 1
    assert watched(mode, others, [sign * (0.9 + 0.1 * step) for step in range(4)]) is None


def test_the_first_validation_and_the_first_two_trainings_are_spared():
    assert watched("max", [[0.9, 0.9, 0.9]], [0.1, 0.1, 0.1]) is None
    assert watched("max", [[0.9, 0.9], [0.9, 0.9]], [0.1]) is None

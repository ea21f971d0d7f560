"""What one image takes: measured once for each network, and anew for another."""

from __future__ import annotations

import pytest

from lives import live
from medtransfer import evaluation


@pytest.fixture
def measured(monkeypatch):
    """Return the number of measurements, in a process that has made none."""
    monkeypatch.setattr(evaluation, "_latencies", {})
    inner, count = evaluation._measured_latency, [0]

    def counted(*arguments, **more):
        count[0] += 1
        return inner(*arguments, **more)

    monkeypatch.setattr(evaluation, "_measured_latency", counted)
    return count


def test_trials_of_one_network_share_what_an_image_takes(prepared, measured):
    first = live(prepared, "strategy=feature_extraction")
    other = live(prepared, "strategy=fine_tuning", "trainer.max_epochs=1")
    assert measured == [1]
    assert first.final["cost/latency_ms"] == other.final["cost/latency_ms"] > 0


@pytest.mark.parametrize(
    "change",
    [
        ("backbone.name=test_convnext",),
        ("trainer.precision=bf16",),
        ("strategy=classic_head", "strategy.kind=knn"),
        ("strategy=classic_head", "strategy.kind=random_forest", "strategy.trees=3"),
    ],
    ids=" ".join,
)
def test_another_network_is_measured_anew(prepared, measured, change):
    live(prepared, "strategy=feature_extraction")
    live(prepared, "strategy=feature_extraction", *change)
    assert measured == [2]

"""Pictures of the test's cases, as a user finds them in MLflow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

QUICK = ("trainer=quick", "trainer.max_epochs=1", "trainer.batch_size=6", "trainer.precision=fp32")
SEGMENTATION = ("task=segmentation", "head.widths=[16,16,8,8,8]")
DETECTION = ("task=detection", "head=retinanet", "head.levels.width=32", "head.levels.extra=0")


def picture(run) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"), "pictures", "test.png")


@pytest.mark.parametrize(
    ("task", "mode"),
    [((), "cached"), (SEGMENTATION, "cached"), (SEGMENTATION, "online"), (DETECTION, "cached")],
    ids=["class", "mask", "mask-online", "boxes"],
)
def test_a_tested_trial_has_a_picture_of_its_cases(cli, tiny, list_runs, task, mode):
    features = ("strategy=feature_extraction", f"features.mode={mode}")
    result = cli("train", *tiny, *QUICK, *task, "dataset.image_size=64", *features)
    assert result.code == 0, result.err
    (run,) = list_runs()
    with PILImage.open(picture(run)) as page:
        assert page.format == "PNG"
        assert 300 < page.width < 1600
        assert len(np.unique(np.asarray(page))) > 100  # images, and not an empty page


def test_what_is_not_tested_has_none(cli, tiny, list_runs):
    assert cli("train", *tiny, *QUICK, "test=false").code == 0
    (run,) = list_runs()
    assert not picture(run).exists()

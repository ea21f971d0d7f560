"""What every study in `conf/study` keeps."""

import pytest

from medtransfer.app import config_dir
from medtransfer.testing import check_study

STUDIES = sorted(path.stem for path in config_dir().glob("study/*.yaml") if path.stem != "none")
NEEDS = {"exam_pooling": ["dataset.images=3"]}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_can_be_planned_and_each_of_its_trials_could_start(name):
    plan = check_study(name, *NEEDS.get(name, []))
    assert plan.trials >= len(plan.jobs) > 1

"""The study `my_study` can be planned, and each of its trials could start."""

from pathlib import Path

from medtransfer.testing import check_study

HERE = Path(__file__).resolve().parents[1]


def test_it_plans_what_it_declares() -> None:
    """Every arm meets every value of the axes with every seed."""
    # change: add "dataset=YOURS", and trusted=("MODULE",) for classes of your own
    plan = check_study("my_study", config_dir=HERE / "conf")
    arms, fractions, seeds, draws = 2, 2, 5, 4
    assert len(plan.jobs) == arms * fractions * seeds
    assert plan.trials == len(plan.jobs) + arms * fractions * draws

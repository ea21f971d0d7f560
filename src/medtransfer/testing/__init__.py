"""Checks that a choice of your own keeps what the shipped ones keep, for tests beside it.

    from medtransfer.testing import check_strategy

    def test_it_keeps_the_contract():
        check_strategy("mine", config_dir="conf", trusted=("mine",))

`medtransfer new` writes such a test. The shipped choices are held to the same checks.
"""

from medtransfer.testing.datasets import check_dataset
from medtransfer.testing.strategies import check_strategy
from medtransfer.testing.studies import check_study

__all__ = ["check_dataset", "check_strategy", "check_study"]

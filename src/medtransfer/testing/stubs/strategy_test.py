"""The strategy `my_strategy` keeps what the shipped ones keep."""

import sys
from pathlib import Path

import pytest

from medtransfer.testing import check_strategy

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))  # where my_strategy.py lies


@pytest.mark.parametrize("network", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("key", ["strategy.groups=1", "strategy.groups=2"])
def test_it_keeps_the_contract(network: str, key: str) -> None:
    """What is declared learns, all else stays to the bit, resuming is exact."""
    check_strategy(
        "my_strategy", key, config_dir=HERE / "conf", trusted=("my_strategy",), networks=(network,)
    )

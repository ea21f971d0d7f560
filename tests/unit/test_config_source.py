import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hydra_plugins.medtransfer_configs.source import DEEPEST, measure
from medtransfer.app import App
from medtransfer.errors import ConfigError

LEAF = st.none() | st.integers() | st.text(max_size=3)
VALUES = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LEAF, inner, max_size=3)
)


def count(value):
    if isinstance(value, dict):
        return 1 + sum(count(k) + count(v) for k, v in value.items())
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


def depth(value):
    inner = [*value, *value.values()] if isinstance(value, dict) else value
    return 1 + max(map(depth, inner), default=0) if isinstance(value, dict | list) else 0


@given(VALUES)
def test_values_and_depth_are_those_that_would_be_built(value):
    assert measure(yaml.safe_dump(value)) == (count(value), depth(value))


def test_aliases_count_as_what_they_stand_for():
    assert measure("a: &x [1, 2]\nb: [*x, *x]\n") == (1 + 2 + 3 + 7, 2)


def test_what_would_fill_the_memory_is_told_at_once():
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    started = time.monotonic()
    assert measure("\n".join(lines))[0] > 2**60
    assert measure("[" * 10**6)[1] == DEEPEST + 1
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", ["/../outside", "../../outside@dataset"])
def test_a_config_file_does_not_climb_out_of_its_folder(tmp_path, name):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "outside.yaml").write_text("a: 1\n")
    text = f"# @package _global_\n# Mine.\ndefaults: ['{name}']\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(text)
    with App.open("train", tmp_path / "own") as app, pytest.raises(ConfigError, match="outside"):
        app.compose(["experiment=mine"])

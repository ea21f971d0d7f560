"""The linear head: shapes, standardised features, and the values that it refuses."""

from __future__ import annotations

import pytest
import torch

from medtransfer.components import build
from medtransfer.errors import ConfigError
from medtransfer.heads.base import Head

NODE = {"_target_": "medtransfer.heads.linear.Linear", "norm": "batch", "dropout": 0.0}


def make(outputs: int = 3, **changed) -> Head:
    torch.manual_seed(0)
    return build({**NODE, **changed}, Head, in_features=8, outputs=outputs)


@pytest.mark.parametrize("outputs", [1, 2, 7])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("cases", [1, 5])
def test_it_gives_one_column_for_each_output(outputs, norm, cases):
    assert make(outputs, norm=norm).eval()(torch.rand(cases, 8)).shape == (cases, outputs)


def test_features_of_any_scale_are_standardised_by_the_batch():
    head, features = make(), torch.randn(64, 8)
    seen = []
    head.linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    head(features * torch.logspace(-1, 4, 8) + 50)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(8), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen[0].std(0, correction=0), torch.ones(8), atol=2e-3, rtol=0)


def test_the_standardisation_itself_learns_nothing():
    assert {name for name, _ in make().named_parameters()} == {"linear.weight", "linear.bias"}


def test_without_norm_features_are_taken_as_they_are():
    head, features = make(norm="none"), 100 * torch.rand(4, 8)
    expected = features @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(features), expected)
    assert not list(head.buffers())


def test_dropout_acts_in_training_only():
    head, features = make(norm="none", dropout=0.5), torch.ones(8, 8)
    assert len(head(features).unique(dim=0)) > 1
    assert len(head.eval()(features).unique(dim=0)) == 1


@pytest.mark.parametrize(
    ("key", "value"), [("norm", "layer"), ("dropout", 1.0), ("dropout", -0.1), ("dropout", "some")]
)
def test_values_without_meaning_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"head\.{key}"):
        make(**{key: value})


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'head\.drop_out' is unknown.*did you mean 'dropout'"):
        make(drop_out=0.1)

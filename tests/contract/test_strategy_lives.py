"""How every strategy begins, goes on after an interruption, and ends."""

from __future__ import annotations

from test_strategies import every_network, every_stepped, every_strategy

from medtransfer.testing import strategies as checks


@every_network
@every_stepped
def test_resumed_after_any_epoch_it_ends_where_it_would_have(name, network, makes):
    checks.goes_on_where_it_stopped(makes(name, network))


@every_network
@every_strategy
def test_what_is_kept_at_the_end_is_a_plain_network(name, network, begun):
    checks.ends_as_a_plain_network(begun(name, network))


@every_network
@every_strategy
def test_the_certificate_lists_every_number_once(name, network, begun):
    checks.is_certified(begun(name, network))


@every_network
@every_stepped
def test_the_certificate_holds_over_a_training(name, network, begun):
    checks.certificate_holds(begun(name, network))


@every_network
@every_strategy
def test_the_certificate_finds_any_frozen_value_that_changed(name, network, begun):
    checks.certificate_finds_changes(begun(name, network))

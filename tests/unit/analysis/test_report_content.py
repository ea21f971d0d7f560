"""What the report says: budgets, gaps, methods, checklists, tables."""

from dataclasses import replace

import made_up
import pytest
from made_up import FE, FT, LPFT

from medtransfer.analysis.report import tables
from medtransfer.analysis.report.checklist import checklist
from medtransfer.analysis.report.facts import ahead, budgets, central, gaps, names, price, told
from medtransfer.analysis.report.markdown import markdown
from medtransfer.analysis.report.method import REFERENCES, method, references
from medtransfer.analysis.report.plots import _apart, _front, log_ticks
from medtransfer.analysis.report.words import listed, milliseconds, whole
from medtransfer.analysis.results import Spent


@pytest.fixture(scope="module")
def full():
    return made_up.results()


def spent(arm, **changed):
    given = {
        "tuning_trials": 8,
        "final_trials": 5,
        "failed": 0,
        "steps": 1300.0,
        "seconds": 10.0,
        "validations": 130.0,
        "test_openings": 5,
    }
    return Spent(arm, **{**given, **changed})


def test_equal_budgets_are_told_from_the_numbers():
    equal, told = budgets([spent("a"), spent("b", seconds=900.0)])
    assert equal
    assert told == (
        "Equal in all arms: 8 trials of tuning.",
        "Equal in all arms: 5 final trials.",
        "Equal in all arms: 100 optimiser steps a trial.",
        "Equal in all arms: 10 looks at validation data a trial.",
        "Test data were opened at most once in each final trial, and in no other.",
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tuning_trials": 4, "steps": 900.0, "validations": 90.0}, "trials of tuning are 8 (a)"),
        ({"final_trials": 4, "steps": 1200.0, "validations": 120.0}, "final trials are 5 (a) and"),
        ({"steps": 2600.0}, "optimiser steps a trial are 100 (a) and 200 (b)"),
        ({"validations": 1300.0}, "looks at validation data a trial are 10 (a) and 100 (b)"),
    ],
)
def test_unequal_budgets_are_said(changed, words):
    equal, told = budgets([spent("a"), spent("b", **changed)])
    assert not equal
    assert any(f"NOT equal: {words}" in each for each in told)


def test_arms_with_nothing_to_tune_are_exempt_and_named():
    idle = spent("b", tuning_trials=0, steps=500.0, validations=50.0)
    equal, told = budgets([spent("a"), idle])
    assert equal
    assert "Exempt from tuning, for want of anything to tune: b." in told
    equal, told = budgets([spent("a"), spent("solved", steps=0.0)])
    assert equal
    assert any("None of them: solved" in each for each in told)


def test_test_data_opened_too_often_are_told():
    _, told = budgets([spent("a"), spent("b", test_openings=9)])
    assert any("b (9 in 5 trials)" in each for each in told)


def test_gaps_say_which_seed_and_why(full):
    ((row, why),) = gaps(full)
    assert (row.arm, dict(row.axes), why) == (LPFT, {"dataset.fraction": "0.1"}, {"3": "failed"})
    table = tables.grid(full)
    assert (LPFT, "4 of 5: seed 3 failed", "5 of 5", "5 of 5") in table.rows
    never = replace(full, failures=())
    assert "4 of 5: seed 3 missing" in {cell for row in tables.grid(never).rows for cell in row}
    complete = replace(full, arms=tuple(row for row in full.arms if not row.incomplete))
    assert tables.grid(complete).rows == ()


def test_an_incomplete_arm_is_marked_where_its_mean_stands(full):
    table = tables.arms(full)
    marked = [row[0] for row in table.rows if "4* (1 failed)" in row]
    assert marked == [LPFT]
    assert table.note == "* lacks seeds that other arms have"


def test_costs_that_nobody_measured_take_no_room(full):
    costs = tuple(replace(row, cost={"train_seconds": 3.0}) for row in full.arms)
    assert tables.arms(replace(full, arms=costs)).numbers == (
        *("AUROC", "95 % CI", "Seeds", "Training"),
    )


def test_the_price_is_that_of_the_arm_that_is_ahead(full):
    text = price(full, full.primary)
    assert text.startswith(f"{FT} against {FE}: 12 times the training time (2.5 min against 12 s)")
    assert "23.5 M against 2.0 k" in text
    assert text.endswith("about the same latency of an image.")
    turned = replace(full.primary, a=FE, b=FT, diff=-0.04)
    assert price(full, turned) == text
    lower = replace(full, metric="brier")
    assert ahead(lower, full.primary) == (FE, FT)
    assert price(replace(full, arms=()), full.primary) == ""


def test_the_central_contrast_is_the_declared_one_or_the_headlines(full):
    assert central(full) is full.primary
    undeclared = made_up.bare()
    assert (central(undeclared).a, central(undeclared).b) == (FT, FE)
    assert central(replace(full, primary=None)) is None  # declared, and not tested


def test_many_contrasts_are_told_by_the_best_arm():
    results = made_up.large(settings=1, arms=7)
    assert len(told(results.contrasts, results.arms)) == 6
    six = made_up.large(settings=1, arms=6)
    assert len(told(six.contrasts, six.arms)) == 15


def test_arms_come_in_the_declared_order(full):
    assert names(full) == made_up.ARMS
    assert names(replace(full, protocol={})) == tuple(sorted(made_up.ARMS))
    assert names(replace(full, protocol={"arms": {"gone": [], FT: []}}))[0] == FT


def test_external_results_stand_beside_the_internal_ones(full):
    rows = {row[0]: row for row in tables.external(full).rows}
    assert rows[FT][2] == "0.842"
    assert rows[FT][4:6] == ("0.902", "-0.060")


def test_the_method_is_true_to_the_protocol(full):
    text = " ".join(method(full))
    for words in (
        "medtransfer 0.1.0 compared 3 arms",
        "dataset.fraction in {0.1, 0.3, 1.0}, with 5 seeds each",
        f"was {FT} against {FE} at dataset.fraction=1.0",
        "with 8 trials in each setting of the data",
        "drawn at random ahead of all trials",
        "without pruning",
        "limited to 150 optimiser steps",
        "corrected for 8 secondary contrasts",
        "44 of 45 trials finished",
    ):
        assert words in text, words
    adaptive = {"search": {"sampler": "tpe", "pruner": "median"}}
    text = " ".join(method(replace(full, protocol={**full.protocol, **adaptive})))
    assert "Parzen" in text
    assert "pruned by the pruner median" in text
    assert "without pruning" not in text
    untuned = {**full.protocol, "budget": {"trials": 0}}
    assert "No arm was tuned" in " ".join(method(replace(full, protocol=untuned)))


def test_an_older_study_claims_nothing_of_its_protocol():
    text = " ".join(method(made_up.bare()))
    for word in ("tuned", "beforehand", "external", "temperature", "primary", "None", "null"):
        assert word not in text, word


def test_references_are_those_of_the_text_and_each_can_be_reached(full):
    found = references(full)
    assert any(each.startswith("Satterthwaite") for each in found)
    assert not any(each.startswith("Bergstra") for each in references(made_up.bare()))
    assert {*found} == {*REFERENCES.values()}
    assert len(found) == len({*found})


def test_the_checklist_names_sections_that_are_there(full):
    table = checklist({"arms", "method", "external"})
    assert {len(row) for row in table.rows} == {5}
    by_claim = {row[0]: row for row in table.rows}
    assert by_claim["33"][3] == "external"
    assert by_claim["39"][3:] == ("", "left to you")
    assert by_claim["27"][4] == "left to you (none is made here)"
    numbers = [n for row in table.rows for n in row[0].replace("-", ", ").split(", ") if n]
    assert numbers == sorted(numbers, key=int)
    assert int(numbers[-1]) == 44
    without = {row[0]: row for row in checklist(set()).rows}
    assert without["33"][3:] == ("", "left to you")


def test_the_markdown_holds_the_short_form(full):
    text = markdown(*made_up.drawn())
    for heading in (
        *("Primary contrast", "Contrasts", "Learning curves", "External data", "Budget"),
        *("Calibration", "Incomplete grid", "How this was computed", "Failures", "Waivers"),
    ):
        assert f"\n## {heading}\n" in text
    assert "## Environment" not in text
    assert "![Reliability](figures/chart-reliability.svg)" in text
    assert "| better | +0.041 (95 % CI 0.012 to 0.070, over cases and seeds) | 0.006" in text
    for table in (block for block in text.split("\n\n") if block.startswith("|")):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_hostile_names_stay_in_their_cells_of_markdown():
    text = markdown(*made_up.attacked())
    assert "<" not in text
    for table in (block for block in text.split("\n\n") if block.startswith("|")):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_front_holds_what_nothing_cheaper_equals():
    points = [(1.0, 0.7), (2.0, 0.6), (3.0, 0.9), (3.0, 0.8), (9.0, 0.9)]
    assert _front(points, lower=False) == [(1.0, 0.7), (3.0, 0.9)]
    assert _front(points, lower=True) == [(1.0, 0.7), (2.0, 0.6)]


def test_points_at_one_place_are_moved_apart():
    assert _apart([5.0, 5.0, 5.0, 80.0], 1.1) == pytest.approx([5.0, 5.5, 6.05, 80.0])


@pytest.mark.parametrize(
    ("lo", "hi"), [(900, 1400), (1, 1e7), (0.1, 1.0), (40.9, 43.4), (7, 12), (1e3, 1e12)]
)
def test_a_logarithmic_axis_has_two_to_six_round_labels(lo, hi):
    ticks = log_ticks(lo, hi)
    assert 2 <= len(ticks) <= 6
    assert all(lo <= tick <= hi for tick in ticks)


def test_words():
    assert [milliseconds(v) for v in (None, 3.14, 41.6, 1200)] == ["-", "3.1 ms", "42 ms", "1.2 s"]
    assert [whole(v) for v in (None, 150, 12400.0)] == ["-", "150", "12\N{NO-BREAK SPACE}400"]
    assert [listed(v) for v in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        *("", "a", "a and b", "a, b and c")
    ]

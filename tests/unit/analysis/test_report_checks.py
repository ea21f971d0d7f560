"""The headline's contrast seen by other methods."""

import re

import pytest
from simulated import FE, FT, stored, study

from medtransfer.analysis.cases import Cases
from medtransfer.analysis.compare import compare
from medtransfer.analysis.report.build import build
from medtransfer.analysis.report.checks import checks
from medtransfer.analysis.report.write import read, write


def told(made):
    (contrast,) = compare(made).contrasts
    return {check.name: check.told for check in checks(made, contrast, Cases.of(made))}


def test_a_plain_difference_is_one_by_every_method():
    found = told(study({FE: 0.5, FT: 4.0}, range(6)))
    assert "6 of these seeds would have favoured A, 0 B and 0 neither" in found["Each seed alone"]
    assert found["Seeds by signs"].startswith("exact sign-flip test over seeds: p 0.031")
    assert found["Seeds by signs"].endswith("cannot be less than 0.031")
    lo, hi = map(float, re.findall(r"-?\d\.\d+", found["Bootstrap"])[-2:])
    (contrast,) = compare(study({FE: 0.5, FT: 4.0}, range(6))).contrasts
    assert 0 < lo < contrast.diff < hi
    assert "100 % above 0.01" in found["Equivalence"]


def test_a_wide_region_makes_equivalence_of_a_small_difference():
    found = told(study({FE: 1.0, FT: 1.02}, range(5), rope=0.2))
    assert "within ±0.2 with p <0.001" in found["Equivalence"]
    assert "100 % within" in found["Equivalence"]


def test_without_cases_only_what_seeds_can_tell_is_told():
    made = study({FE: 1.0, FT: 2.0}, range(4))
    found = told(type(made)(**{**vars(made), "predictions": stored({})}))
    assert set(found) == {"Equivalence", "Seeds by signs"}


def test_the_report_tells_them_and_equal_studies_the_same(tmp_path):
    made = study({FE: 1.0, FT: 2.0}, range(4))
    results = build(made)
    assert results.checks == build(made).checks
    write(results, tmp_path)
    assert read(tmp_path / "results.json") == results
    for name in ("report.md", "report.html"):
        assert "would have favoured A" in (tmp_path / name).read_text()


@pytest.mark.parametrize("seeds", [1, 25])
def test_too_few_or_too_many_seeds_for_signs_are_passed_over(seeds):
    assert "Seeds by signs" not in told(study({FE: 1.0, FT: 2.0}, range(seeds)))

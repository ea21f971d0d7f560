import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.model_selection import LeaveOneGroupOut

from medtransfer.components import build
from medtransfer.data.splits import SPLITS, Split, divide, merge_groups, sides
from medtransfer.errors import DataError, LeakageError

RATIOS = (0.6, 0.15, 0.25)


def split_of(kind="column", **keys):
    keys = {"column": "site"} | keys if kind == "column" else keys
    return Split(**{"kind": kind, "seed": 0, "file": None, "ratios": RATIOS} | keys)


def cohort(n=40):
    ids = [f"i{i}" for i in range(n)]
    return ids, ids, [i % 2 for i in range(n)], ["class0", "class1"]


SITES = [f"site{i // 8}" for i in range(40)]


def by_column(values=SITES, samples=None, **keys):
    return divide(split_of(**keys), *(samples or cohort()), columns={"site": values})


def test_sites_are_held_out_as_scikit_learn_does():
    held_out = [test for _, test in LeaveOneGroupOut().split(SITES, groups=SITES)]
    for site, expected in zip(sorted(set(SITES)), held_out, strict=True):
        assert np.array_equal(by_column(test=(site,)).test, expected)


def test_val_is_drawn_from_the_rest_by_the_ratios_and_stratified():
    division = by_column(test="site0")
    assert len(division.val) == round(32 * 0.15 / 0.75)
    assert [sum(i % 2 for i in side) for side in (division.train, division.val)] == [13, 3]
    other = by_column(test="site0", seed=1)
    assert np.array_equal(other.test, division.test)
    assert other.hash != division.hash


def test_val_may_be_values_too_and_numbers_are_values():
    years = [str(2015 + i // 8) for i in range(40)]
    division = by_column(years, test=2019, val=[2018])
    assert [len(getattr(division, name)) for name in SPLITS] == [24, 8, 8]
    assert {years[i] for i in division.val} == {"2018"}
    assert {years[i] for i in division.test} == {"2019"}


@pytest.mark.parametrize("val", ["val", "validation", "Valid", "DEV"])
def test_a_column_may_say_the_splits_itself(val):
    values = ["Training", "train", "train", val, "testing", "TEST"] * 6 + ["train"] * 4
    # both classes are in each split: positions 3 and 4 of six are even and odd in turn
    ids, groups, _, names = cohort()
    samples = (ids, groups, [i // 6 % 2 for i in range(40)], names)
    division = by_column(values, samples)
    assert list(division.val) == [i for i, value in enumerate(values) if value == val]
    assert list(division.test) == [i for i, v in enumerate(values) if v.lower().startswith("test")]


def test_a_column_that_says_train_and_test_leaves_val_to_the_ratios():
    values = ["train", "train", "train", "test"] * 10
    ids, groups, _, names = cohort()
    division = by_column(values, (ids, groups, [i // 4 % 2 for i in range(40)], names))
    assert [len(getattr(division, name)) for name in SPLITS] == [24, 6, 10]
    assert {values[i] for i in division.val} == {"train"}


@pytest.mark.parametrize(
    ("values", "keys", "message"),
    [
        (SITES, {"column": "sit", "test": "site0"}, "no column 'sit'; did you mean 'site'"),
        (SITES, {"test": "sitee4"}, "test names 'sitee4', and no sample .*'site4'"),
        (SITES, {"test": "site0", "val": "x"}, "val names 'x', and no sample"),
        (SITES, {"test": ["site0", "site1"], "val": ["site1"]}, "'site1' .* in both"),
        (SITES, {}, "says 'site0', which names no split"),
        (["train", "tets"] * 20, {}, "says 'tets', which names no split; did you mean 'test'"),
        (["train", "val"] * 20, {}, "leaves split 'test' empty"),
        (["val", "test"] * 20, {}, "leaves split 'train' empty"),
        (SITES, {"test": [f"site{i}" for i in range(5)]}, "leaves split 'train' empty"),
        (["a"] * 39 + ["b"], {"test": "b"}, "'class0' has no image in split 'test'"),
        (
            ["a"] * 37 + [""] * 2 + ["b"],
            {"test": "b"},
            "'i37' has no value .*, and 1 more have none",
        ),
        (["a"] * 39 + [" "], {"test": "a"}, "'i39' has no value in column 'site'"),
    ],
)
def test_a_column_that_cannot_be_used_is_the_users_mistake(values, keys, message):
    with pytest.raises(DataError, match=message) as error:
        by_column(values, **keys)
    assert error.value.exit_code == 2
    assert error.value.remedy


def test_unknown_values_and_columns_come_with_choices():
    with pytest.raises(DataError) as error:
        by_column(test="other")
    assert error.value.choices == ("site0", "site1", "site2", "site3", "site4")
    with pytest.raises(DataError) as error:
        by_column([f"many{i}" for i in range(40)], test="many")
    assert len(error.value.choices) == 5
    with pytest.raises(DataError, match="has no column 'site'") as error:
        divide(split_of(test="a"), *cohort())
    assert not error.value.choices


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "column", "column": None}, "split.column go together"),
        ({"kind": "holdout", "column": "site"}, "split.column go together"),
        ({"kind": "holdout", "test": "a"}, "values of split.column"),
        ({"kind": "column", "val": "a"}, "split.test none"),
        ({"kind": "column", "test": []}, "at least 1 item"),
        ({"kind": "column", "test": True}, "valid string"),
        ({"kind": "holdout", "index": 2}, "index=2 is one of the folds"),
        ({"kind": "kfold", "index": -1}, "greater than or equal to 0"),
        ({"kind": "kfold", "index": 10_000}, "less than 10000"),
        ({"kind": "kfold", "folds": 1}, "greater than or equal to 2"),
        ({"kind": "holdout", "leaks": "ignore"}, "'refuse' or 'drop'"),
        ({"kind": "holdout", "duplicates": "all"}, "'exact' or 'near'"),
    ],
)
def test_keys_that_do_not_go_together_are_refused_before_any_data(keys, message):
    with pytest.raises(ValidationError, match=message):
        split_of(**keys)


LISTS = {"train": ["i0", "i1", "i2", "i3"], "val": ["i4", "i5"], "test": ["i6", "i7"]}


def own(groups=None, lists=LISTS, leaks="refuse", **more):
    ids, plain, targets, names = cohort(8)
    split = split_of("own", leaks=leaks, duplicates=more.pop("duplicates", "exact"))
    return divide(split, ids, groups or plain, targets, names, lists=lists, **more)


def test_lists_of_unknown_names_are_refused():
    with pytest.raises(DataError, match="'vall' of the dataset's lists is no split; did you"):
        own(lists={"train": ["i0"], "vall": ["i1"], "test": ["i2"]})
    with pytest.raises(DataError, match=r"split 'val' .* is empty"):
        own(lists={"train": ["i0"], "test": ["i2"]})


def test_a_file_in_which_a_split_is_no_list_is_refused(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(LISTS | {"val": "i4"}))
    with pytest.raises(DataError, match="TypeError: 'val' is no list"):
        divide(split_of("file", file=path), *cohort(8))


# i0 in train and i6 in test are of one group; what else they have in common decides the code
CUT = ["g", "i1", "i2", "i3", "i4", "i5", "g", "i7"]
APART = [f"i{i}" for i in range(8)]


@pytest.mark.parametrize(
    ("known", "duplicates", "code"),
    [
        ({}, "exact", "patient_overlap"),
        ({"patients": CUT, "contents": APART}, "near", "patient_overlap"),
        ({"patients": APART, "exams": CUT, "contents": APART}, "near", "exam_overlap"),
        ({"patients": APART, "exams": APART, "contents": CUT}, "near", "exact_duplicates"),
        ({"patients": APART, "exams": APART, "contents": APART}, "near", "near_duplicates"),
        # linked by a third image that is in no list
        ({"patients": APART, "exams": APART, "contents": APART}, "exact", "exact_duplicates"),
    ],
)
def test_a_leak_names_its_code_and_is_waived_by_it(known, duplicates, code):
    more = known | {"duplicates": duplicates}
    with pytest.raises(LeakageError, match=r"'i0' \(train\) and 'i6' \(test\)") as error:
        own(CUT, **more)
    assert f"audit.waive=[{code}]" in error.value.remedy
    assert "dataset.split.leaks=drop" in error.value.remedy
    others = {"patient_overlap", "exam_overlap", "exact_duplicates", "near_duplicates"} - {code}
    with pytest.raises(LeakageError):
        own(CUT, **more, waived=others)
    waived = own(CUT, **more, waived=frozenset({code}))
    assert waived.hash == own().hash
    assert waived.dropped == 0


def test_exams_that_are_counted_for_each_patient_are_no_leak():
    exams = ["first", "second"] * 4
    assert own(exams=exams).hash == own().hash
    with pytest.raises(LeakageError) as error:
        own(CUT, exams=exams)
    assert "audit.waive=[patient_overlap,exam_overlap]" in error.value.remedy


def test_one_error_names_every_leak_and_counts_them():
    groups = ["g", "h", "k", "i3", "k", "i5", "g", "h"]
    contents = ["g", "h", "i2", "i3", "i4", "i5", "g", "h"]
    patients = ["i0", "i1", "k", "i3", "k", "i5", "i6", "i7"]
    with pytest.raises(LeakageError) as error:
        own(groups, patients=patients, contents=contents)
    assert "audit.waive=[patient_overlap,exact_duplicates]" in error.value.remedy
    assert "are of one patient" in error.value.problem
    assert "(1 more such)" in error.value.problem


@given(
    st.lists(
        st.tuples(*[st.integers(0, 5)] * 3, st.sampled_from([*SPLITS, ""])), min_size=3, max_size=12
    )
)
def test_codes_are_those_of_pairs_across_splits(rows):
    rows = [*rows, *((9 + i, 9 + i, 9 + i, name) for i, name in enumerate(SPLITS))]
    patients = [f"p{row[0]}" for row in rows]
    contents = [f"c{row[1]}" for row in rows]
    # exams are counted for each patient
    exams = [f"{row[0]}e{row[2]}" for row in rows]
    ids = [f"i{i}" for i in range(len(rows))]
    lists = {s: [i for i, row in zip(ids, rows, strict=True) if row[3] == s] for s in SPLITS}
    groups = merge_groups(patients, contents)
    across = [
        (i, j)
        for i, j in combinations(range(len(rows)), 2)
        if "" not in (rows[i][3], rows[j][3]) and rows[i][3] != rows[j][3]
    ]
    expected = {
        code
        for code, values in (
            ("patient_overlap", patients),
            ("exam_overlap", exams),
            ("exact_duplicates", contents),
        )
        if any(values[i] == values[j] for i, j in across)
    }
    direct = {groups[i] for i, j in across if patients[i] == patients[j]}
    direct |= {groups[i] for i, j in across if contents[i] == contents[j]}
    if any(groups[i] == groups[j] and groups[i] not in direct for i, j in across):
        expected.add("exact_duplicates")
    known = {"patients": patients, "exams": exams, "contents": contents, "lists": lists}
    arguments = split_of("own"), ids, groups, [0] * len(ids), ["image"]
    if not expected:
        divide(*arguments, **known)
        return
    with pytest.raises(LeakageError) as error:
        divide(*arguments, **known)
    waive = error.value.remedy.split("audit.waive=[")[1].rstrip("]").split(",")
    assert set(waive) == expected
    divide(*arguments, **known, waived=waive)
    kept = divide(split_of("own", leaks="drop"), *arguments[1:], **known)
    sides_of = {g: {rows[i][3] for i in range(len(rows)) if groups[i] == g} - {""} for g in groups}
    latest = {g: max(s, key=SPLITS.index) for g, s in sides_of.items() if s}
    for name in SPLITS:
        # the latest side stays whole, the others lose what crosses, and nothing is added
        assert [ids[i] for i in getattr(kept, name)] == [
            i for i, g in zip(ids, groups, strict=True) if i in lists[name] and latest[g] == name
        ]
    listed = sum(map(len, lists.values()))
    assert kept.dropped == listed - sum(len(getattr(kept, name)) for name in SPLITS) > 0


def test_dropping_can_empty_a_split_and_says_so():
    groups = ["g", "h", "i2", "i3", "g", "h", "g", "h"]
    with pytest.raises(DataError, match="split 'val' has no image, once 4 images are left out"):
        own(groups, leaks="drop")


def test_a_returning_patient_is_tested_and_not_learned_from_nor_counted_for_val():
    years = ["2018"] * 30 + ["2019"] * 10
    ids, _, targets, names = cohort()
    groups = [f"p{i % 30}" for i in range(40)]  # the first ten come back
    samples = (ids, groups, targets, names)
    with pytest.raises(LeakageError, match="in different splits of column 'site' \\(9 more such"):
        by_column(years, samples, test="2019")
    for seed in range(5):
        division = by_column(years, samples, test="2019", leaks="drop", seed=seed)
        assert list(division.test) == list(range(30, 40))
        assert len(division.val) == 4
        assert sorted([*division.train, *division.val]) == list(range(10, 30))
        assert division.dropped == 10


def test_sides_are_what_the_split_says_before_leaks_are_looked_for():
    ids, _, targets, names = cohort(8)
    lists = LISTS | {"train": ["i0", "i1", "i2"]}
    for leaks in ("refuse", "drop"):
        split = split_of("own", leaks=leaks)
        found = sides(split, ids, CUT, targets, names, lists=lists, columns=None)
        assert found == ["train"] * 3 + [""] + ["val"] * 2 + ["test"] * 2


def test_the_keys_of_a_split_are_read_from_a_configuration():
    node = {"_target_": "medtransfer.data.splits.Split", "kind": "column", "seed": 0, "file": None}
    node |= {"ratios": [0.6, 0.15, 0.25], "column": "year", "test": [2019, "2020"], "val": "2018"}
    split = build(node, Split)
    assert split.test == ("2019", "2020")
    assert split.val == ("2018",)

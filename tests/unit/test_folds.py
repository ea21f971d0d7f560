from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from medtransfer.data.folds import deal
from medtransfer.data.splits import SPLITS, Split, divide, strata
from medtransfer.errors import DataError

RATIOS = (0.6, 0.15, 0.25)


def kfold(folds=5, index=0, seed=0):
    return Split(kind="kfold", seed=seed, file=None, ratios=RATIOS, folds=folds, index=index)


def holdout(seed=0):
    return Split(kind="holdout", seed=seed, file=None, ratios=RATIOS)


@st.composite
def cohorts(draw, classes_of_group=1):
    """Draw samples of patients in any order, and a number of folds that they suffice for."""
    folds = draw(st.integers(2, 6))
    samples = []
    for label in range(draw(st.integers(1, 3))):
        for number in range(draw(st.integers(max(folds, 4), 14))):
            group = f"c{label}p{number}"
            for i in range(draw(st.integers(1, 3))):
                other = draw(st.integers(0, classes_of_group - 1))
                samples.append((f"{group}i{i}", group, label if i == 0 else max(0, label - other)))
    samples = draw(st.permutations(samples))
    return folds, [list(column) for column in zip(*samples, strict=True)]


def divided(split, samples):
    ids, groups, targets = samples
    names = [f"class{label}" for label in range(max(targets) + 1)]
    return divide(split, ids, groups, targets, names)


@given(cohorts(classes_of_group=2), st.integers(0, 2), st.integers(0, 3))
def test_every_group_is_tested_once_in_each_repeat(cohort, repeat, seed):
    folds, samples = cohort
    ids, groups, targets = samples
    # no class is required: one that shows only beside others may miss a split
    divisions = [
        divide(kfold(folds, repeat * folds + fold, seed), ids, groups, targets, ())
        for fold in range(folds)
    ]
    tested = [{groups[i] for i in division.test} for division in divisions]
    assert Counter(g for fold in tested for g in fold) == Counter(set(groups))
    for division in divisions:
        sides = [{groups[i] for i in getattr(division, name)} for name in SPLITS]
        assert sum(map(len, sides)) == len(set(groups))
        assert sum(len(getattr(division, name)) for name in SPLITS) == len(groups)


@given(cohorts(), st.integers(0, 12))
def test_every_fold_shows_every_class_that_has_as_many_groups(cohort, index):
    folds, samples = cohort
    _, groups, targets = samples
    division = divided(kfold(folds, index), samples)
    for name in SPLITS:
        assert {targets[i] for i in getattr(division, name)} == set(targets)
    for label in set(targets):
        total = len({g for g, t in zip(groups, targets, strict=True) if t == label})
        tested = len({groups[i] for i in division.test if targets[i] == label})
        assert total // folds <= tested <= -(-total // folds)
        val = len({groups[i] for i in division.val if targets[i] == label})
        rest = total - tested
        if rest * 0.2 >= 1:  # else it gets one
            assert abs(val - rest * 0.2) < 1


@given(
    st.lists(st.tuples(st.sampled_from([(0,), (1,), (0, 1)]), st.integers(1, 3)), min_size=4),
    st.integers(2, 6),
    st.integers(0, 3),
)
def test_of_two_classes_none_is_missing_also_where_patients_have_both(patients, parts, seed):
    rows = [(f"p{i}", t) for i, (shown, n) in enumerate(patients) for t in shown * n]
    groups, targets = [g for g, _ in rows], [t for _, t in rows]
    owners = {t: {g for g, other in rows if other == t} for t in (0, 1)}
    assume(min(map(len, owners.values())) >= parts)
    part = deal(groups, targets, [1 / parts] * parts, key=(seed,))
    for members in owners.values():
        assert {part[group] for group in members} == set(range(parts))


@given(st.lists(st.integers(0, 2), min_size=15, max_size=60), st.integers(2, 5))
def test_folds_of_single_images_hold_as_many_of_each_class_as_scikit_learns(targets, folds):
    assume(min(np.bincount(targets)[np.unique(targets)]) >= max(folds, 4))
    ids = [f"i{i}" for i in range(len(targets))]
    names = [f"class{label}" for label in range(3)][: max(targets) + 1]
    assume(len(set(targets)) == len(names))
    tested = [divide(kfold(folds, i), ids, ids, targets, names).test for i in range(folds)]
    theirs = [test for _, test in StratifiedKFold(folds).split(ids, targets)]
    for label in set(targets):
        ours, expected = (
            sorted(sum(targets[i] == label for i in fold) for fold in division)
            for division in (tested, theirs)
        )
        assert ours == expected
    # what is left over of each class does not pile up in one fold
    assert max(map(len, tested)) - min(map(len, tested)) <= 1


def images(n=60):
    ids = [f"i{i}" for i in range(n)]
    return [ids, ids, [i % 2 for i in range(n)]]


def test_repeats_and_seeds_are_drawn_anew():
    hashes = {
        divided(kfold(5, index, seed), images()).hash for index in range(15) for seed in (0, 1)
    }
    assert len(hashes) == 30


@given(cohorts(), st.randoms())
def test_folds_do_not_depend_on_the_order_of_the_samples(cohort, random):
    folds, samples = cohort
    order = list(range(len(samples[0])))
    random.shuffle(order)
    shuffled = [[column[i] for i in order] for column in samples]
    assert divided(kfold(folds), samples).hash == divided(kfold(folds), shuffled).hash


def test_published_folds_stay_what_they_were():
    assert [divided(kfold(5, i), images()).hash for i in (0, 7)] == [
        "a13fd60411a97a0d",
        "d8ce094ac497a9b1",
    ]


@pytest.mark.parametrize(("folds", "n"), [(5, 4), (2, 3), (10, 9)])
def test_a_class_with_too_few_groups_is_named(folds, n):
    ids = [f"i{i}" for i in range(30 + n)]
    samples = [ids, ids, [0] * 30 + [1] * n]
    for index in range(folds):
        with pytest.raises(DataError, match=f"class 'class1' has {n} independent groups") as error:
            divided(kfold(folds, index), samples)
        assert "dataset.split.folds" in error.value.remedy
    with pytest.raises(DataError, match=f"there are {n} independent groups"):
        divide(kfold(folds), ids[:n], ids[:n], [0] * n, ())


def multilabel(seed, n=1500):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 8)) < np.geomspace(0.3, 0.01, 8)).astype(np.int64)
    labels[rng.random(labels.shape) < 0.2] = -1
    ids = [f"i{i}" for i in range(n)]
    return labels, ids, [f"p{k}" for k in rng.integers(0, n * 2 // 3, n)]


def prevalence(labels):
    return (labels == 1).sum(axis=0) / (labels >= 0).sum(axis=0)


@pytest.mark.parametrize("split", [holdout(), kfold()], ids=["holdout", "kfold"])
def test_labels_are_as_common_in_each_split_as_in_the_whole(split):
    drawn = {"strata": [], "nothing": []}
    for seed in range(5):
        labels, ids, groups = multilabel(seed)
        for what, targets in (("strata", strata(labels).tolist()), ("nothing", [0] * len(ids))):
            division = divide(split, ids, groups, targets, ())
            drawn[what].append(
                [prevalence(labels[getattr(division, s)]) / prevalence(labels) for s in SPLITS]
            )
    train, val, test = np.abs(np.asarray(drawn["strata"]) - 1).max(axis=(0, 2))
    assert train < 0.2
    assert max(val, test) < 0.5
    mean = {what: np.abs(np.asarray(values) - 1).mean() for what, values in drawn.items()}
    assert mean["strata"] < mean["nothing"] / 2


def test_the_stratum_is_the_rarest_label_that_is_shown():
    labels = np.array([[1, 1, 0], [1, 0, -1], [1, 0, 1], [0, 0, -1], [1, 1, 1], [-1, -1, -1]])
    # shown 4, 2 and 2 times; of equally rare ones the first
    assert strata(labels).tolist() == [1, 0, 2, 3, 1, 3]
    assert strata(np.ones((3, 2), dtype=np.int64)).tolist() == [0, 0, 0]


@given(st.lists(st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=3), min_size=1))
def test_a_stratum_is_a_label_that_the_sample_shows(rows):
    labels = np.asarray(rows)
    shown = (labels == 1).sum(axis=0)
    for row, stratum in zip(labels, strata(labels), strict=True):
        if stratum == 3:
            assert not (row == 1).any()
        else:
            assert row[stratum] == 1
            assert shown[stratum] == shown[row == 1].min()


def test_many_small_strata_still_fill_each_split_by_its_share():
    ids = [f"i{i}" for i in range(200)]
    division = divide(holdout(), ids, ids, list(range(200)), ())
    assert [len(getattr(division, name)) for name in SPLITS] == [120, 30, 50]


def test_labels_of_too_few_groups_are_the_users_mistake():
    with pytest.raises(DataError, match="there are 2 independent groups"):
        divide(holdout(), ["a", "b"], ["a", "b"], [0, 1], ())

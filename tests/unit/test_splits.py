import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from medtransfer.data.splits import SPLITS, Split, divide, merge_groups, subset
from medtransfer.errors import DataError, LeakageError

RATIOS = (0.6, 0.15, 0.25)


def holdout(seed=0, ratios=RATIOS):
    return Split(kind="holdout", seed=seed, file=None, ratios=ratios)


def from_file(path):
    return Split(kind="file", seed=0, file=path, ratios=RATIOS)


@st.composite
def patients(draw):
    """Draw samples in patients, three or more patients of each class, in any order."""
    samples = []
    for label in range(draw(st.integers(2, 4))):
        for number in range(draw(st.integers(3, 15))):
            group = f"c{label}p{number}"
            samples += [(f"{group}i{i}", group, label) for i in range(draw(st.integers(1, 3)))]
    samples = draw(st.permutations(samples))
    return [list(column) for column in zip(*samples, strict=True)]


@st.composite
def shares(draw):
    parts = [draw(st.integers(1, 50)) for _ in SPLITS]
    return tuple(part / sum(parts) for part in parts)


def divided(split, samples):
    ids, groups, targets = samples
    names = [f"class{label}" for label in range(max(targets) + 1)]
    return divide(split, ids, groups, targets, names)


def groups_by_split(division, groups, targets, label):
    return [{groups[i] for i in getattr(division, name) if targets[i] == label} for name in SPLITS]


@given(patients(), shares(), st.integers(0, 5))
def test_every_sample_has_one_side_every_group_one_and_every_class_all(samples, ratios, seed):
    ids, groups, targets = samples
    division = divided(holdout(seed, ratios), samples)
    sides = [list(getattr(division, name)) for name in SPLITS]
    assert sorted(i for side in sides for i in side) == list(range(len(ids)))
    members = [{groups[i] for i in side} for side in sides]
    assert not members[0] & members[1]
    assert not members[0] & members[2]
    assert not members[1] & members[2]
    for side in sides:
        assert side == sorted(side)
        assert {targets[i] for i in side} == set(targets)


@given(patients(), shares())
def test_classes_are_divided_by_the_ratios_up_to_rounding(samples, ratios):
    _, groups, targets = samples
    division = divided(holdout(ratios=ratios), samples)
    for label in set(targets):
        train, val, test = groups_by_split(division, groups, targets, label)
        total = len(train | val | test)
        # a split that would get none, or leave none to another, is the exception
        assume(total * min(ratios) >= 1)
        assert abs(len(val) - ratios[1] * total) <= 0.5
        assert abs(len(test) - ratios[2] * total) <= 0.5
        assert abs(len(train) - ratios[0] * total) <= 1


@given(patients(), st.randoms())
def test_a_division_does_not_depend_on_the_order_of_the_samples(samples, random):
    order = list(range(len(samples[0])))
    random.shuffle(order)
    shuffled = [[column[i] for i in order] for column in samples]
    first, second = divided(holdout(), samples), divided(holdout(), shuffled)
    assert first.hash == second.hash
    sides = [
        {name: sorted(ids) for name, ids in division.ids(column[0]).items()}
        for division, column in ((first, samples), (second, shuffled))
    ]
    assert sides[0] == sides[1]


KINDS = ("holdout", "kfold", "ordered", "column", "own")


@st.composite
def divisions(draw, kind):
    """Draw samples and a division of them."""
    samples = draw(patients())
    ids, groups, targets = samples
    keys = {"kind": kind, "seed": draw(st.integers(0, 3)), "file": None, "ratios": draw(shares())}
    more = {}
    if kind == "kfold":
        keys |= {"folds": draw(st.integers(2, 3)), "index": draw(st.integers(0, 5))}
    elif kind == "column":
        keys |= {"column": "site", "test": "1"}
        keys["leaks"] = draw(st.sampled_from(["refuse", "drop"]))
        # sites of patients, or of images where patients may be seen at two
        places = groups if keys["leaks"] == "refuse" else ids
        more["columns"] = {"site": [str(int(place[-1]) % 2) for place in places]}
    elif kind == "own":
        keys["leaks"] = "drop"
        side = {i: SPLITS[draw(st.integers(0, 2))] for i in ids}
        more["lists"] = {name: [i for i in ids if side[i] == name] for name in SPLITS}
    try:
        division = divide(Split(**keys), ids, groups, targets, (), **more)
    except DataError:
        assume(False)
    return division, samples


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_no_group_is_on_two_sides_whatever_the_kind(kind, data):
    division, (ids, groups, _) = data.draw(divisions(kind))
    sides = [list(getattr(division, name)) for name in SPLITS]
    members = [{groups[i] for i in side} for side in sides]
    assert sum(map(len, members)) == len(set.union(*members))
    assert all(sides)
    # each sample once, or counted as left out
    assert sum(map(len, sides)) == len({i for side in sides for i in side})
    assert sum(map(len, sides)) + division.dropped == len(ids)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
def test_parts_of_the_training_set_are_nested_whatever_the_kind(kind, data):
    division, (_, groups, targets) = data.draw(divisions(kind))
    a, b = data.draw(st.floats(0.01, 1)), data.draw(st.floats(0.01, 1))
    few, many = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))

    def part(fraction, shots):
        return {
            int(i)
            for i in subset(division.train, groups, targets, fraction=fraction, shots=shots, seed=0)
        }

    train = set(division.train)
    assert part(min(a, b), None) <= part(max(a, b), None) <= part(1, None) == train
    assert part(1, min(few, many)) <= part(1, max(few, many)) <= train
    assert part(1, 1)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data(), st.randoms())
def test_lists_that_are_exported_divide_alike_whatever_the_kind_and_order(kind, data, random):
    division, (ids, groups, targets) = data.draw(divisions(kind))
    lists = division.ids(ids)
    for members in lists.values():
        random.shuffle(members)
    order = list(range(len(ids)))
    random.shuffle(order)
    shuffled = [[column[i] for i in order] for column in (ids, groups, targets)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "split.json"
        path.write_text(json.dumps(lists))
        read = divide(from_file(path), *shuffled, ())
    assert read.hash == division.hash
    assert {n: set(i) for n, i in read.ids(shuffled[0]).items()} == {
        n: set(i) for n, i in lists.items()
    }
    # another content has another hash
    moved = {"train": lists["val"], "val": lists["train"], "test": lists["test"]}
    split = Split(kind="own", seed=0, file=None, ratios=RATIOS)
    assert divide(split, ids, groups, targets, (), lists=moved).hash != division.hash


def cohort(n=40):
    ids = [f"i{i}" for i in range(n)]
    return [ids, ids, [i % 2 for i in range(n)]]


def test_another_seed_divides_otherwise_and_has_another_hash():
    hashes = {divided(holdout(seed), cohort()).hash for seed in range(5)}
    assert len(hashes) == 5


def test_a_published_hash_stays_what_it_was():
    assert divided(holdout(), cohort()).hash == "03b9a3a0422acd29"


def test_a_group_of_several_classes_stays_whole():
    ids, groups, targets = cohort()
    groups = ["mixed" if i < 6 else group for i, group in enumerate(groups)]
    division = divided(holdout(), [ids, groups, targets])
    assert sum(bool({0, 1, 2, 3, 4, 5} & set(getattr(division, name))) for name in SPLITS) == 1


def test_a_class_with_fewer_groups_than_splits_is_named():
    ids = [f"i{i}" for i in range(8)]
    with pytest.raises(DataError, match="class 'class1' has 2 independent groups"):
        divided(holdout(), [ids, ids, [0, 0, 0, 0, 0, 0, 1, 1]])


@given(patients(), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 3))
def test_a_smaller_fraction_is_nested_in_a_larger_and_keeps_every_class(samples, a, b, seed):
    _, groups, targets = samples
    train = divided(holdout(), samples).train
    small, large = (
        subset(train, groups, targets, fraction=f, shots=None, seed=seed) for f in sorted((a, b))
    )
    assert set(small) <= set(large) <= set(train)
    assert {targets[i] for i in small} == set(targets)
    # groups are kept or left out as a whole
    assert {i for i in train if groups[i] in {groups[j] for j in small}} == set(small)


@given(patients(), st.integers(1, 12))
def test_shots_count_groups_of_each_class(samples, shots):
    _, groups, targets = samples
    division = divided(holdout(), samples)
    kept = subset(division.train, groups, targets, fraction=1, shots=shots, seed=0)
    for label in set(targets):
        there = groups_by_split(division, groups, targets, label)[0]
        assert len({groups[i] for i in kept if targets[i] == label}) == min(shots, len(there))


def test_a_subset_follows_from_the_trials_seed_alone():
    _, groups, targets = cohort()
    train = np.arange(40)

    def draw(seed):
        return list(subset(train, groups, targets, fraction=0.3, shots=None, seed=seed))

    first = draw(0)
    np.random.seed(1)
    assert draw(0) == first
    assert draw(1) != first


def test_the_whole_fraction_is_all_of_it():
    _, groups, targets = cohort()
    train = np.arange(0, 40, 2)
    assert subset(train, groups, targets, fraction=1, shots=None, seed=0) is train


def test_groups_that_share_an_image_are_one_also_through_a_third():
    groups = ["a", "a", "b", "b", "c", "d"]
    contents = ["1", "2", "2", "3", "3", "4"]
    merged = merge_groups(groups, contents)
    assert len(set(merged[:5])) == 1
    assert merged[5] == "d"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 6)), max_size=20))
def test_merged_groups_are_the_connected_components(pairs):
    groups, contents = [g for g, _ in pairs], [str(c) for _, c in pairs]
    merged = merge_groups(groups, contents)
    reach = [{i} for i in range(len(pairs))]
    for _ in pairs:
        for i, _ in enumerate(pairs):
            for j in list(reach[i]):
                same = (k for k, (g, c) in enumerate(pairs) if g == pairs[j][0] or c == pairs[j][1])
                reach[i].update(same)
    for i, _ in enumerate(pairs):
        assert {j for j, _ in enumerate(pairs) if merged[j] == merged[i]} == reach[i]


@pytest.fixture
def split_file(tmp_path):
    def write(content):
        path = tmp_path / "split.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return from_file(path)

    return write


def test_a_division_written_to_a_file_comes_back(split_file):
    samples = cohort()
    drawn = divided(holdout(), samples)
    read = divided(split_file(drawn.ids(samples[0])), samples)
    assert read.hash == drawn.hash
    for name in SPLITS:
        assert np.array_equal(getattr(read, name), getattr(drawn, name))


def test_a_file_may_leave_samples_out(split_file):
    content = {"train": ["i0", "i1"], "val": ["i2", "i3"], "test": ["i5", "i4"]}
    division = divided(split_file(content), cohort())
    assert [list(getattr(division, name)) for name in SPLITS] == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["i0", "i1"], "val": ["i1"], "test": ["i2"]}, "'i1' is in two splits"),
        ({"train": ["i0"], "val": ["i12x"], "test": ["i2"]}, "'i12x'.* did you mean 'i12'"),
        ({"train": ["i0"], "val": [], "test": ["i2"]}, "split 'val' .* is empty"),
        ({"train": ["i0", "i1"], "val": ["i2"], "test": ["i4"]}, "'class1' has no .* 'val'"),
        ({"train": ["i0"], "val": ["i1"]}, "cannot be used: KeyError: 'test'"),
        ({"train": ["i0"], "val": ["i1"], "test": None}, "cannot be used: TypeError"),
        (["i0"], "cannot be used: TypeError"),
        ("{", "cannot be used: JSONDecodeError"),
    ],
)
def test_a_file_that_cannot_be_used_is_the_users_mistake(split_file, content, message):
    with pytest.raises(DataError, match=message) as caught:
        divided(split_file(content), cohort())
    assert caught.value.exit_code == 2
    assert caught.value.remedy


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nope\.json' does not exist"):
        divided(from_file(tmp_path / "nope.json"), cohort())


def test_a_file_that_divides_a_group_is_leakage(split_file):
    split = split_file({"train": ["i0", "i1"], "val": ["i2"], "test": ["i3"]})
    ids, groups, targets = cohort()
    groups = ["shared" if i in {1, 3} else group for i, group in enumerate(groups)]
    with pytest.raises(LeakageError, match=r"'i1' \(train\) and 'i3' \(test\)") as caught:
        divided(split, [ids, groups, targets])
    assert caught.value.exit_code == 3


def in_order(ratios=RATIOS):
    return Split(kind="ordered", seed=0, file=None, ratios=ratios)


def unstratified(groups):
    return [[f"{group}/{i}" for i, group in enumerate(groups)], groups, [0] * len(groups)]


@given(st.permutations(range(30)), shares())
def test_ordered_groups_are_cut_into_runs_by_number(numbers, ratios):
    samples = unstratified([f"slice{number}.png" for number in numbers])
    division = divided(in_order(ratios), samples)
    runs = [sorted(numbers[i] for i in getattr(division, name)) for name in SPLITS]
    assert [number for run in runs for number in run] == list(range(30))
    if min(ratios) * 30 >= 1:
        assert all(abs(len(r) - 30 * share) <= 1 for r, share in zip(runs, ratios, strict=True))
    assert all(runs)


def test_ordered_groups_stay_whole_whatever_their_number():
    division = divided(in_order(), unstratified(["b", "a", "c", "a", "b", "a"]))
    assert [list(getattr(division, name)) for name in SPLITS] == [[1, 3, 5], [0, 4], [2]]
    with pytest.raises(DataError, match="there are 2 independent groups"):
        divided(in_order(), unstratified(["b", "a", "a"]))


def own(lists, samples):
    split = Split(kind="own", seed=0, file=None, ratios=RATIOS)
    ids, groups, targets = samples
    return divide(split, ids, groups, targets, ["class0", "class1"], lists=lists)


def test_a_dataset_may_bring_its_own_lists():
    lists = {"train": ["i0", "i1"], "val": ["i2", "i3"], "test": ["i5", "i4"]}
    division = own(lists, cohort())
    assert [list(getattr(division, name)) for name in SPLITS] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(DataError, match="split 'val' of the dataset's lists is empty"):
        own(lists | {"val": []}, cohort())
    ids, groups, targets = cohort()
    with pytest.raises(LeakageError, match="in different splits of the dataset's lists"):
        own(lists, [ids, ["p" if i in {1, 2} else g for i, g in enumerate(groups)], targets])
    with pytest.raises(DataError, match="brings no lists of its own"):
        own(None, cohort())

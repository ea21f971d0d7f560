"""Every leak that is planted is found, and what is sound is not accused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from copies import CHANGES, decoded, phantoms
from medtransfer.audit.audit import audit
from medtransfer.audit.classes import holm
from medtransfer.audit.findings import KEPT, Audit, Finding
from medtransfer.data.base import UNKNOWN
from medtransfer.data.duplicates import Pair, find
from medtransfer.data.facts import describe

SPLITS = ("train", "val", "test")


@dataclass
class Corpus:
    """Samples that are put together one by one."""

    names: tuple[str, ...] = ("well", "ill")
    records: list = field(default_factory=list)
    patients: list = field(default_factory=list)
    sides: list = field(default_factory=list)
    images: list = field(default_factory=list)

    def add(self, image, side="train", patient=None, exam=None, *, target=0, labels=()):
        index = len(self.records)
        patient = f"p{index}" if patient is None else patient
        names = {"sample_id": f"i{index}", "group_id": patient, "exam_id": exam or f"e{index}"}
        self.records.append(SimpleNamespace(**names, target=target, labels=labels))
        self.patients.append(patient)
        self.sides.append(side)
        self.images.append(image)
        return f"i{index}"

    def look(self, pairs=None, skipped=()):
        facts, pixels = decoded(self.images, 64)
        if pairs is None:
            pairs = find(facts, [str((i.shape, i.tobytes())) for i in self.images], pixels)
        data = SimpleNamespace(
            records=self.records,
            patients=self.patients,
            class_names=self.names,
            facts=facts,
            images=pixels,
            skipped=skipped,
        )
        return audit(data, self.sides, pairs=pairs)


@pytest.fixture
def sound():
    """Return a corpus with nothing wrong: one image of each of 60 patients."""
    corpus = Corpus()
    for k, image in enumerate(phantoms(60, 64)):
        corpus.add(image, SPLITS[k % 3], target=k // 3 % 2)
    return corpus


def of(found: Audit, code: str) -> Finding:
    (finding,) = (each for each in found.findings if each.code == code)
    return finding


def codes(found: Audit, *severities: str) -> set[str]:
    return {each.code for each in found.findings if each.severity in severities}


def noise(rng, size=32):
    return rng.integers(90, 160, (size, size), np.uint8)


def test_a_sound_corpus_is_not_accused(sound):
    found = sound.look()
    assert not codes(found, "leak", "warning")
    assert codes(found, "info") == {"sizes", "intensities", "bit_depth"}
    assert not found.leaks(())


def test_a_patient_in_two_splits_is_a_leak(sound):
    first = sound.add(phantoms(61, 64)[60], "train", "same")
    second = sound.add(phantoms(62, 64)[61], "test", "same")
    sound.add(phantoms(63, 64)[62], "train", "same")
    found = sound.look()
    assert codes(found, "leak") == {"patient_overlap"}
    assert of(found, "patient_overlap").cases == ((first, second),)
    assert of(found, "patient_overlap").count == 1


def test_an_exam_in_two_splits_is_a_leak(sound):
    first = sound.add(phantoms(61, 64)[60], "val", "a", "same")
    second = sound.add(phantoms(62, 64)[61], "test", "b", "same")
    found = sound.look()
    assert codes(found, "leak") == {"exam_overlap"}
    assert of(found, "exam_overlap").cases == ((first, second),)


def test_where_each_patient_has_one_exam_a_leak_needs_one_waiver():
    corpus = Corpus()
    for k, image in enumerate(phantoms(30, 64)):
        corpus.add(image, SPLITS[k % 3], f"p{k // 2}", f"e{k // 2}")
    found = corpus.look(pairs=())
    assert codes(found, "leak") == {"patient_overlap"}
    assert not found.leaks({"patient_overlap"})


def test_samples_of_no_split_leak_nothing(sound):
    sound.add(sound.images[0], "", sound.patients[1])
    assert not codes(sound.look(), "leak")


@pytest.mark.parametrize("name", ["none", *CHANGES])
def test_every_planted_copy_is_found_on_the_other_side(sound, name):
    rng = np.random.default_rng(0)
    planted = set()
    for k in range(0, 60, 6):  # of the training split
        image = sound.images[k]
        copy = CHANGES[name](image, rng) if name in CHANGES else image
        planted.add((f"i{k}", sound.add(copy, "test", target=sound.records[k].target)))
    found = sound.look()
    code = "exact_duplicates" if name == "none" else "near_duplicates"
    assert codes(found, "leak") == {code}
    assert codes(found, "warning") <= {"size_shortcut"}
    assert set(of(found, code).cases) == planted
    assert of(found, code).count == len(planted)
    assert [leak.code for leak in found.leaks({"patient_overlap"})] == [code]


def test_copies_on_one_side_are_told_and_are_no_leak(sound):
    sound.add(sound.images[0], "train", target=sound.records[0].target)
    found = sound.look()
    assert not codes(found, "leak", "warning")
    assert of(found, "duplicates_within_split").cases == (("i0", "i60"),)


def test_alike_images_of_one_exam_are_no_duplicates(sound):
    """Slices of a volume are alike, and lie on one side as their exam does."""
    sound.records[3].exam_id = sound.records[0].exam_id
    found = sound.look(pairs=[Pair(0, 3, "near", 0.9)])
    assert "duplicates_within_split" not in codes(found, "info")


def test_a_leak_is_seen_through_the_copies_of_an_image(sound):
    # 0, 3 and 60 are in train, 61 in test: no pair that was found crosses by itself
    sound.add(sound.images[0], "train")
    sound.add(sound.images[0], "test")
    pairs = [Pair(0, 60, "exact", 1.0), Pair(0, 61, "exact", 1.0), Pair(0, 3, "near", 0.9)]
    found = sound.look(pairs=pairs)
    assert of(found, "exact_duplicates").cases == (("i0", "i61"),)
    assert of(found, "near_duplicates").cases == (("i3", "i61"),)


def test_copies_that_lie_in_no_split_do_not_hide_a_leak(sound):
    sound.sides[0] = ""
    sound.add(sound.images[0], "train")
    sound.add(sound.images[0], "test")
    assert of(sound.look(), "exact_duplicates").cases == (("i60", "i61"),)


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        ({"target": 0}, {"target": 1}, True),
        ({"target": 1}, {"target": 1}, False),
        ({"labels": (1, 0)}, {"labels": (1, 1)}, True),
        ({"labels": (1, 0)}, {"labels": (1, 0)}, False),
        ({"labels": (1, 0)}, {"labels": (1, UNKNOWN)}, False),
    ],
)
def test_copies_with_different_labels_contradict_each_other(first, second, conflict):
    corpus = Corpus()
    image = phantoms(1, 64)[0]
    corpus.add(image, **first)
    corpus.add(image, **second)
    assert ("label_conflicts" in codes(corpus.look(), "warning")) == conflict


@pytest.mark.parametrize(("shares", "accused"), [((0.5, 0.5, 0.5), False), ((0.8, 0.5, 0.2), True)])
def test_a_class_that_is_more_frequent_in_one_split_is_told(shares, accused):
    corpus, image = Corpus(), np.zeros((8, 8), np.uint8)
    for side, share in zip(SPLITS, shares, strict=True):
        for k in range(60):
            corpus.add(image, side, target=int(k < share * 60))
    found = corpus.look(pairs=())
    assert ("prevalence" in codes(found, "warning")) == accused
    if accused:
        assert "80 % of train" in of(found, "prevalence").message


def test_images_of_one_patient_are_no_independent_draws():
    corpus, image = Corpus(), np.zeros((8, 8), np.uint8)
    for side, target in (("train", 0), ("train", 1), ("test", 0), ("test", 1)):
        for _ in range(200 if (side, target) == ("train", 1) else 5):
            corpus.add(image, side, f"{side}{target}", target=target)
    assert "prevalence" not in codes(corpus.look(pairs=()), "warning")


def test_what_could_not_be_read_is_told(sound):
    finding = of(sound.look(pairs=(), skipped=("a.png is empty", "b.png is cut")), "unreadable")
    assert finding.severity == "warning"
    assert finding.count == 2
    assert finding.detail["messages"] == ["a.png is empty", "b.png is cut"]


def planted(trait, related, count=120):
    """Return a corpus in which a trait goes with the label, or with nothing."""
    rng = np.random.default_rng(0)
    corpus = Corpus()
    for k in range(count):
        target = int(rng.random() < 0.5)
        shown = rng.random() < (0.9 if target else 0.1) if related else rng.random() < 0.5
        image = noise(rng)
        corpus.add(trait(image) if shown else image, SPLITS[k % 3], target=target)
    return corpus


def marker(image):
    """Burn letters into a corner."""
    image = image.copy()
    image[1:4:2, -4:] = 255
    return image


def border(image):
    image = image.copy()
    image[:, :3] = 0
    return image


TRAITS = {
    "marker": marker,
    "border": border,
    "size_shortcut": lambda image: np.pad(image, ((0, 0), (0, 8)), "reflect"),
    "intensity_shortcut": lambda image: image + 40,
}


@pytest.mark.parametrize("code", TRAITS)
def test_what_goes_with_the_label_is_found(code):
    found = planted(TRAITS[code], related=True).look(pairs=())
    finding = of(found, code)
    assert finding.severity == ("info" if code == "intensity_shortcut" else "warning")
    best = finding.detail["traits"][0]
    assert best["class"] == "ill"
    assert abs(best["auroc"] - 0.5) > 0.3
    assert finding.cases


@pytest.mark.parametrize("code", TRAITS)
def test_what_does_not_go_with_the_label_is_not_accused(code):
    found = planted(TRAITS[code], related=False).look(pairs=())
    assert not {each.code for each in found.findings} & set(TRAITS)


def test_brightness_that_tells_the_label_perfectly_is_a_warning():
    rng = np.random.default_rng(0)
    corpus = Corpus()
    for k in range(60):
        corpus.add(noise(rng) + 60 * (k % 2), SPLITS[k % 3], target=k % 2)
    assert of(corpus.look(pairs=()), "intensity_shortcut").severity == "warning"


def test_a_marker_is_found_for_one_label_of_several():
    rng = np.random.default_rng(0)
    corpus = Corpus(names=("mass", "effusion"))
    for k in range(200):
        labels = tuple(rng.integers(0, 2, 2).tolist())
        image = marker(noise(rng)) if labels[1] else noise(rng)
        labels = (labels[0], UNKNOWN) if k % 10 == 0 else labels
        corpus.add(image, SPLITS[k % 3], labels=labels)
    traits = of(corpus.look(pairs=()), "marker").detail["traits"]
    assert {trait["class"] for trait in traits} == {"effusion"}


def test_a_trait_is_measured_patient_by_patient():
    """One patient with a thousand images proves nothing."""
    rng = np.random.default_rng(0)
    corpus = Corpus()
    for k in range(40):
        corpus.add(noise(rng), patient=f"p{k}", target=k % 2)
    for _ in range(100):
        corpus.add(marker(noise(rng)), patient="p1", target=1)
    assert "marker" not in codes(corpus.look(pairs=()), "warning")


def test_the_auroc_is_that_of_scikit_learn():
    corpus = planted(marker, related=True)
    best = of(corpus.look(pairs=()), "marker").detail["traits"][0]
    facts = np.stack([describe(image, None) for image in corpus.images])
    targets = [record.target for record in corpus.records]
    expected = roc_auc_score(targets, facts["corner_jumps"][:, 1])
    assert "top right" in best["trait"]
    assert best["auroc"] == pytest.approx(expected)


def test_one_class_has_no_shortcut():
    corpus = Corpus(names=("image",))
    for k in range(40):
        corpus.add(noise(np.random.default_rng(k)), SPLITS[k % 3])
    assert not codes(corpus.look(pairs=()), "leak", "warning")


def test_cases_are_cut_and_counted_and_everything_is_json():
    corpus, image = Corpus(), np.zeros((8, 8), np.uint8)
    for k in range(2 * KEPT + 20):
        corpus.add(image, SPLITS[k % 2], f"p{k // 2}", f"p{k // 2}", target=k % 2)
    found = corpus.look(skipped=("x is empty",))
    overlap = of(found, "patient_overlap")
    assert overlap.count == KEPT + 10
    assert len(overlap.cases) == KEPT
    kept = json.loads(json.dumps(found.as_dict()))
    assert [each["code"] for each in kept["findings"]] == [each.code for each in found.findings]
    assert kept["summary"]["samples"] == 2 * KEPT + 20
    assert kept["summary"]["patients"] == KEPT + 10
    order = [each.severity for each in found.findings]
    assert order == sorted(order, key=("leak", "warning", "info").index)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_adjusted_p_values_grow_and_keep_their_order(values):
    adjusted = holm(values)
    assert all(a >= p for a, p in zip(adjusted, values, strict=True))
    assert max(adjusted) <= 1
    assert min(adjusted) == pytest.approx(min(1, len(values) * min(values)))
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.asarray(adjusted)[order]) >= 0).all()

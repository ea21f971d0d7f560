"""Copies are found, whatever happened to them, and nothing else is."""

from __future__ import annotations

import os

import numpy as np
import pytest
from scipy.fft import dctn

from copies import CHANGES, brightened, decoded, jpeg, phantoms, small_images
from medtransfer.data import lookalikes
from medtransfer.data.duplicates import Pair, find
from medtransfer.data.lookalikes import CANDIDATES, TURNS
from medtransfer.data.squares import resampling, squares, turned

PATIENTS = 120


def search(images, size):
    facts, pixels = decoded(images, size)
    return find(facts, [str(image.tobytes()) for image in images], pixels)


def recall(originals, change, size):
    """Return the share of copies that are found, and of originals that are falsely accused."""
    rng = np.random.default_rng(0)
    count = len(originals)
    pairs = search([*originals, *(change(image, rng) for image in originals)], size)
    found = {pair.first for pair in pairs if pair.second == pair.first + count}
    wrong = {i % count for p in pairs if p.second % count != p.first for i in p[:2]}
    return len(found) / count, len(wrong) / count


@pytest.mark.parametrize("name", CHANGES)
def test_changed_copies_of_phantoms_are_found(name):
    found, wrong = recall(phantoms(PATIENTS, 64), CHANGES[name], 64)
    assert found >= 0.98
    assert wrong < 0.01


@pytest.mark.real_data("busi")
@pytest.mark.parametrize("name", CHANGES)
def test_changed_copies_of_ultrasound_are_found(name):
    images = small_images(os.environ["MEDTRANSFER_DATA"] + "/busi", 100, 96)
    assert recall(images, CHANGES[name], 64)[0] >= 0.95


@pytest.mark.real_data("bccd")
@pytest.mark.parametrize("name", ["jpeg 50", "brighter", "darker", "mirrored", "cropped"])
def test_changed_copies_of_blood_films_are_found(name):
    images = small_images(os.environ["MEDTRANSFER_DATA"] + "/bccd/JPEGImages", 100, 96)
    assert recall(images, CHANGES[name], 64)[0] >= 0.95


@pytest.mark.parametrize("size", [64, 96])
def test_patients_are_no_copies_of_each_other(size):
    assert not search(phantoms(600, size), size)


def test_views_of_one_patient_are_no_copies_of_each_other():
    pairs = search(phantoms(PATIENTS, 64, views=3), 64)
    assert len({i for pair in pairs for i in pair[:2]}) < 0.01 * 3 * PATIENTS


def radiographs(count, side=28):
    """Return images that share nearly all of their coarse structure, as those of one kind do."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:side, :side] / side
    shared = 120 + 60 * np.cos(4 * np.pi * x) * np.sin(np.pi * y) - 40 * y
    fields = rng.normal(size=(count, 10, 10)) @ resampling(10, side).T
    fields = np.einsum("st,ntu->nsu", resampling(10, side), fields)
    return [np.clip(shared + 14 * field, 0, 255).astype(np.uint8) for field in fields]


@pytest.mark.parametrize("name", ["jpeg 90", "contrast", "mirrored", "turned by 90"])
def test_copies_are_found_among_images_of_one_kind(name):
    found, wrong = recall(radiographs(400), CHANGES[name], 28)
    assert found >= 0.95
    assert wrong < 0.01


def test_what_chance_gives_raises_what_is_asked_of_copies():
    images = radiographs(400)
    flat = [brightened(image, 0.2, 100) for image in images]
    assert not search(images, 28)
    assert not search(flat, 28)


def test_every_identical_image_is_paired_with_the_first():
    images = list(phantoms(30, 64))
    pairs = search([*images, images[3], images[7], images[3]], 64)
    assert pairs == (
        Pair(3, 30, "exact", 1.0),
        Pair(3, 32, "exact", 1.0),
        Pair(7, 31, "exact", 1.0),
    )


def test_images_of_any_proportions_are_compared():
    wide = [image[: 30 + k % 20] for k, image in enumerate(phantoms(60, 64))]
    copies = [np.rot90(image) for image in wide]
    pairs = search(wide + copies, 64)
    assert [pair[:2] for pair in pairs] == [(k, k + 60) for k in range(60)]


def test_sixteen_bits_and_colour_are_compared_as_eight_bits_and_grey_are():
    images = [*phantoms(60, 64), *(jpeg(image, 80) for image in phantoms(60, 64))]
    facts, pixels = decoded(images, 64)
    names = [str(k) for k in range(120)]
    expected = [pair[:3] for pair in find(facts, names, pixels)]
    assert len(expected) == 60
    for other in (pixels.astype(np.uint16) * 257, np.repeat(pixels, 3, axis=1)):
        assert [pair[:3] for pair in find(facts, names, other)] == expected


def test_no_image_has_no_copy():
    facts, pixels = decoded(phantoms(1, 64), 64)
    assert find(facts[:0], [], pixels[:0]) == ()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_a_few_images_are_enough(count):
    images = list(phantoms(8, 64))[:count]
    assert not search(images, 64)
    copies = [jpeg(image, 70) for image in images]
    pairs = search(images + copies, 64)
    assert [pair[:2] for pair in pairs] == [(k, k + count) for k in range(count)]


def test_images_of_one_value_are_no_copies_unless_they_are_identical():
    images = [np.full((32, 32), value, np.uint8) for value in range(0, 250, 4)]
    assert not search(images, 32)


def test_a_scene_that_fills_the_dataset_is_found_in_all_of_it():
    image = phantoms(1, 64)[0]
    rng = np.random.default_rng(0)
    frames = [
        brightened(image, 1, 0) + rng.integers(0, 3, image.shape, np.uint8) for _ in range(60)
    ]
    pairs = search(frames, 64)
    assert {i for pair in pairs for i in pair[:2]} == set(range(60))


def test_the_same_images_give_the_same_pairs():
    images = [*phantoms(60, 64), *(jpeg(image, 60) for image in phantoms(60, 64))]
    assert search(images, 64) == search(images, 64)


@pytest.mark.parametrize("count", [500, 1000])
def test_the_work_is_bounded_where_all_images_are_alike(count):
    """Each image brings so many candidates at most, although every pair would be one."""
    rng = np.random.default_rng(0)
    base = phantoms(1, 64)[0]
    noise = rng.integers(0, 12, (count, *base.shape), np.uint8)
    facts, pixels = decoded([np.minimum(base, 243) + each for each in noise], 64)
    found = lookalikes.lookalikes(pixels, facts, np.arange(count))
    assert len(found.whole) <= CANDIDATES * count
    assert len(found.whole) == len({tuple(sorted(p)) for p in zip(found.whole, found.copy)})  # noqa: B905


@pytest.mark.parametrize("turn", range(TURNS))
def test_a_turned_image_is_hashed_without_a_transform(turn):
    rng = np.random.default_rng(turn)
    image = rng.normal(size=(2, lookalikes.SIDE, lookalikes.SIDE)).astype(np.float32)
    waves = lookalikes.WAVES
    whole = dctn(image, axes=(1, 2), norm="ortho")[:, :waves, :waves]
    expected = dctn(turned(image, turn), axes=(1, 2), norm="ortho")[:, :waves, :waves]
    assert lookalikes._turned_waves(whole, turn) == pytest.approx(expected, abs=1e-4)


def test_squares_are_of_the_image_without_its_padding():
    image = np.random.default_rng(0).integers(100, 200, (32, 64), np.uint8)
    facts, pixels = decoded([image], 64)
    (square,) = squares(pixels, facts, np.asarray([0]), 32)
    assert square.min() * 255 >= 99  # the padding is black
    assert square.mean() * 255 == pytest.approx(image.mean(), abs=1)


@pytest.mark.parametrize(("pixels", "side"), [(64, 24), (28, 48), (32, 32), (5, 48)])
def test_resampling_keeps_what_is_even(pixels, side):
    for part in ((0.0, 1.0), (0.025, 0.925)):
        matrix = resampling(pixels, side, *part)
        assert matrix.shape == (side, pixels)
        assert matrix.sum(axis=1) == pytest.approx(1)
        assert matrix.min() >= 0
    assert resampling(32, 32) == pytest.approx(np.eye(32))

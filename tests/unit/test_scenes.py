import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medtransfer.data.scenes import CLASS_NAMES, Scene, render_exam
from medtransfer.errors import ConfigError

NORMAL, BENIGN, MALIGNANT = range(3)


def exam(patient: int = 0, label: int = MALIGNANT, **changes) -> list[Scene]:
    options = {"images": 1, "size": 64, "difficulty": 0.5} | changes
    return render_exam(3, patient, label, **options)


def equal(a: Scene, b: Scene) -> bool:
    return all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name))
        for field in dataclasses.fields(Scene)
    )


def contrast(scene: Scene) -> float:
    """How much darker the lesion is than the tissue in its box and around it."""
    x0, y0, x1, y1 = scene.boxes[0].astype(int)
    around = np.s_[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2]
    image, lesion = scene.image[around], scene.mask[around] > 0
    return float(image[~lesion].mean() - image[lesion].mean())


def margin_length(scene: Scene) -> float:
    """Length of the lesion's margin over that of a square of its area."""
    lesion = np.pad(scene.mask > 0, 1).astype(int)
    steps = np.abs(np.diff(lesion, axis=0)).sum() + np.abs(np.diff(lesion, axis=1)).sum()
    return float(steps / (4 * np.sqrt(lesion.sum())))


@settings(max_examples=40, deadline=None)
@given(
    size=st.integers(32, 128),
    patient=st.integers(0, 10_000),
    label=st.sampled_from(range(3)),
    difficulty=st.floats(0, 1),
)
def test_every_scene_is_well_formed(size, patient, label, difficulty):
    (scene,) = exam(patient, label, size=size, difficulty=difficulty)
    assert scene.image.shape == scene.mask.shape == (size, size)
    assert scene.image.dtype == scene.mask.dtype == np.uint8
    assert scene.image.std() > 5
    assert scene.label == label
    assert scene.boxes.dtype == np.float32
    if label == NORMAL:
        assert scene.boxes.shape == (0, 4)
        assert not scene.mask.any()
    else:
        assert set(np.unique(scene.mask)) == {0, label}
        rows, columns = np.nonzero(scene.mask)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert scene.boxes.tolist() == [box]


def test_class_names_follow_the_mask():
    assert CLASS_NAMES == ("normal", "benign", "malignant")


def test_equal_arguments_give_equal_pixels():
    assert all(map(equal, exam(images=3), exam(images=3)))


def test_a_view_does_not_depend_on_how_many_are_asked_for():
    assert all(map(equal, exam(images=2), exam(images=5)[:2]))


@pytest.mark.parametrize("changes", [{"patient": 1}, {"label": BENIGN}, {"difficulty": 0.6}])
def test_other_arguments_give_other_pixels(changes):
    assert not np.array_equal(exam()[0].image, exam(**changes)[0].image)


def test_another_seed_gives_other_pixels():
    first, second = (
        render_exam(seed, 0, 1, images=1, size=64, difficulty=0.5)[0] for seed in (0, 1)
    )
    assert not np.array_equal(first.image, second.image)


def test_views_of_a_patient_differ_but_show_one_lesion():
    views = exam(images=4)
    assert len({view.image.tobytes() for view in views}) == 4
    areas = [np.count_nonzero(view.mask) for view in views]
    assert max(areas) < 2 * min(areas)


def test_tissue_does_not_know_the_label():
    well, benign, malignant = (exam(label=label, difficulty=0)[0].image for label in range(3))
    # what lies beside and above the lesion is shared to the last bit
    for ill in (benign, malignant):
        assert np.mean(well == ill) > 0.2


def test_lesion_views_show_the_lesion_in_that_many_images():
    for shown in range(4):
        views = exam(images=3, lesion_views=shown)
        assert [view.label for view in views] == [MALIGNANT] * 3
        assert sum(len(view.boxes) for view in views) == shown
        assert sum(bool(view.mask.any()) for view in views) == shown


def test_lesion_views_are_drawn_and_change_nothing_else():
    everywhere, nowhere = exam(images=3), exam(images=3, label=NORMAL)
    for k, view in enumerate(exam(images=3, lesion_views=1)):
        like = everywhere[k] if view.mask.any() else nowhere[k]
        assert np.array_equal(view.image, like.image)
    first = {
        next(k for k, v in enumerate(exam(patient, images=3, lesion_views=1)) if v.mask.any())
        for patient in range(20)
    }
    assert first == {0, 1, 2}


def test_difficulty_takes_the_lesions_contrast():
    means = [
        np.mean([contrast(exam(p, BENIGN, difficulty=d)[0]) for p in range(40)])
        for d in (0, 0.5, 1)
    ]
    assert means[0] > 1.3 * means[1] > 1.3**2 * means[2] > 0


def test_difficulty_brings_the_margins_together():
    gaps = []
    for difficulty in (0, 0.7, 1):
        benign, malignant = (
            np.mean([margin_length(exam(p, label, difficulty=difficulty)[0]) for p in range(40)])
            for label in (BENIGN, MALIGNANT)
        )
        gaps.append(malignant - benign)
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[0] > 0.2
    assert abs(gaps[2]) < 0.05


def test_mean_grey_value_does_not_tell_the_class():
    means = np.array([[exam(p, label)[0].image.mean() for p in range(60)] for label in range(3)])
    assert np.ptp(means.mean(axis=1)) < means.std(axis=1).min()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label", 3),
        ("images", 0),
        ("size", 8),
        ("difficulty", 1.1),
        ("difficulty", float("nan")),
        ("lesion_views", 2),
    ],
)
def test_an_argument_outside_its_range_is_named(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        exam(**{name: value})

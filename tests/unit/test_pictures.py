"""Which cases of a test are shown, and what their page looks like."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage
from PIL import ImageColor
from torch import nn

from medtransfer import drawing
from medtransfer.canvas import fit, font, line
from medtransfer.data.base import Boxes, DataSpec
from medtransfer.data.loading import Data
from medtransfer.drawing import SIDE, colour, draw, room
from medtransfer.heads.suppression import Detections
from medtransfer.tasks.classification import Classification
from medtransfer.tasks.detection import Detection
from medtransfer.tasks.examples import Case, Examples, Panel, extremes
from medtransfer.tasks.segmentation import Segmentation

UNUSED = dict.fromkeys(("schedule", "optimizer", "make_optimizer"))
ODD = ("\udcff\x00\n", "腫瘍" * 90, "x" * 3_000_000, "ورم", "", "e\u0301" * 300, "1 " * 500)
GREY = np.full((1, 31, 31), 128, np.uint8)
numbers = st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=40)


def parts(head: object, names: tuple[str, ...], size: int = 32) -> dict:
    backbone = nn.Identity()
    backbone.pyramid = lambda images: [images]
    spec = DataSpec(names, 1, size, (1,) * len(names), "data", "split")
    strategy = SimpleNamespace(distils=False)
    return UNUSED | {
        "backbone": backbone,
        "head": head,
        "loss": None,
        "strategy": strategy,
        "spec": spec,
    }


def decoded(pixels: np.ndarray, name: str = "case") -> SimpleNamespace:
    """Stand in for a decoded dataset of one image."""
    return SimpleNamespace(images=pixels[None], records=[SimpleNamespace(sample_id=name)])


def page(*panels: Panel, pixels: np.ndarray | None = None, names=("a", "b", "c"), name="case"):
    pixels = np.full((1, 31, 31), 128, np.uint8) if pixels is None else pixels
    examples = Examples("title", names=names, groups={"g": [Case(0, ("words",), panels)]})
    return np.asarray(draw(examples, decoded(pixels, name)))


def shows(picture: np.ndarray, label: int) -> bool:
    return bool((picture == ImageColor.getrgb(colour(label))).all(-1).any())


def boxes(*rows: tuple[float, ...], label: int = 0) -> Boxes:
    return Boxes(np.array(rows, np.float32).reshape(-1, 4), np.full(len(rows), label))


@given(numbers)
def test_best_median_and_worst_are_what_they_are_called_and_never_the_same(values):
    values = np.array(values, dtype=np.float64)
    groups = extremes(values)
    rows = [row for group in groups.values() for row in group]
    known = np.flatnonzero(~np.isnan(values))
    assert len(rows) == len(set(rows)) == min(9, len(known))
    assert set(rows) <= set(known.tolist())
    assert list(groups) == [n for n in ("best", "median", "worst") if n in groups]
    shown = values[rows]
    assert (np.diff(shown) <= 0).all()
    if len(known):
        assert shown[0] == values[known].max()
    if len(known) > 1:
        assert shown[-1] == values[known].min()
        assert groups.keys() >= {"best", "worst"}
    if len(known) > 2:
        assert np.median(values[known]) == pytest.approx(np.median(values[groups["median"]]), abs=1)
    if len(known) % 2 and len(known) > 8:
        assert values[groups["median"][1]] == np.median(values[known])


@given(st.text(st.characters(), max_size=500) | st.sampled_from(ODD), st.integers(14, 300))
def test_any_text_fits_where_it_is_written(text, width):
    shown = fit(text, width, 13)
    assert font(13).getlength(shown) <= width
    assert shown.isprintable()
    line(text, width, 13)


def test_a_short_text_is_whole_and_a_long_one_keeps_both_ends():
    assert fit("benign, 0.97", 200, 13) == "benign, 0.97"
    shown = fit("first " + "and so on " * 40 + "last", 200, 13)
    assert shown.startswith("first")
    assert shown.endswith("last")
    assert shown.count("…") == 1
    assert font(13).getlength(shown) > 180


@pytest.mark.parametrize("name", ODD)
def test_names_of_any_script_and_length_make_a_page(name):
    mask = np.ones((31, 31), np.uint8)
    picture = page(Panel(name, mask=mask), Panel(), name=name, names=(name,))
    assert picture.shape[1] < 1600


def test_what_is_grey_stays_grey_and_colour_stays_colour():
    ramp = np.linspace(0, 255, 31 * 31).reshape(1, 31, 31).astype(np.uint8)
    picture = page(Panel(), pixels=ramp)
    assert (picture == picture[..., :1]).all()
    assert not shows(picture, 0)
    red = np.zeros((3, 31, 31), np.uint8)
    red[0] = 200
    assert (page(Panel(), pixels=red) == (200, 0, 0)).all(-1).sum() == SIDE**2


def test_a_mask_is_painted_where_it_is_and_its_class_is_in_the_legend():
    plain = page(Panel())
    mask = np.zeros((31, 31), np.uint8)
    mask[:, :10] = 2
    mask[:, 20:] = 255
    picture = page(Panel(mask=mask))
    assert shows(picture, 1)
    assert not shows(picture, 0)
    assert not shows(plain, 1)
    untouched = (picture == 128).all(-1).sum() / (plain == 128).all(-1).sum()
    assert untouched == pytest.approx(21 / 31, abs=0.01)


def test_heat_brightens_its_places_and_leaves_the_rest():
    plain = page(Panel())[-SIDE - 60 :]
    heat = np.zeros((4, 4), np.float32)
    heat[:, 3] = 1
    picture = page(Panel(heat=heat))
    body = picture[-SIDE - 60 :]
    rows, columns = np.nonzero((plain != body).any(-1))
    assert np.ptp(rows) > SIDE * 0.98
    # between the middles of two places heat fades
    assert columns.min() == pytest.approx(drawing.MARGIN + SIDE * 5 / 8, abs=3)
    hot = body[-100, drawing.MARGIN + SIDE - 4].astype(int)
    assert hot[0] > 200
    assert hot[0] > hot[2] + 20  # yellowish
    assert (page(Panel(heat=np.zeros((4, 4), np.float32)))[-SIDE - 60 :] == plain).all()


def test_what_heat_means_is_in_the_legend():
    def height(heat, words):
        groups = {"g": [Case(0, ("words",), (Panel(heat=heat),))]}
        return draw(Examples("title", heat=words, groups=groups), decoded(GREY)).size[1]

    heat = np.ones((2, 2), np.float32)
    assert height(heat, "speaks for it") > height(None, "speaks for it")
    assert height(heat, "x" * 5000) == height(heat, "speaks for it")


def test_heat_may_be_of_any_resolution_and_beside_a_mask():
    for shape in ((1, 1), (7, 7), (31, 31), (3, 500)):
        mask = np.ones((31, 31), np.uint8)
        assert shows(page(Panel(mask=mask, heat=np.ones(shape, np.float32))), 0)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_an_exam_of_many_images_is_wrapped(count):
    shades = [np.full((1, 31, 31), 20 * k + 60, np.uint8) for k in range(count)]
    records = [SimpleNamespace(sample_id=f"image{k}", exam_id="exam") for k in range(count)]
    images = SimpleNamespace(images=np.stack(shades), records=records)
    panels = tuple(Panel(f"{k}", index=k) for k in range(count))
    groups = {"g": [Case(0, ("words",), panels)] * 3}
    picture = np.asarray(draw(Examples("title", groups=groups), images))
    assert picture.shape[1] < 1600
    for k in range(count):  # letters have these shades at their edges too
        shown = (picture == 20 * k + 60).all(-1).sum()
        assert shown == pytest.approx(3 * SIDE**2, rel=0.01)


def test_sixteen_bits_are_shown_as_eight():
    ramp = np.linspace(0, 65535, 31 * 31).reshape(1, 31, 31).astype(np.uint16)
    np.testing.assert_array_equal(
        page(Panel(), pixels=ramp), page(Panel(), pixels=(ramp >> 8).astype(np.uint8))
    )


def test_a_box_is_drawn_around_its_pixels():
    picture = page(Panel(boxes=boxes((10, 5, 20, 25), label=2)))
    body = picture[-SIDE - 60 :]  # below the legend
    rows, columns = np.nonzero((body == ImageColor.getrgb(colour(2))).all(-1))
    scale = SIDE / 31
    assert np.ptp(rows) == pytest.approx(20 * scale, abs=2)
    assert np.ptp(columns) == pytest.approx(10 * scale, abs=2)
    assert columns.min() == pytest.approx(drawing.MARGIN + 10 * scale, abs=1)


def test_boxes_that_cannot_be_do_no_harm():
    nan, inf = float("nan"), float("inf")
    rows = [(nan, 0, 5, 5), (-inf, 0, inf, 3), (9, 9, 9, 9), (8, 8, 2, 2), (40, 40, 90, 90)]
    scores = np.array([0.5, nan, 1, 0, inf], np.float32)
    assert shows(page(Panel(boxes=boxes(*rows), scores=scores)), 0)


@given(st.lists(st.tuples(*[st.floats(0, SIDE)] * 4), max_size=25))
def test_no_two_labels_meet_and_none_leaves_the_panel(frames):
    taken = []
    for x0, y0, x1, y1 in frames:
        frame = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        place = room(frame, 25.0, taken)
        if place is not None:
            taken.append(place)
    covered = np.zeros((SIDE, SIDE), int)
    for place in taken:
        x0, y0, x1, y1 = (round(each) for each in place)
        assert min(x0, y0) >= 0
        assert max(x1, y1) <= SIDE
        covered[y0:y1, x0:x1] += 1
    assert covered.max() <= 1
    assert len(taken) > 0 or not frames


def test_the_first_classes_have_colours_of_their_own():
    assert len({colour(label) for label in range(60)}) == 60


def classified(scores: list[list[float]], target: list[int]) -> Examples:
    task = Classification(**parts(nn.Identity(), ("normal", "benign", "malignant")))
    index = torch.arange(len(target)) + 100
    kept = {"index": index, "scores": torch.tensor(scores), "target": torch.tensor(target)}
    return task.examples(None, kept)


def test_the_most_confident_errors_of_a_classifier_come_first():
    scores = [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.4, 0.3, 0.3]]
    examples = classified(scores, [0, 0, 1, 2])
    (cases,) = examples.groups.values()
    assert "3 of 4" in examples.title
    assert [case.index for case in cases] == [102, 101, 103]
    assert cases[0].words == ("true: benign", "predicted: malignant, 0.80")


def test_at_most_nine_errors_are_shown():
    scores = [[1 - k / 100, k / 100, 0.0] for k in range(20)]
    (cases,) = classified(scores, [1] * 20).groups.values()
    assert [case.index for case in cases] == list(range(100, 109))


def test_without_errors_the_least_certain_cases_are_shown():
    examples = classified([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8]], [0, 1, 2])
    ((heading, cases),) = examples.groups.items()
    assert "correct" in heading
    assert [case.index for case in cases] == [101, 102, 100]


class Brightness(nn.Module):
    """Takes what is dark for class 1, and counts the images that it sees."""

    seen = 0

    def forward(self, levels: list[torch.Tensor], _: tuple[int, int]) -> torch.Tensor:
        (images,) = levels
        self.seen += len(images)
        dark = 0.35 - images[:, 0]
        return torch.stack([torch.zeros_like(dark), dark, dark - 1], 1)


def test_a_segmentation_is_shown_as_it_was_scored(phantom, tmp_path):
    data = Data.open(phantom, "mask", cache=tmp_path, seed=0)
    data.seal.open()
    head = Brightness()
    task = Segmentation(tolerance=2, patch=None, overlap=0, **parts(head, data.spec.class_names))
    task.loss = lambda logits, _: logits.mean()
    (batch,) = data.loader("test", batch_size=99)
    with torch.no_grad():
        kept = task.eval().step(batch)[1]
        head.seen = 0
        examples = task.examples(data, kept)
    dice = task.columns(kept)["dice"]
    shown = [case for group in examples.groups.values() for case in group]
    assert head.seen == len(shown) == min(9, int(np.isfinite(dice).sum()))
    for case in shown:
        row = batch["index"].tolist().index(case.index)
        truth, prediction = case.panels
        np.testing.assert_array_equal(truth.mask, batch["mask"][row])
        expected = (batch["image"][row, 0] < 0.35) & (batch["mask"][row] != 255)
        np.testing.assert_array_equal(prediction.mask, expected)
        assert case.words == (f"Dice {dice[row]:.2f}",)
    order = [dice[batch["index"].tolist().index(case.index)] for case in shown]
    assert order == sorted(order, reverse=True)
    assert PILImage.Image.getbbox(draw(examples, data.decoded)) is not None


def test_detections_above_the_threshold_are_ranked_by_the_f1_of_their_image():
    square = torch.tensor([[0.0, 0, 10, 10]])
    found = [  # image 0: met twice, once by a sure box; 1: wrong class; 2: nothing there; 3: met
        Detections(square.repeat(2, 1), torch.tensor([0, 0]), torch.tensor([0.9, 0.6])),
        Detections(square, torch.tensor([1]), torch.tensor([0.9])),
        Detections(square, torch.tensor([1]), torch.tensor([0.4])),
        Detections(square + 4, torch.tensor([0]), torch.tensor([0.7])),
    ]
    head = SimpleNamespace(nms=SimpleNamespace(score=0.5))
    task = Detection(iou=0.2, **parts(head, ("cell", "platelet")))
    kept = {
        "index": torch.arange(4),
        "boxes": torch.cat([each.boxes for each in found]),
        "labels": torch.cat([each.labels for each in found]),
        "scores": torch.cat([each.scores for each in found]),
        "image": torch.tensor([0, 0, 1, 2, 3]),
        "true_boxes": square.repeat(3, 1),
        "true_labels": torch.zeros(3, dtype=torch.int64),
        "true_image": torch.tensor([0, 1, 3]),
    }
    examples = task.examples(None, kept)
    cases = [case for group in examples.groups.values() for case in group]
    assert [case.index for case in cases] == [3, 0, 1]
    words = ["1.00 (1 true, 1 found)", "0.67 (1 true, 2 found)", "0.00 (1 true, 1 found)"]
    assert [case.words for case in cases] == [(f"F1 {each}",) for each in words]
    assert "IoU 0.2" in examples.title
    assert "0.50" in examples.note
    truth, detections = cases[1].panels
    assert truth.scores is None
    np.testing.assert_allclose(detections.scores, [0.9, 0.6])
    np.testing.assert_array_equal(detections.boxes.boxes, square.repeat(2, 1))

"""Losses of masks against their formulas, pixel by pixel, and what all of them keep to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medtransfer.components import build
from medtransfer.errors import ConfigError
from medtransfer.tasks.losses import Loss
from medtransfer.tasks.mask_losses import MaskLoss

CONF = Path(__file__).parents[2] / "conf" / "loss"
TARGET = "medtransfer.tasks.mask_losses.MaskLoss"
CHOICES = {p.stem: yaml.safe_load(p.read_text()) for p in sorted(CONF.glob("*.yaml"))}
CHOICES = {name: node for name, node in CHOICES.items() if node["_target_"] == TARGET}
PARTS = ("cross_entropy", "focal", "dice", "jaccard", "tversky", "lovasz")
OVERLAPS = ("dice", "jaccard", "tversky")
COUNTS = (5, 3)  # two foreground classes
IGNORED = 255

masks = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda size: arrays(np.int64, (2, *size), elements=st.sampled_from([0, 1, 2, IGNORED]))
)


def make(**weights: float) -> Loss:
    node = {"_target_": TARGET, "focal_gamma": 2.0, "tversky_alpha": 0.3, "tversky_beta": 0.7}
    return build({**node, **dict.fromkeys(PARTS, 0.0), **weights}, Loss, counts=COUNTS)


def scene(mask=None, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    if mask is None:
        mask = torch.randint(0, 3, (2, 6, 7), generator=generator)
        mask[:, 0] = IGNORED
    mask = torch.as_tensor(mask)
    logits = torch.randn(len(mask), 3, *mask.shape[1:], generator=generator)
    return logits.requires_grad_(), mask


def pixels_of(logits, mask) -> list[tuple[list[float], int]]:
    """Return the probabilities and the class of each pixel that is known."""
    rows = logits.detach().double().softmax(1).movedim(1, -1).reshape(-1, 3).tolist()
    known = zip(rows, mask.flatten().tolist(), strict=True)
    return [(row, k) for row, k in known if k != IGNORED]


def overlap_by_hand(pixels, score) -> float:
    """Return the mean over foreground classes of 1 - score(hit, false, missed), absent ones 0."""
    total = 0.0
    for k in (1, 2):
        if any(true == k for _, true in pixels):
            hit = sum(row[k] for row, true in pixels if true == k)
            false = sum(row[k] for row, true in pixels if true != k)
            missed = sum(1 - row[k] for row, true in pixels if true == k)
            total += 1 - score(hit, false, missed)
    return total / 2


def lovasz_by_hand(pixels) -> float:
    """Return the mean over present classes of the Jaccard loss's Lovasz extension at the errors."""
    losses = []
    for k in sorted({true for _, true in pixels}):
        errors = sorted(
            ((1 - row[k] if true == k else row[k], true == k) for row, true in pixels),
            key=lambda pair: -pair[0],
        )
        positives, before, total = sum(own for _, own in errors), 0.0, 0.0
        for n in range(1, len(errors) + 1):  # the n worst pixels taken for wrong
            missed = sum(own for _, own in errors[:n])
            after = 1 - (positives - missed) / (positives + n - missed)
            total += errors[n - 1][0] * (after - before)
            before = after
        losses.append(total)
    return sum(losses) / len(losses)


FORMULAS = {
    "cross_entropy": lambda px: -np.mean([np.log(row[k]) for row, k in px]),
    "focal": lambda px: -np.mean([(1 - row[k]) ** 2 * np.log(row[k]) for row, k in px]),
    "dice": lambda px: overlap_by_hand(px, lambda h, f, m: 2 * h / (2 * h + f + m)),
    "jaccard": lambda px: overlap_by_hand(px, lambda h, f, m: h / (h + f + m)),
    "tversky": lambda px: overlap_by_hand(px, lambda h, f, m: h / (h + 0.3 * f + 0.7 * m)),
    "lovasz": lovasz_by_hand,
}


@pytest.mark.parametrize("part", PARTS)
@given(mask=masks, seed=st.integers(0, 99))
@settings(max_examples=30)
def test_each_part_is_its_formula_over_the_pixels_that_are_known(part, mask, seed):
    logits, mask = scene(mask, seed)
    pixels = pixels_of(logits, mask)
    expected = FORMULAS[part](pixels) if pixels else 0.0
    assert make(**{part: 1.0})(logits, mask).item() == pytest.approx(expected, abs=1e-5)


def test_parts_are_added_with_their_weights():
    logits, mask = scene()
    weights = dict(zip(PARTS, (0.5, 1.0, 2.0, 0.25, 3.0, 0.1), strict=True))
    each = [weight * make(**{part: 1.0})(logits, mask) for part, weight in weights.items()]
    torch.testing.assert_close(make(**weights)(logits, mask), sum(each))


@pytest.mark.parametrize("choice", CHOICES)
@given(mask=masks, seed=st.integers(0, 99))
@settings(max_examples=15)
def test_ignored_pixels_have_no_say(choice, mask, seed):
    loss = build(CHOICES[choice], Loss, counts=COUNTS)
    logits, mask = scene(mask, seed)
    ignored = (mask == IGNORED)[:, None]
    other = torch.where(ignored, 1e4 * torch.rand_like(logits), logits.detach())
    torch.testing.assert_close(loss(other, mask), loss(logits, mask))
    loss(logits, mask).backward()
    assert not (logits.grad * ignored).any()
    wider = torch.nn.functional.pad(mask, (0, 3), value=IGNORED)
    grown = torch.nn.functional.pad(logits, (0, 3), value=7.0)
    torch.testing.assert_close(loss(grown, wider), loss(logits, mask))


@pytest.mark.parametrize("choice", CHOICES)
@given(mask=masks)
@settings(max_examples=15)
def test_a_perfect_prediction_costs_nothing_and_a_wrong_one_more(choice, mask):
    loss = build(CHOICES[choice], Loss, counts=COUNTS)
    mask = torch.as_tensor(mask)
    truth = torch.nn.functional.one_hot(mask.clamp(max=2), 3).movedim(-1, 1).float()
    right, wrong = loss(40 * truth, mask), loss(40 * truth.roll(1, 1), mask)
    assert right.item() == pytest.approx(0, abs=1e-5)
    assert wrong >= right
    if (mask == 1).any():
        assert wrong > 0.4


@pytest.mark.parametrize("part", [*OVERLAPS, "lovasz"])
@given(mask=masks, seed=st.integers(0, 99), scale=st.sampled_from([0.0, 1.0, 100.0]))
@settings(max_examples=20)
def test_overlaps_lie_between_zero_and_one(part, mask, seed, scale):
    logits, mask = scene(mask, seed)
    assert -1e-6 <= make(**{part: 1.0})(scale * logits, mask).item() <= 1 + 1e-6


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("value", [0, IGNORED])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_batches_without_foreground_or_without_truth_give_finite_gradients(choice, value, scale):
    loss = build(CHOICES[choice], Loss, counts=COUNTS)
    logits, mask = scene(torch.full((2, 4, 4), value))
    found = loss(scale * logits, mask)
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(logits.grad).all()
    if value == IGNORED:
        assert found == 0
        assert not logits.grad.any()


@pytest.mark.parametrize("part", PARTS)
def test_foreground_teaches_every_part(part):
    logits, mask = scene()
    make(**{part: 1.0})(logits, mask).backward()
    assert logits.grad[:, :, 1:].abs().sum() > 0
    stepped = (logits - 0.5 * logits.grad / logits.grad.abs().max()).detach()
    assert make(**{part: 1.0})(stepped, mask) < make(**{part: 1.0})(logits, mask)


@pytest.mark.parametrize("part", OVERLAPS)
def test_background_alone_is_none_of_the_overlaps_affair(part):
    logits, mask = scene(torch.zeros(2, 4, 4, dtype=torch.long))
    loss = make(**{part: 1.0})(logits, mask)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("choice", CHOICES)
def test_half_precision_is_left_to_the_network(choice):
    loss = build(CHOICES[choice], Loss, counts=COUNTS)
    logits, mask = scene()
    halved = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(halved, mask)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(halved.float(), mask), rtol=0, atol=0)


def test_it_has_no_state_that_a_checkpoint_would_keep():
    assert make(**dict.fromkeys(PARTS, 1.0)).state_dict() == {}


def test_a_loss_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="no part"):
        make()


def test_logits_that_do_not_fit_the_classes_are_refused():
    logits, mask = scene()
    with pytest.raises(ValueError, match="4 classes"):
        make(dice=1.0)(torch.cat([logits, logits[:, :1]], 1), mask)


@pytest.mark.parametrize(
    ("key", "value"),
    [("dice", -1.0), ("focal_gamma", -0.1), ("tversky_alpha", 0.0), ("tversky_beta", "much")],
)
def test_values_without_meaning_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"loss\.{key}"):
        make(**{"jaccard": 1.0, key: value})


def test_every_choice_of_masks_is_here():
    assert set(CHOICES) >= {"dice", "dice_cross_entropy", "dice_focal", "lovasz", "tversky"}
    assert isinstance(build(CHOICES["dice"], Loss, counts=COUNTS), MaskLoss)

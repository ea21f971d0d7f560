"""Heads of exams: what pooling must keep, whatever it weighs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medtransfer.errors import ConfigError
from medtransfer.heads.exam import ExamPooling
from medtransfer.heads.linear import Linear

SIZE, OUTPUTS, VIEWS = 5, 3, ("CC", "MLO")
POOLINGS = ("mean", "max", "attention", "gated_attention", "late_fusion")
every_pooling = pytest.mark.parametrize("pooling", POOLINGS)
exams = st.lists(st.integers(1, 5), min_size=1, max_size=6)  # images of each


def made(pooling: str, norm: str = "none", views=VIEWS, seed: int = 0) -> ExamPooling:
    torch.manual_seed(seed)
    head = ExamPooling(
        in_features=SIZE,
        outputs=OUTPUTS,
        views=views,
        pooling=pooling,
        attention_size=4,
        norm=norm,
        dropout=0.0,
    )
    return head.eval()


def batch(sizes: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    exam = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    # few values, so that images share the most of a feature
    embedding = torch.randint(-2, 3, (len(exam), SIZE), generator=generator).float()
    view = torch.randint(-1, len(VIEWS), (len(exam),), generator=generator)
    return embedding, exam, view


@every_pooling
@given(sizes=exams, seed=st.integers(0, 99))
def test_the_order_of_images_in_an_exam_does_not_matter(pooling, sizes, seed):
    head, (embedding, exam, view) = made(pooling), batch(sizes, seed)
    shuffled = torch.randperm(len(exam), generator=torch.Generator().manual_seed(seed))
    order = shuffled[exam[shuffled].argsort(stable=True)]
    assert torch.equal(exam[order], exam)
    found = head(embedding[order], exam, view[order])
    torch.testing.assert_close(found, head(embedding, exam, view))
    weights = head.weights(embedding, exam, view)
    torch.testing.assert_close(head.weights(embedding[order], exam, view[order]), weights[order])


@every_pooling
@given(sizes=exams, seed=st.integers(0, 99))
def test_an_exam_is_judged_by_itself_wherever_it_stands(pooling, sizes, seed):
    head, (embedding, exam, view) = made(pooling), batch(sizes, seed)
    together = head(embedding, exam, view)
    assert together.shape == (len(sizes), OUTPUTS)
    for k in range(len(sizes)):
        mine = exam == k
        alone = head(embedding[mine], torch.zeros(sizes[k], dtype=torch.int64), view[mine])
        torch.testing.assert_close(alone[0], together[k])
    backwards = exam.argsort(descending=True, stable=True)
    renumbered = len(sizes) - 1 - exam[backwards]
    found = head(embedding[backwards], renumbered, view[backwards])
    torch.testing.assert_close(found.flip(0), together)


@every_pooling
@given(sizes=exams, seed=st.integers(0, 99))
def test_the_images_of_an_exam_share_its_weight(pooling, sizes, seed):
    head, (embedding, exam, view) = made(pooling), batch(sizes, seed)
    weights = head.weights(embedding, exam, view)
    assert (weights >= 0).all()
    sums = torch.zeros(len(sizes)).index_add(0, exam, weights)
    torch.testing.assert_close(sums, torch.ones(len(sizes)))


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("pooling", [name for name in POOLINGS if name != "late_fusion"])
@pytest.mark.parametrize("training", [True, False])
def test_an_exam_of_one_image_is_judged_as_the_linear_head_judges_it(pooling, norm, training):
    head = made(pooling, norm).train(training)
    linear = Linear(SIZE, OUTPUTS, norm, 0.0).train(training)
    linear.load_state_dict(head.classifier.state_dict())
    embedding, exam, view = batch([1] * 7)
    expected = linear(embedding)
    torch.testing.assert_close(head(embedding, exam, view), expected)
    torch.testing.assert_close(head(embedding), expected)


def test_mean_and_max_are_those_of_numpy():
    embedding, exam, _ = batch([3, 1, 4])
    groups = [embedding[exam == k].numpy() for k in range(3)]
    for pooling, compute in (("mean", np.mean), ("max", np.max)):
        head = made(pooling)
        expected = np.stack([compute(group, axis=0) for group in groups])
        np.testing.assert_allclose(head.pool(embedding, exam), expected, atol=1e-6)
        found = head.classifier(torch.from_numpy(expected))
        torch.testing.assert_close(head(embedding, exam), found)
        assert head.fixed


def test_under_max_an_image_counts_by_the_features_of_which_it_has_the_most():
    embedding = torch.tensor([[1.0, 5, 2, 0], [3.0, 5, 1, 0]])
    embedding = torch.cat([embedding, torch.zeros(2, 1)], 1)
    weights = made("max").weights(embedding, torch.tensor([0, 0]), torch.tensor([0, 0]))
    # the second feature and the last two are shared
    np.testing.assert_allclose(weights, [(1 + 1.5) / 5, (1 + 1.5) / 5])


@pytest.mark.parametrize("gated", [True, False])
def test_attention_is_the_formula_of_the_paper(gated):
    head = made("gated_attention" if gated else "attention")
    embedding, exam, view = batch([4, 2])
    content, gate = head.attention.content.linear, head.attention.gate
    for k in range(2):
        h = embedding[exam == k]
        units = torch.tanh(h @ content.weight.T + content.bias)
        if gated:
            units = units * torch.sigmoid(h @ gate.linear.weight.T + gate.linear.bias)
        expected = (units @ head.attention.score.weight[0]).softmax(0)
        found = head.weights(embedding, exam, view)[exam == k]
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(head.pool(embedding, exam)[k], expected @ h)
    assert not head.fixed


def test_attention_bears_any_score():
    head = made("attention")
    with torch.no_grad():
        head.attention.score.weight.mul_(1e4)
    embedding, exam, view = batch([5, 1])
    assert head.weights(embedding, exam, view).isfinite().all()
    assert head(embedding, exam, view).isfinite().all()


def test_late_fusion_averages_the_classifiers_of_the_views_that_are_there():
    head = made("late_fusion")
    embedding = torch.randn(5, SIZE)
    exam, view = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 1, 0, 1, -1])
    weight = head.classifier.linear.weight.view(2, OUTPUTS, SIZE)
    bias = head.classifier.linear.bias.view(2, OUTPUTS)
    cc, mlo = (embedding @ weight[k].T + bias[k] for k in range(2))
    expected = torch.stack([(cc[0] + mlo[1] + cc[2]) / 3, mlo[3], (cc[4] + mlo[4]) / 2])
    torch.testing.assert_close(head(embedding, exam, view), expected)
    torch.testing.assert_close(head(embedding), (cc + mlo) / 2)
    assert not head.fixed


@pytest.mark.parametrize("views", [(), ("",)])
def test_late_fusion_without_views_is_refused(views):
    with pytest.raises(ConfigError, match=r"(?s)no image has a view.*head\.pooling"):
        made("late_fusion", views=views)
    made("mean", views=views)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_what_is_solved_from_pooled_features_is_what_the_head_does(pooling, norm):
    head = made(pooling, norm)
    embedding, exam, view = batch([2, 3, 1, 4])
    inputs = head.fit_norm(head.pool(embedding, exam))
    if norm == "batch":
        np.testing.assert_allclose(inputs.mean(0), np.zeros(SIZE), atol=1e-5)
    weight, bias = torch.randn(OUTPUTS, SIZE), torch.randn(OUTPUTS)
    head.assign(weight, bias)
    torch.testing.assert_close(head(embedding, exam, view), inputs @ weight.T + bias)


@every_pooling
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_everything_in_the_head_learns(pooling, norm):
    head, (embedding, exam, view) = made(pooling, norm).train(), batch([3, 2, 4])
    head(embedding, exam, view).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


@every_pooling
def test_half_precision_gives_single_precision_weights(pooling):
    head, (embedding, exam, view) = made(pooling, "batch"), batch([3, 2, 4])
    exact = head(embedding, exam, view)
    with torch.autocast("cpu", torch.bfloat16):
        weights = head.weights(embedding.bfloat16(), exam, view)
        found = head(embedding.bfloat16(), exam, view)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(found.float(), exact, atol=0.05, rtol=0.05)

"""Restricted Boltzmann machines: against scikit-learn, against enumeration, and in their stack."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.neural_network import BernoulliRBM
from torch import nn

from medtransfer.backbones.encoder import ConvEncoder, DenseEncoder
from medtransfer.data.loading import Data
from medtransfer.errors import ConfigError
from medtransfer.pretrain import rbm as module
from medtransfer.pretrain.images import Images
from medtransfer.pretrain.rbm import RBM, Rbm, RbmLearner

VISIBLE, HIDDEN = 6, 4
PATTERNS = torch.tensor(  # what a model of 6 independent units cannot tell
    [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]]
).double()


def states(n):
    return torch.tensor(list(product((0.0, 1.0), repeat=n))).double()


def as_maps(values):
    return values[:, :, None, None]


def options(**changed):
    chosen = {"k": 1, "persistent": False, "chains": 3, "gaussian_lr": 1.0, "noise": 1.0}
    return Rbm(**{**chosen, "sparsity": None, "sparsity_cost": 1.0, **changed})


def machine(inputs, outputs, kernel=1, side=1, *, padding=0, visible="bernoulli", noise=1.0):
    """Return a machine with parameters that matter, all of them, in double precision."""
    torch.manual_seed(3)
    made = RBM(nn.Conv2d(inputs, outputs, kernel, padding=padding), side, visible, noise=noise)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.7)
    return made.double()


def dense(*widths, channels=1, size=4):
    torch.manual_seed(0)
    keys = {"channels": channels, "size": size, "image_size": size, "units": "sigmoid"}
    return DenseEncoder(widths=widths, **keys)


def conv(*widths, channels=1, side=8, units="sigmoid", norm="none"):
    torch.manual_seed(0)
    keys = {"channels": channels, "kernel": 3, "units": units, "norm": norm, "image_size": side}
    return ConvEncoder(widths=widths, **keys)


def learner_of(backbone, **changed):
    size = getattr(backbone, "size", 8)
    return RbmLearner(backbone, list(backbone.stages()), size, options(**changed))


def binary_learner(**changed):
    """Return a learner of one machine whose visible units are the 6 channels of a pixel."""
    backbone = dense(HIDDEN, channels=VISIBLE, size=1)
    backbone.mean.zero_()
    backbone.std.fill_(1)
    learner = learner_of(backbone, **changed)
    learner.rbms[0] = RBM(backbone.layers[0].sums, 1, "bernoulli")
    learner.double().begin(0)
    return learner


def a_batch(learner, n=5, side=None, dtype=torch.float32):
    side = side or getattr(learner.backbone, "size", 8)
    generator = torch.Generator().manual_seed(1)
    shape = (n, learner.backbone.channels_in, side, side)
    return {"image": torch.rand(shape, generator=generator, dtype=dtype)}


def step(learner, batch, lr=0.1):
    for parameter in learner.parameters():
        parameter.grad = None
    values = learner(batch)
    values["loss"].backward()
    torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=lr).step()
    return values


def scikit_learn(made, chains):
    """Return scikit-learn's machine with the parameters of a fully connected one."""
    model = BernoulliRBM(n_components=made.sums.out_channels, learning_rate=0.1)
    model.components_ = made.sums.weight.detach().flatten(1).numpy().copy()
    model.intercept_hidden_ = made.sums.bias.detach().numpy().copy()
    model.intercept_visible_ = made.bias.detach().flatten().numpy().copy()
    model.h_samples_ = np.zeros((chains, made.sums.out_channels))
    return model


# --- against scikit-learn ----------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "side"), [(VISIBLE, 1), (2, 3)])
def test_probabilities_and_free_energies_are_those_of_scikit_learn(channels, side):
    made = machine(channels, HIDDEN, kernel=side, side=side)
    values = torch.rand(7, channels, side, side, dtype=torch.double)
    flat = values.flatten(1).numpy()
    model = scikit_learn(made, 1)
    with torch.no_grad():
        ours, energy = made.hidden(values).flatten(1), made.free_energy(values)
    np.testing.assert_allclose(ours, model.transform(flat), atol=1e-6)
    np.testing.assert_allclose(energy, model._free_energy(flat), atol=1e-6)


def test_updates_are_those_of_scikit_learn_from_the_same_draws(monkeypatch):
    learner = learner_of(dense(6, HIDDEN), persistent=True, chains=5).double()
    learner.begin(1)
    made = learner.rbms[1]
    nn.init.normal_(made.bias)
    batch = a_batch(learner, dtype=torch.double)
    model = scikit_learn(made, 5)
    ours, theirs = np.random.RandomState(0), np.random.RandomState(0)

    def draws(like):
        return torch.from_numpy(ours.uniform(size=like.shape))

    monkeypatch.setattr(module, "uniform", draws)
    visible = learner.backbone.layers[0](learner.backbone.normalised(batch["image"]))
    for _ in range(4):  # the chain goes on, so later steps depend on its state
        step(learner, batch)
        model._fit(visible.detach().flatten(1).numpy(), theirs)
        for value, wanted in (
            (made.sums.weight, model.components_),
            (made.sums.bias, model.intercept_hidden_),
            (made.bias, model.intercept_visible_),
            (learner.chain_1, model.h_samples_),
        ):
            flat = value.detach().double().numpy().reshape(wanted.shape)
            np.testing.assert_allclose(flat, wanted, atol=1e-6)
    assert model.h_samples_.any()


# --- against enumeration -----------------------------------------------------------------------


def log_likelihood(made, data):
    partition = torch.logsumexp(-made.free_energy(as_maps(states(VISIBLE))), 0)
    return -made.free_energy(as_maps(data)).mean() - partition


def test_the_free_energy_sums_over_all_hidden_states():
    made = machine(VISIBLE, HIDDEN)
    values, hidden = states(VISIBLE), states(HIDDEN)
    with torch.no_grad():
        weight, bias = made.sums.weight.flatten(1), made.sums.bias
        energies = -(values @ made.bias.flatten())[:, None] - (values @ weight.T + bias) @ hidden.T
        ours = made.free_energy(as_maps(values))
    torch.testing.assert_close(ours, -torch.logsumexp(-energies, 1))


@pytest.mark.parametrize("noise", [1.0, 0.3])
def test_gaussian_visible_units_have_the_energy_that_their_means_come_from(noise):
    made = machine(VISIBLE, HIDDEN, visible="gaussian", noise=noise)
    hidden = states(HIDDEN)
    weight, bias, own = made.sums.weight.flatten(1), made.sums.bias, made.bias.flatten()

    def energy(values):  # (N, states)
        square = (values - own).square().sum(-1) / (2 * noise**2)
        return square[:, None] - (values @ weight.T + bias) @ hidden.T

    values = torch.randn(9, VISIBLE, dtype=torch.double)
    summed = -torch.logsumexp(-energy(values), 1)
    torch.testing.assert_close(made.free_energy(as_maps(values)), summed)

    # given a hidden state, the energy is least at the mean, and its curvature is the variance
    means = made.mean_visible(as_maps(hidden)).flatten(1).detach().requires_grad_()
    energy(means).diagonal().sum().backward()
    torch.testing.assert_close(means.grad, torch.zeros_like(means))
    many = as_maps(hidden[5].expand(20_000, -1))
    drawn = made.sample_visible(many).flatten(1)
    torch.testing.assert_close(drawn.mean(0), means[5].detach(), atol=0.03 * noise, rtol=0)
    torch.testing.assert_close(
        drawn.std(0), torch.full_like(drawn[0], noise), atol=0.03 * noise, rtol=0
    )


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_a_chain_tends_to_the_models_distribution(visible):
    made = machine(VISIBLE, HIDDEN, visible=visible)
    torch.manual_seed(0)
    with torch.no_grad():
        end = made.gibbs(torch.zeros(20_000, HIDDEN, 1, 1).double(), 30)
        found = made.sample_hidden(end).flatten(1).mean(0)
        # of the joint distribution, only hidden states are left to sum over
        hidden = states(HIDDEN)
        received = made.bias.flatten() + hidden @ made.sums.weight.flatten(1)
        if visible == "bernoulli":
            weights = nn.functional.softplus(received).sum(1)
        else:
            weights = (received.square() - made.bias.flatten().square()).sum(1) / 2
        shares = (weights + hidden @ made.sums.bias).softmax(0)
    torch.testing.assert_close(found, shares @ hidden, atol=0.02, rtol=0)


@pytest.mark.parametrize("persistent", [False, True])
def test_the_exact_likelihood_rises_beyond_what_independent_units_reach(persistent):
    learner = binary_learner(persistent=persistent, chains=64)
    made = learner.rbms[0]
    batch = {"image": as_maps(PATTERNS.repeat(8, 1))}
    before = float(log_likelihood(made, PATTERNS).detach())
    torch.manual_seed(0)
    for _ in range(600):
        step(learner, batch, lr=0.2)
    after = float(log_likelihood(made, PATTERNS).detach())
    independent = -VISIBLE * np.log(2)  # every unit is on half of the time
    assert before < independent + 0.1
    assert after > independent + 1.5  # at most log(1/4), which is 2.8 above
    assert after < -np.log(4)


@pytest.mark.parametrize(("persistent", "k", "least"), [(False, 1, 0.8), (True, 5, 0.95)])
def test_the_estimated_gradient_points_along_the_exact_one(persistent, k, least):
    learner = binary_learner(persistent=persistent, chains=2000, k=k)
    made = learner.rbms[0]
    torch.manual_seed(0)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    parameters = list(made.parameters())
    batch = {"image": as_maps(PATTERNS.repeat(500, 1))}
    for _ in range(5):  # chains find the model
        loss = learner(batch)["loss"]
    estimated = torch.autograd.grad(loss, parameters)
    exact = torch.autograd.grad(-log_likelihood(made, PATTERNS), parameters)
    for ours, wanted in zip(estimated, exact, strict=True):
        assert torch.cosine_similarity(ours.flatten(), wanted.flatten(), dim=0) > least


# --- convolution -------------------------------------------------------------------------------


def test_down_is_the_adjoint_of_up():
    made = machine(2, 5, kernel=3, side=6, padding=1, visible="gaussian")
    nn.init.zeros_(made.bias)
    nn.init.zeros_(made.sums.bias)
    visible = torch.randn(1, 2, 6, 6, dtype=torch.double)
    hidden = torch.randn(1, *made.hidden_shape, dtype=torch.double)
    up, down = (made.sums(visible) * hidden).sum(), (visible * made.mean_visible(hidden)).sum()
    torch.testing.assert_close(up, down)


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_a_convolution_is_a_fully_connected_machine_with_shared_weights(visible):
    made = machine(2, 3, kernel=3, side=4, padding=1, visible=visible)
    inputs, outputs = 2 * 16, 3 * 16
    wide = machine(inputs, outputs, visible=visible)
    with torch.no_grad():
        units = torch.eye(inputs, dtype=torch.double).view(inputs, 2, 4, 4)
        rows = (made.sums(units) - made.sums(torch.zeros_like(units))).flatten(1)
        wide.sums.weight.copy_(rows.T[:, :, None, None])
        wide.sums.bias.copy_(made.sums.bias.repeat_interleave(16))
        wide.bias.copy_(made.bias.expand(2, 4, 4).reshape(-1, 1, 1))
        values = torch.rand(5, 2, 4, 4, dtype=torch.double)
        flat = as_maps(values.flatten(1))
        torch.testing.assert_close(made.free_energy(values), wide.free_energy(flat))
        hidden = made.hidden(values)
        torch.testing.assert_close(hidden.flatten(1), wide.hidden(flat).flatten(1))
        down = made.mean_visible(hidden).flatten(1)
        torch.testing.assert_close(down, wide.mean_visible(as_maps(hidden.flatten(1))).flatten(1))


def test_visible_biases_are_shared_where_the_kernel_moves_and_only_there():
    assert machine(2, 3, kernel=3, side=6, padding=1).bias.shape == (2, 1, 1)
    assert machine(2, 3, kernel=6, side=6).bias.shape == (2, 6, 6)


# --- the stack ---------------------------------------------------------------------------------

STACKS = {"dense": lambda: dense(6, 5, 4), "conv": lambda: conv(6, 5, 4)}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_changes_its_own_parameters_and_no_others(stack, stage):
    learner = learner_of(STACKS[stack]())
    assert len(learner.stages) == 3
    learner.begin(2 - stage)  # whatever came before
    learner.begin(stage)
    before = {name: value.clone() for name, value in learner.named_parameters()}
    torch.manual_seed(0)
    step(learner, a_batch(learner))
    changed = {name for name, value in learner.named_parameters() if (value != before[name]).any()}
    learning = {name for name, value in learner.named_parameters() if value.requires_grad}
    layer = f"backbone.layers.{stage}.sums"
    assert changed == learning == {f"{layer}.weight", f"{layer}.bias", f"rbms.{stage}.bias"}
    assert [layer.training for layer in learner.backbone.layers].count(True) == 0
    assert learner.rbms[stage].training


@pytest.mark.parametrize("stack", STACKS)
def test_a_stage_sees_what_the_network_hands_on(stack):
    backbone = STACKS[stack]()
    learner = learner_of(backbone)
    learner.begin(2)
    seen = []
    learner.rbms[2].sums.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = a_batch(learner)
    learner(batch)
    images = backbone.normalised(batch["image"])
    assert torch.equal(seen[0], backbone.layers[1](backbone.layers[0](images)))
    assert not seen[0].requires_grad


def test_only_the_first_stage_sees_unbounded_values():
    learner = learner_of(conv(6, 5, 4), noise=0.5)
    assert [made.visible for made in learner.rbms] == ["gaussian", "bernoulli", "bernoulli"]
    assert learner.rbms[0].noise == 0.5


@pytest.mark.parametrize("stage", [0, 1])
def test_the_factor_of_the_first_layer_scales_its_loss_and_no_other(stage):
    losses = []
    for factor in (1.0, 0.25):
        learner = learner_of(dense(6, 5), gaussian_lr=factor)
        learner.begin(stage)
        torch.manual_seed(0)
        losses.append(float(learner(a_batch(learner))["loss"]))
    assert losses[1] / losses[0] == pytest.approx(0.25 if stage == 0 else 1.0)


def test_the_loss_is_that_of_one_place():
    learner = learner_of(conv(3, 2))
    learner.begin(0)
    made = learner.rbms[0]
    ends = []
    gibbs = made.gibbs
    made.gibbs = lambda *given: ends.append(gibbs(*given)) or ends[-1]
    batch = a_batch(learner)
    loss = learner(batch)["loss"]
    data = learner.backbone.normalised(batch["image"])
    gap = made.free_energy(data).mean() - made.free_energy(ends[0]).mean()
    torch.testing.assert_close(loss, gap / 64)


@pytest.mark.parametrize(("bias", "sign"), [(-6.0, -1), (6.0, 1)])
def test_sparsity_wakes_units_that_are_off_and_calms_those_that_are_on(bias, sign):
    gradients = []
    for target in (None, 0.2):
        learner = learner_of(conv(3, 2), sparsity=target)
        learner.begin(0)
        nn.init.constant_(learner.rbms[0].sums.bias, bias)
        torch.manual_seed(0)
        learner(a_batch(learner))["loss"].backward()
        gradients.append(learner.rbms[0].sums.bias.grad)
    pull = sign * (gradients[1] - gradients[0])
    assert (pull > 0.15).all()  # about |mean - target|


def test_a_learnt_stage_is_measured():
    learner = learner_of(conv(3, 2))
    learner.begin(1)
    seen, unseen = (a_batch(learner, n, 8)["image"] for n in (70, 5))
    with torch.no_grad():
        measured = learner.measure(seen, unseen)
        made, below = learner.rbms[1], learner.backbone.layers[0]
        energies = [made.free_energy(below((x - 0.5) / 0.25)).mean() for x in (seen, unseen)]
    gap = float(energies[1] - energies[0]) / 16
    assert measured["val/free_energy_gap"] == pytest.approx(gap, abs=1e-4)
    assert 0 < measured["val/activation"] < 1


def test_a_reconstruction_is_one_for_the_best_constant_and_zero_when_perfect():
    made = machine(2, 3, kernel=3, side=4, padding=1, visible="gaussian")
    values = torch.randn(6, 2, 4, 4, dtype=torch.double) + 3
    hidden = made.hidden(values)
    with torch.no_grad():
        made.sums.weight.zero_()
        made.bias.copy_(values.mean((0, 2, 3))[:, None, None])
        assert float(made.reconstruction(values, hidden)) == pytest.approx(1)
        assert float(made.reconstruction(made.mean_visible(hidden) + 0 * values, hidden)) == 0


# --- chains ------------------------------------------------------------------------------------


def test_persistent_chains_are_kept_with_the_learner_and_move():
    learner = learner_of(conv(3, 2), persistent=True, chains=4)
    shapes = {k: tuple(v.shape) for k, v in learner.state_dict().items() if "chain" in k}
    assert shapes == {"chain_0": (4, 3, 8, 8), "chain_1": (4, 2, 4, 4)}
    learner.begin(1)
    before = learner.state_dict()["chain_1"].clone()
    torch.manual_seed(0)
    learner(a_batch(learner))
    middle = {k: v.clone() for k, v in learner.state_dict().items()}
    assert not torch.equal(middle["chain_1"], before)
    assert not middle["chain_0"].any()

    other = learner_of(conv(3, 2), persistent=True, chains=4)
    other.load_state_dict(middle)
    other.begin(1)  # does not start the chain anew
    for one in (learner, other):
        torch.manual_seed(1)
        step(one, a_batch(one))
    for name, value in learner.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_contrastive_divergence_starts_from_draws_given_the_images():
    learner = learner_of(dense(2, size=1), k=1)
    learner.begin(0)
    made, starts = learner.rbms[0], []
    gibbs = made.gibbs
    made.gibbs = lambda hidden, steps: starts.append(hidden) or gibbs(hidden, steps)
    torch.manual_seed(0)
    batch = {"image": torch.full((20_000, 1, 1, 1), 0.9)}
    learner(batch)
    assert set(starts[0].unique().tolist()) == {0.0, 1.0}
    wanted = made.hidden(learner.backbone.normalised(batch["image"])).mean(0)
    torch.testing.assert_close(starts[0].mean(0), wanted.detach(), atol=0.02, rtol=0)


def test_contrastive_divergence_keeps_no_chain():
    assert not any("chain" in name for name in learner_of(conv(3, 2)).state_dict())


# --- the source --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(phantom, tmp_path_factory):
    return Images(Data.open(phantom, cache=tmp_path_factory.mktemp("cache"), seed=0), seed=0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: conv(3, 2, units="relu"),
        lambda: conv(3, 2, norm="batch"),
        lambda: DenseEncoder(channels=1, size=4, widths=[3], units="relu", image_size=32),
    ],
)
def test_another_backbone_is_refused(wrong, images):
    with pytest.raises(ConfigError, match="logistic units") as caught:
        options().learner(wrong(), images)
    assert caught.value.remedy == "backbone=sigmoid_encoder or backbone=dense_encoder"


def test_a_network_that_is_no_stack_is_refused(images):
    from medtransfer.backbones.pixels import Pixels

    with pytest.raises(ConfigError, match="'pixels' is not a stack"):
        options().learner(Pixels(channels=1, size=8, image_size=32), images)


def test_the_network_takes_over_the_statistics_of_the_training_images(images):
    backbone = conv(3, 2, side=32)
    options().learner(backbone, images)
    pixels = backbone.normalised(images.some("train", 1000))
    assert float(pixels.mean()) == pytest.approx(0, abs=1e-4)
    assert float(pixels.std(correction=0)) == pytest.approx(1, abs=1e-4)
    others = backbone.normalised(images.some("val", 1000))
    assert abs(float(others.mean())) > 1e-3


def test_images_of_one_colour_have_a_deviation_that_can_be_divided_by():
    decoded = SimpleNamespace(images=np.full((2, 3, 4, 4), 51, np.uint8))
    data = SimpleNamespace(decoded=decoded, train=np.arange(2), spec=SimpleNamespace(channels=3))
    found = Images(data, seed=0).normalisation()
    assert found.mean == pytest.approx((0.2, 0.2, 0.2))
    assert found.std == pytest.approx((1e-3, 1e-3, 1e-3))


def test_the_weights_that_it_makes_load_into_a_trial(cli, home):
    data = ("dataset=phantom", "dataset.patients=18", "dataset.size=32", "dataset.image_size=32")
    small = ("backbone=dense_encoder", "backbone.size=8", "backbone.widths=[12,6]")
    quick = ("trainer.threads=1", "trainer.workers=0", "trainer.accelerator=cpu")
    made = cli("pretrain", "source=rbm", *data, *small, *quick, "trainer.max_steps=3")
    assert made.code == 0, made.err
    used = cli("train", "weights=rbm", *data, *small, *quick, "trainer.max_epochs=1")
    assert used.code == 0, used.err
    refused = cli("pretrain", "source=rbm", *data, "backbone=conv_encoder", *quick)
    assert refused.code == 2
    assert "backbone=sigmoid_encoder" in refused.err

"""Stacked denoising auto-encoders: what learns, on what, and what it is compared with."""

from functools import partial

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.decomposition import PCA

from medtransfer.backbones.base import Normalisation
from medtransfer.backbones.encoder import ConvEncoder, DenseEncoder
from medtransfer.backbones.timm import TimmBackbone
from medtransfer.data.loading import Data
from medtransfer.errors import ConfigError
from medtransfer.pretrain import sae
from medtransfer.pretrain.base import Batches, Pretraining
from medtransfer.pretrain.images import Images
from medtransfer.pretrain.sae import Sae, StackLearner, corrupt
from medtransfer.pretrain.shapes import Shapes
from medtransfer.quiet import quiet_libraries
from medtransfer.tasks.schedulers import Constant

SIZE = 32


def backbone(kind):
    torch.manual_seed(0)
    if kind == "conv":
        keys = {"kernel": 3, "units": "relu", "norm": "batch"}
        return ConvEncoder(channels=2, widths=[6, 10], image_size=SIZE, **keys)
    if kind == "dense":
        return DenseEncoder(channels=2, size=8, widths=[12, 5], units="sigmoid", image_size=SIZE)
    return TimmBackbone(kind, 2, SIZE)


def learner(kind="conv", *, image_size=SIZE, **keys):
    source = Sae(**{"corruption": "mask", "strength": 0.3, "unroll": True, **keys})
    return StackLearner(backbone(kind), image_size, source)


def images(n=24, seed=0):
    return Shapes(SIZE, 2).batch(n, torch.Generator().manual_seed(seed))[0]


class Drawn:
    """The same few images in every batch."""

    def draw(self, step, size, channels, generator):  # noqa: ARG002
        return {"image": images(size), "target": torch.zeros(size, dtype=torch.int64)}


def fit(made, stage, steps=3, lr=0.01):
    quiet_libraries()
    made.begin(stage)
    module = Pretraining(made, stage, Constant(), partial(torch.optim.Adam, lr=lr), 0)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Batches(Drawn(), 16, 2, range(steps), 0).loader(0))
    return made


def state(made):
    return {name: value.clone() for name, value in made.state_dict().items()}


def moved(before, after):
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def tensors_of(made, *parts):
    """Return the names in the learner's state of all tensors of some modules."""
    own = {id(tensor) for part in parts for tensor in part.state_dict(keep_vars=True).values()}
    return {name for name, value in made.state_dict(keep_vars=True).items() if id(value) in own}


KINDS = ["conv", "dense", "test_resnet"]


@pytest.mark.parametrize("kind", KINDS)
def test_stages_in_turn_make_what_the_backbone_makes(kind):
    network = backbone(kind).eval()
    level = network.normalised(images(2))
    levels = []
    for stage in network.stages():
        level = stage(level)
        levels.append(level)
    if kind == "dense":
        assert torch.equal(levels[-1].flatten(1), network.embed(images(2)))
        return
    expected = network.pyramid(images(2))
    assert len(levels) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(levels, expected, strict=True))


@pytest.mark.parametrize("kind", ["test_vit", "test_convnext"])
def test_a_backbone_that_is_no_chain_is_refused(kind):
    with pytest.raises(ConfigError, match=r"no chain(?s:.)*backbone=conv_encoder(?s:.)*resnet"):
        learner(kind)


def test_a_share_that_leaves_nothing_is_refused():
    for corruption in ("mask", "salt_and_pepper"):
        with pytest.raises(ConfigError, match="strength=1 leaves nothing"):
            Sae(corruption=corruption, strength=1.0, unroll=False)
    Sae(corruption="gaussian", strength=1.0, unroll=False)


@pytest.mark.parametrize("kind", KINDS)
def test_building_a_learner_leaves_the_backbone_as_it_was(kind):
    network = backbone(kind)
    before = state(network)
    next(network.children()).eval()
    modes = [module.training for module in network.modules()]
    made = StackLearner(network, SIZE, Sae(corruption="mask", strength=0.3, unroll=True))
    assert not moved(before, network.state_dict())
    assert [module.training for module in network.modules()] == modes
    depth = len(network.stages())
    assert list(made.stages) == [*(f"stage {k + 1}" for k in range(depth)), "unrolled"]
    assert list(learner(kind, unroll=False).stages) == made.stages[:-1]


@pytest.mark.parametrize("size", [20, 25, 27, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_decoders_make_the_input_of_their_stage_at_any_size(kind, size):
    made = learner(kind, image_size=size).eval()
    x = made.backbone.normalised(torch.rand(2, 2, size, size))
    for stage, decoder in zip(made.backbone.stages(), made.decoders, strict=True):
        assert decoder(stage(x)).shape == x.shape
        x = stage(x)


@pytest.mark.parametrize("kind", KINDS)
def test_what_learns_in_a_stage_is_in_train_mode_and_nothing_else_is(kind):
    made = learner(kind)
    depth = len(made.decoders)
    for stage in (*range(depth + 1), 0):  # and back again
        made.begin(stage)
        chosen = slice(None) if stage == depth else slice(stage, stage + 1)
        parts = (*made.backbone.stages()[chosen], *made.decoders[chosen])
        learning = {p for part in parts for p in part.parameters()}
        assert {p for p in made.parameters() if p.requires_grad} == learning
        inside = {module for part in parts for module in part.modules()}
        for module in made.modules():
            if not list(module.children()) and module in set(made.modules()):
                assert module.training == (module in inside), module


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", [0, 1])
def test_the_trainer_moves_the_stage_and_its_decoder_and_not_one_bit_else(kind, stage):
    made = learner(kind)
    before = state(made)
    fit(made, stage)
    parts = (made.backbone.stages()[stage], made.decoders[stage])
    assert moved(before, made.state_dict()) == tensors_of(made, *parts)


@pytest.mark.parametrize("kind", KINDS)
def test_unrolled_everything_moves(kind):
    made = learner(kind)
    before = state(made)
    fit(made, len(made.decoders))
    assert moved(before, made.state_dict()) == set(before) - {"backbone.mean", "backbone.std"}


@pytest.mark.parametrize("kind", KINDS)
def test_reconstruction_of_each_stage_falls_with_training(kind):
    made = learner(kind, strength=0.1)
    for stage in range(len(made.stages)):
        errors = []
        for steps in (0, 40):
            made.begin(stage)
            if steps:
                fit(made, stage, steps, lr=0.02 if kind == "dense" else 0.005)
            made.eval()
            with torch.no_grad():
                errors.append(made.measure(images(), images(8))["val/reconstruction"])
        if stage < len(made.decoders):  # unrolled, it starts from what has been learnt
            assert errors[1] < 0.8 * errors[0], made.stages[stage]
        else:
            assert errors[1] < errors[0]


def test_a_seed_decides_the_weights_bit_for_bit():
    first, again, other = (learner() for _ in range(3))
    fit(first, 0)
    torch.manual_seed(7)
    fit(again, 0)
    assert not moved(state(first), again.state_dict())
    other.source = Sae(corruption="mask", strength=0.2, unroll=True)
    fit(other, 0)
    assert moved(state(first), other.state_dict())


def test_the_mask_takes_its_share_and_leaves_the_rest():
    clean = torch.randn(8, 4, 16, 16) + 3
    torch.manual_seed(0)
    corrupted = corrupt(clean, "mask", 0.3)
    hit = corrupted != clean
    assert abs(hit.float().mean() - 0.3) < 0.02
    assert (corrupted[hit] == 0).all()
    # each value by itself: neither whole places nor whole channels
    assert hit.float().mean(1).std() > 0.1
    assert not torch.equal(hit[:, 0], hit[:, 1])


def test_noise_is_relative_to_the_spread_of_the_input():
    clean = 5 * torch.randn(8, 4, 16, 16) + 3
    noise = corrupt(clean, "gaussian", 0.5) - clean
    assert abs(noise.std() / (0.5 * clean.std()) - 1) < 0.05
    assert abs(noise.mean()) < 0.2


def test_salt_and_pepper_are_the_extremes_of_a_channel_in_equal_parts():
    clean = torch.randn(8, 4, 16, 16) * torch.tensor([1.0, 2, 3, 4]).view(1, -1, 1, 1)
    corrupted = corrupt(clean, "salt_and_pepper", 0.4)
    hit = corrupted != clean
    assert abs(hit.float().mean() - 0.4) < 0.03
    for channel in range(4):
        values = corrupted[:, channel][hit[:, channel]]
        salt, pepper = clean[:, channel].max(), clean[:, channel].min()
        assert set(values.tolist()) == {salt.item(), pepper.item()}
        assert abs((values == salt).float().mean() - 0.5) < 0.1


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_sees_the_corrupted_input_and_is_held_to_the_clean_one(stage, monkeypatch):
    made = learner().eval()
    made.begin(stage)
    made.eval()
    clean = made.backbone.normalised(images())
    if stage == 1:
        clean = made.backbone.stages()[0](clean)
    given = []

    def spoil(x, corruption, strength):
        assert torch.equal(x, clean)
        assert (corruption, strength) == ("mask", 0.3)
        given.append(x + 1)
        return given[0]

    monkeypatch.setattr(sae, "corrupt", spoil)
    loss = made({"image": images()})["loss"]
    (x,) = given
    low, high = (0, 2) if stage == 2 else (stage, stage + 1)
    for part in (*made.backbone.stages()[low:high], *made.decoders[low:high][::-1]):
        x = part(x)
    variance = clean.var((0, 2, 3), correction=0).mean()
    torch.testing.assert_close(loss, (x - clean).square().mean() / variance)


def test_who_predicts_the_mean_of_each_channel_has_a_loss_of_one():
    made = learner().eval()
    made.begin(0)
    made.eval()
    clean = made.backbone.normalised(images())
    with torch.no_grad():
        made.decoders[0].layer.weight.zero_()
        made.decoders[0].layer.bias.copy_(clean.mean((0, 2, 3)))
        assert made({"image": images()})["loss"].item() == pytest.approx(1)
        assert made.measure(images(), images())["val/reconstruction"] == pytest.approx(1)


def pca_error(seen, unseen, width, channels):
    """Return the error of principal components on rows (n, channels * places)."""
    pca = PCA(min(width, *seen.shape), svd_solver="full").fit(seen)
    error = np.square(pca.inverse_transform(pca.transform(unseen)) - unseen).sum()
    by_channel = unseen.reshape(len(unseen), channels, -1)
    return error / np.square(by_channel - by_channel.mean((0, 2), keepdims=True)).sum()


def rows(x, size):
    """Return each patch of (N, C, H, W) in a row, found one by one."""
    places = range(0, x.shape[2] - size + 1, size)
    found = [x[:, :, i : i + size, j : j + size].flatten(1) for i in places for j in places]
    return torch.cat(found).double().numpy()


@pytest.mark.parametrize(
    ("kind", "stage", "size", "width"),
    [
        ("conv", 0, 2, 6),
        ("conv", 1, 2, 10),
        ("conv", 2, 4, 10),
        ("dense", 0, 8, 12),
        ("dense", 1, 1, 5),
        ("dense", 2, 8, 5),
        ("test_resnet", 2, 2, 48),
    ],
)
def test_components_are_those_of_a_direct_computation(kind, stage, size, width):
    made = fit(learner(kind), stage, 1).eval()
    seen, unseen = images(40), images(37, seed=1)
    with torch.no_grad():
        measured = made.measure(seen, unseen)
        levels = [made.backbone.normalised(both) for both in (seen, unseen)]
        for part in made.backbone.stages()[: stage if stage < len(made.decoders) else 0]:
            levels = [part(level) for level in levels]
        assert made.shapes[stage + 1 if stage < len(made.decoders) else -1].channels == width
    inputs = [rows(level, size) for level in levels]
    expected = pca_error(*inputs, width, levels[0].shape[1])
    assert measured["val/pca_reconstruction"] == pytest.approx(expected, rel=1e-4, abs=1e-9)
    own = made._reconstructed(levels[1]).detach() - levels[1]
    spread = levels[1].var((0, 2, 3), correction=0).mean()
    relative = (own.square().mean() / spread).item()
    assert measured["val/reconstruction"] == pytest.approx(relative, rel=1e-3)


def test_components_as_many_as_values_lose_nothing():
    made = learner("test_resnet").eval()  # its first stage makes 24 channels of 2 x 2 x 2 values
    made.begin(0)
    made.eval()
    with torch.no_grad():
        measured = made.measure(images(40), images(8, seed=1))
    assert measured["val/pca_reconstruction"] == pytest.approx(0, abs=1e-9)
    assert measured["val/reconstruction"] > 0.1


def test_the_backbone_takes_over_the_statistics_of_the_training_images(phantom, tmp_path):
    data = Data.open(phantom, cache=tmp_path, seed=0)
    keys = {"kernel": 3, "units": "relu", "norm": "batch"}
    network = ConvEncoder(channels=1, widths=[4], image_size=SIZE, **keys)
    source = Sae(corruption="mask", strength=0.3, unroll=False)
    made = source.learner(network, source.material(Images(data, 0)))
    pixels = torch.from_numpy(data.decoded.images[data.train]).float() / 255
    normalised = made.backbone.normalised(pixels)
    assert normalised.mean().item() == pytest.approx(0, abs=1e-4)
    assert normalised.std().item() == pytest.approx(1, abs=1e-3)


def test_images_without_contrast_do_no_harm():
    made = learner()
    made.backbone.normalise_by(Normalisation((0.3, 0.3), (1e-3, 1e-3)))
    made.begin(0)
    loss = made({"image": torch.full((4, 2, SIZE, SIZE), 0.3)})["loss"]
    assert loss.isfinite()
    made.eval()
    with torch.no_grad():
        measured = made.measure(*2 * (torch.full((4, 2, SIZE, SIZE), 0.3),))
    assert all(np.isfinite(value) for value in measured.values())


def test_a_dataset_is_needed_and_the_command_line_wins(cli, compose):
    result = cli("pretrain", "source=sae")
    assert result.code == 2
    assert "dataset=NAME" in result.err
    assert compose("source=sae", name="pretrain").choices["backbone"] == "conv_encoder"
    own = compose(
        "source=sae", "backbone=resnet10t", "optimizer.lr=7", "source.unroll=true", name="pretrain"
    )
    assert own.choices["backbone"] == "resnet10t"
    plain = own.plain()
    assert plain["optimizer"]["lr"] == 7
    assert plain["source"]["unroll"] is True


def test_each_stage_has_a_run_of_its_own_and_the_weights_load(cli, list_runs, tiny):
    data = ("dataset=phantom", *tiny[-3:], "trainer.threads=1", "backbone=conv_encoder")
    made = cli(
        "pretrain",
        "source=sae",
        "trainer.max_steps=2",
        "backbone.widths=[4,6]",
        "source.unroll=true",
        *data,
    )
    assert made.code == 0, made.err
    runs = {run.info.run_name: run for run in list_runs()}
    for name in ("stage 1", "stage 2", "unrolled"):
        metrics = runs[name].data.metrics
        assert {"train/loss", "val/reconstruction", "val/pca_reconstruction"} <= set(metrics)
    trained = cli("train", "weights=sae", "backbone.widths=[4,6]", "trainer.max_epochs=1", *data)
    assert trained.code == 0, trained.err

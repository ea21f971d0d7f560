import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medtransfer.pretrain.shapes import TARGETS, Shapes


def batch(size: int = 64, channels: int = 1, n: int = 16, seed: int = 0):
    return Shapes(size, channels).batch(n, torch.Generator().manual_seed(seed))


@settings(max_examples=15, deadline=None)
@given(
    size=st.integers(16, 128),
    channels=st.sampled_from([1, 3]),
    n=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_every_batch_is_well_formed(size, channels, n, seed):
    images, targets = batch(size, channels, n, seed)
    assert images.shape == (n, channels, size, size)
    assert targets.shape == (n, len(TARGETS), size, size)
    assert images.dtype == targets.dtype == torch.float32
    assert 0 <= images.min() <= images.max() <= 1
    assert targets.isfinite().all()


def test_batches_follow_the_generator_bit_for_bit():
    for first, second in zip(batch(), batch(), strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(batch()[0], batch(seed=1)[0])


def test_a_generator_moves_on_and_nothing_else_does():
    generator, state = torch.Generator().manual_seed(0), torch.get_rng_state()
    source = Shapes(32, 1)
    first, second = (source.batch(2, generator)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_targets_are_scaled():
    _, targets = batch(n=512)
    assert targets.mean((0, 2, 3)).abs().max() < 0.15
    assert (targets.std((0, 2, 3)) - 1).abs().max() < 0.15


def test_colour_is_a_slight_tint():
    images, _ = batch(channels=3)
    red, green, _ = images.unbind(1)
    assert not torch.equal(red, green)
    assert (red - green).abs().mean() < 0.15


def test_the_image_follows_its_clean_intensity():
    images, targets = batch(n=128)
    intensity = targets[:, TARGETS.index("intensity")]
    pairs = torch.stack((images[:, 0].flatten(), intensity.flatten()))
    assert torch.corrcoef(pairs)[0, 1] > 0.7


def test_texture_is_rough_where_its_target_says_so():
    images, targets = batch(n=128)
    strength = targets[:, TARGETS.index("texture"), 1:, 1:]
    roughness = (images[:, 0, 1:, 1:] - images[:, 0, :-1, :-1]).abs()
    assert roughness[strength > 1].mean() > 1.3 * roughness[strength < -0.8].mean()


def test_edges_lie_where_the_clean_intensity_changes():
    _, targets = batch(n=32)
    intensity, edge, depth = (
        targets[:, TARGETS.index(name)] for name in ("intensity", "edge", "depth")
    )
    changes = intensity[:, :, 1:] != intensity[:, :, :-1]
    assert edge[:, :, 1:][changes].min() > edge[:, :, 1:][~changes].median()
    assert depth[:, :, 1:][changes].mean() < depth[:, :, 1:][~changes].mean() - 0.5


@pytest.mark.parametrize("size", [32, 128])
def test_the_scale_holds_at_other_sizes(size):
    _, targets = batch(size=size, n=128)
    assert targets.mean((0, 2, 3)).abs().max() < 0.6
    assert 0.5 < targets.std((0, 2, 3)).min() <= targets.std((0, 2, 3)).max() < 1.6

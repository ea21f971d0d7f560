"""Restricted Boltzmann machines, stacked: each layer learns the distribution of what it receives.

Layers of `medtransfer.backbones.encoder` are the hidden units. A fully connected layer is a
convolution whose kernel covers its input, so one class serves both.

References:
    Hinton (2002), contrastive divergence; Tieleman (2008), its persistent form; Hinton, Osindero
    and Teh (2006), greedy stacking; Welling, Rosen-Zvi and Hinton (2004), Gaussian visible units;
    Lee, Grosse, Ranganath and Ng (2009), convolution; Hinton (2012), how to train and watch them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy, conv_transpose2d, softplus

from medtransfer.backbones.base import Backbone
from medtransfer.backbones.encoder import Layer
from medtransfer.errors import ConfigError
from medtransfer.pretrain.base import DatasetSource, Learner
from medtransfer.pretrain.images import ImageBatch, Images

MEASURED_AT_ONCE = 64  # images: a first layer's hidden units are large

Visible = Literal["gaussian", "bernoulli"]


def uniform(like: Tensor) -> Tensor:
    """Return draws from [0, 1) in the shape of `like`, by torch's global generator."""
    return torch.rand_like(like)


def bernoulli(probabilities: Tensor) -> Tensor:
    """Return zeros and ones, each one with its probability."""
    return (uniform(probabilities) < probabilities).to(probabilities.dtype)


class RBM(nn.Module):
    """Visible and logistic hidden units, with one weight between each pair that is connected.

    The energy of visible units v and hidden units h, with the sums W v of the layer, is
    -a v - h (W v + c) for binary v, and |v - a|^2 / 2 s^2 - h (W v + c) for Gaussian v with the
    standard deviation s given h. Visible values are (N, C, side, side), hidden ones
    (N, width, places, places).

    Args:
        sums: The layer's sums: its weight is W, its bias c; it is shared and not copied.
        side: Height and width of the input.
        visible: What the visible units are: `gaussian` for standardised pixels, `bernoulli` for
            probabilities.
        noise: s, of Gaussian visible units.

    Attributes:
        bias: a; one for each visible unit, or for each channel where the kernel moves.
        hidden_shape: Width, height and width of the hidden units.
    """

    def __init__(self, sums: nn.Conv2d, side: int, visible: Visible, *, noise: float = 1.0) -> None:
        super().__init__()
        self.sums = sums
        self.visible = visible
        self.noise = noise
        (kernel, _), padding = sums.kernel_size, int(sums.padding[0])
        places = side + 2 * padding - kernel + 1
        self.hidden_shape = (sums.out_channels, places, places)
        own = side if places == 1 else 1
        self.bias = nn.Parameter(torch.zeros(sums.in_channels, own, own))

    @property
    def places(self) -> int:
        """How many places each kernel stands at: 1 for a fully connected layer."""
        return self.hidden_shape[1] * self.hidden_shape[2]

    def hidden(self, visible: Tensor) -> Tensor:
        """Return each hidden unit's probability of being on."""
        return torch.sigmoid(self.sums(visible))

    def mean_visible(self, hidden: Tensor) -> Tensor:
        """Return each visible unit's mean: for binary units, its probability of being on."""
        received = conv_transpose2d(hidden, self.sums.weight, padding=self.sums.padding)  # type: ignore[arg-type]
        if self.visible == "gaussian":
            return self.bias + self.noise**2 * received
        return (self.bias + received).sigmoid()

    def sample_hidden(self, visible: Tensor) -> Tensor:
        """Return hidden units drawn given the visible ones, zeros and ones."""
        return bernoulli(self.hidden(visible))

    def sample_visible(self, hidden: Tensor) -> Tensor:
        """Return visible units drawn given the hidden ones."""
        mean = self.mean_visible(hidden)
        if self.visible == "gaussian":
            return mean + self.noise * torch.randn_like(mean)
        return bernoulli(mean)

    def gibbs(self, hidden: Tensor, steps: int) -> Tensor:
        """Return the visible units at the end of a chain that starts from hidden units.

        Both sides are drawn, so that the chain's distribution tends to the model's own; means in
        the place of draws would narrow it.

        Args:
            hidden: Zeros and ones.
            steps: How often the visible units are drawn.
        """
        visible = self.sample_visible(hidden)
        for _ in range(steps - 1):
            visible = self.sample_visible(self.sample_hidden(visible))
        return visible

    def free_energy(self, visible: Tensor, sums: Tensor | None = None) -> Tensor:
        """Return -log of the sum over all hidden states of exp(-energy), (N,).

        Args:
            visible: Visible units.
            sums: `self.sums(visible)`, where it is known.
        """
        if self.visible == "gaussian":
            own = (visible - self.bias).square() / (2 * self.noise**2)
        else:
            own = -(visible * self.bias)
        received = softplus(self.sums(visible) if sums is None else sums)
        return own.flatten(1).sum(1) - received.flatten(1).sum(1)

    def reconstruction(self, visible: Tensor, hidden: Tensor) -> Tensor:
        """Return the squared error of the means given `hidden`, relative to a constant guess.

        One is what the visible biases could do alone, zero is perfect.

        Args:
            visible: Visible units.
            hidden: Their hidden units' probabilities.
        """
        shared = (0,) if self.bias.shape[1:] == visible.shape[2:] else (0, 2, 3)
        variance = (visible - visible.mean(shared, keepdim=True)).square().mean()
        error = (visible - self.mean_visible(hidden)).square().mean()
        return error / variance.clamp_min(torch.finfo(variance.dtype).eps)


@dataclass(frozen=True, kw_only=True)
class Rbm(DatasetSource):
    """Stacked restricted Boltzmann machines, trained greedily, one layer after the other.

    Attributes:
        k: Gibbs steps of each chain and update.
        persistent: Chains go on from one update to the next (PCD-k) and do not start from the
            images (CD-k).
        chains: How many persistent chains there are.
        gaussian_lr: Factor on the learning rate of the first layer. Its visible units have no
            bounds, so that errors feed on each other where a step is too long.
        noise: Standard deviation of a pixel given the first layer's hidden units, where that of
            all pixels is one. What varies less is noise to the model; smooth images leave little
            that varies more, least of all to small kernels.
        sparsity: Share of images and places at which a unit should be on; None leaves it free.
        sparsity_cost: Weight of the sparsity penalty.
    """

    k: Annotated[int, Field(ge=1)]
    persistent: bool
    chains: Annotated[int, Field(ge=1)]
    gaussian_lr: Annotated[float, Field(gt=0, le=1)]
    noise: Annotated[float, Field(gt=0, le=1)]
    sparsity: Annotated[float, Field(gt=0, lt=1)] | None
    sparsity_cost: Annotated[float, Field(ge=0)]

    def learner(self, backbone: Backbone, material: Images) -> Learner:
        """See `Source.learner`; the backbone takes over mean and deviation of the images."""
        layers = logistic_layers(backbone)
        # The first layer's visible units have unit variance, so the pixels must have it too.
        backbone.normalise_by(material.normalisation())
        return RbmLearner(backbone, layers, material.image_size, self)


def logistic_layers(backbone: Backbone) -> list[Layer]:
    """Return the layers of a backbone that is a stack of logistic units.

    Raises:
        ConfigError: If it is another network: residual connections, batch normalisation and other
            units have no such energy.
    """
    layers = [stage for stage in backbone.stages() if isinstance(stage, Layer)]
    logistic = all(
        isinstance(layer.units, nn.Sigmoid) and isinstance(layer.norm, nn.Identity)
        for layer in layers
    )
    if not layers or len(layers) != len(backbone.stages()) or not logistic:
        raise ConfigError(
            f"backbone '{backbone.name}' is not a stack of logistic units without batch "
            "normalisation, which source=rbm needs",
            remedy="backbone=sigmoid_encoder or backbone=dense_encoder",
        )
    return layers


class RbmLearner(Learner):
    """A stack of machines on the layers of a backbone; the visible biases are thrown away.

    The loss is the mean free energy of the data minus that of the ends of the chains, which are
    held fixed. Its gradient is that of contrastive divergence, with the hidden units'
    probabilities in both statistics. It is divided by the places of the layer, so that a learning
    rate means the same for convolutional and fully connected layers; the factor for the first
    layer scales the loss as well, which is the same thing for SGD (not so for Adam, nor for weight
    decay).

    A layer above sees what the trained layers below hand on: probabilities, after pooling by their
    maximum (Lee et al. 2009 draw from a block instead), so that what is pre-trained is the very
    network that is used.

    Args:
        backbone: What is trained.
        layers: Its layers, logistic.
        image_size: Height and width of the images in pixels.
        options: How they learn.
    """

    def __init__(
        self, backbone: Backbone, layers: Sequence[Layer], image_size: int, options: Rbm
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.options = options
        self.stages = tuple(f"layer_{k + 1}" for k in range(len(layers)))
        self.stage = 0
        self.rbms = nn.ModuleList()
        image = torch.zeros(1, backbone.channels_in, image_size, image_size)
        for k, layer in enumerate(layers):
            side = self._visible(image, k).shape[-1]
            rbm = RBM(layer.sums, side, "bernoulli" if k else "gaussian", noise=options.noise)
            self.rbms.append(rbm)
            if options.persistent:
                # A buffer: it lies in the checkpoint, and an interrupted chain goes on.
                chain = torch.zeros(options.chains, *rbm.hidden_shape, dtype=torch.bool)
                self.register_buffer(f"chain_{k}", chain)

    def begin(self, stage: int) -> None:
        """See `Learner.begin`."""
        self.stage = stage
        self.requires_grad_(False)
        self.eval()
        self.rbms[stage].requires_grad_(True)
        self.rbms[stage].train()

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """See `Learner.forward`; with the loss go `reconstruction` and `activation`.

        `reconstruction` is that of `RBM.reconstruction`, `activation` the mean probability of a
        hidden unit.
        """
        images, rbm = batch["image"], self._rbm(self.stage)
        # Statistics are small differences of large sums: half precision would drown them.
        with torch.autocast(images.device.type, enabled=False):
            visible = self._visible(images, self.stage)
            sums = rbm.sums(visible)
            hidden = sums.sigmoid()
            end = self._chain_end(rbm, hidden)
            end_sums = rbm.sums(end)
            if self.options.persistent:
                self._chain().copy_(bernoulli(end_sums.detach().sigmoid()))
            gap = rbm.free_energy(visible, sums).mean() - rbm.free_energy(end, end_sums).mean()
            loss = gap / rbm.places + self._density(hidden)
            with torch.no_grad():
                reconstruction = rbm.reconstruction(visible, hidden)
        factor = self.options.gaussian_lr if rbm.visible == "gaussian" else 1.0
        return {
            "loss": factor * loss,
            "reconstruction": reconstruction,
            "activation": hidden.mean(),
        }

    def measure(self, seen: Tensor, unseen: Tensor) -> dict[str, float]:
        """See `Learner.measure`.

        Returns:
            `val/reconstruction` and `val/activation` as in `forward`, and `val/free_energy_gap`:
            by how much unseen images have a higher free energy than seen ones, at each place. It
            grows where a machine begins to overfit (Hinton 2012, section 6).
        """
        rbm = self._rbm(self.stage)
        energies = [
            torch.cat([rbm.free_energy(self._visible(x, self.stage)) for x in chunks]).mean()
            for chunks in (torch.split(v, MEASURED_AT_ONCE) for v in (seen, unseen))
        ]
        visible = self._visible(unseen, self.stage)
        hidden = rbm.hidden(visible)
        return {
            "val/reconstruction": float(rbm.reconstruction(visible, hidden)),
            "val/activation": float(hidden.mean()),
            "val/free_energy_gap": float(energies[1] - energies[0]) / rbm.places,
        }

    @torch.no_grad()
    def _visible(self, images: Tensor, stage: int) -> Tensor:
        """Return what a stage sees of images (N, C, H, W) in [0, 1]."""
        visible = self.backbone.normalised(images)
        for layer in self.backbone.stages()[:stage]:
            visible = layer(visible)
        return visible

    @torch.no_grad()
    def _chain_end(self, rbm: RBM, hidden: Tensor) -> Tensor:
        """Return the visible units at the end of the chains, given the data's probabilities."""
        start = self._chain().to(hidden) if self.options.persistent else bernoulli(hidden)
        return rbm.gibbs(start, self.options.k)

    def _density(self, hidden: Tensor) -> Tensor:
        """Return the penalty on units that are on too often or too rarely.

        The cross-entropy between the wanted share and each unit's mean (Hinton 2012, section 11):
        its gradient does not vanish for units that are always off.
        """
        wanted = self.options.sparsity
        if wanted is None:
            return hidden.new_zeros(())
        shares = hidden.mean((0, 2, 3))
        cost = binary_cross_entropy(shares, torch.full_like(shares, wanted), reduction="sum")
        return self.options.sparsity_cost * cost

    def _chain(self) -> Tensor:
        return self.get_buffer(f"chain_{self.stage}")

    def _rbm(self, stage: int) -> RBM:
        rbm = self.rbms[stage]
        assert isinstance(rbm, RBM)
        return rbm

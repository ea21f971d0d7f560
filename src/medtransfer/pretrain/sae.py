"""Stacked denoising auto-encoders: each stage of a backbone learns to mend its own input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from medtransfer.backbones.base import Backbone
from medtransfer.errors import ConfigError
from medtransfer.pretrain.base import DatasetSource, Learner
from medtransfer.pretrain.images import ImageBatch, Images

Corruption = Literal["mask", "gaussian", "salt_and_pepper"]

MEASURED_AT_ONCE = 32  # images; a level of all of them may not fit into memory
PCA_ROWS = 32768  # patches, at most, that principal components come from
LEAST = 1e-6  # variance; an input that does not vary is no reason to divide by zero


@dataclass(frozen=True, kw_only=True)
class Sae(DatasetSource):
    """Greedy layer-wise stacked denoising auto-encoders (Vincent et al. 2010).

    Attributes:
        corruption: What happens to a stage's input before it is encoded: `mask` sets values to
            zero, `gaussian` adds noise, `salt_and_pepper` sets values to an extreme of their
            channel.
        strength: Share of the values that are masked or set to an extreme, below 1; for `gaussian`
            the noise's standard deviation in those of the input. 0 leaves the input as it is.
        unroll: Whether a last stage trains the whole stack at once, from image to image.

    Raises:
        ConfigError: If the share is not below 1.
    """

    corruption: Corruption
    strength: Annotated[float, Field(ge=0)]
    unroll: bool

    def __post_init__(self) -> None:
        if self.corruption != "gaussian" and self.strength >= 1:
            raise ConfigError(
                f"source.strength={self.strength:g} leaves nothing of the input to learn from",
                remedy="give a share below 1, or source.corruption=gaussian",
            )

    def learner(self, backbone: Backbone, material: Images) -> Learner:
        """See `Source.learner`; the backbone takes over mean and standard deviation of the images.

        Raises:
            ConfigError: If the backbone is no chain of stages.
        """
        made = StackLearner(backbone, material.image_size, self)
        # Reconstruction is scored in units of the input's variance, noise is measured in them, and
        # a masked value becomes zero, which says "nothing known" only where zero is the mean. The
        # values are saved with the weights, as whatever uses these must normalise alike.
        backbone.normalise_by(material.normalisation())
        return made


class Shape(NamedTuple):
    """Shape of one image's input to a stage."""

    channels: int
    height: int
    width: int


class StackLearner(Learner):
    """One decoder for each stage of the backbone; all of them are thrown away in the end.

    Args:
        backbone: What is trained.
        image_size: Height and width of the images in pixels.
        source: How inputs are corrupted, and whether the stack is unrolled.

    Raises:
        ConfigError: If the backbone is no chain of stages.
    """

    def __init__(self, backbone: Backbone, image_size: int, source: Sae) -> None:
        super().__init__()
        self.backbone = backbone
        self.source = source
        self.depth = len(backbone.stages())
        if not self.depth:
            raise ConfigError(
                f"backbone '{backbone.name}' is no chain of stages that learn one after the other",
                remedy="backbone=conv_encoder, backbone=dense_encoder, or a residual network such"
                " as backbone=resnet10t",
            )
        names = [f"stage {k + 1}" for k in range(self.depth)]
        self.stages = [*names, "unrolled"] if source.unroll else names
        self.stage = 0
        self.shapes = self._shapes(image_size)
        # all of them now: a checkpoint of any stage has the same tensors
        self.decoders = nn.ModuleList(Decoder(*pair) for pair in pairwise(self.shapes))

    def begin(self, stage: int) -> None:
        """See `Learner.begin`; the stage and its decoder learn, or all of them unrolled."""
        self.stage = stage
        self.requires_grad_(False)
        # BatchNorm of the lower stages would move without any gradient
        self.eval()
        low, high = self.span
        for part in (*self.backbone.stages()[low:high], *self.decoders[low:high]):
            part.train().requires_grad_(True)

    def forward(self, batch: ImageBatch) -> dict[str, Tensor]:
        """See `Learner.forward`.

        The loss is the mean squared error to the clean input, divided by that input's variance
        about the mean of each channel: whoever predicts those means has a loss of 1.
        """
        with torch.no_grad():
            clean = self._input(batch["image"]).float()
            corrupted = corrupt(clean, self.source.corruption, self.source.strength)
            variance = (clean - clean.mean((0, 2, 3), keepdim=True)).square().mean()
        error = (self._reconstructed(corrupted).float() - clean).square().mean()
        return {"loss": error / variance.clamp_min(LEAST)}

    def measure(self, seen: Tensor, unseen: Tensor) -> dict[str, float]:
        """See `Learner.measure`; of the stage that was begun last, on inputs as they are.

        Principal components of equal width are the best linear code there is. A convolution that
        turns s x s places into one with w units is compared with w components of the input's s x s
        patches, which do not overlap; a unit that sees all of its input makes that one patch.
        Components come from the seen images, at most `PCA_ROWS` patches of them, and there are
        never more than patches. Where w is at least the number of values in a patch, the components
        lose nothing and their error is 0: such a code is no bottleneck.

        Returns:
            `val/reconstruction` and `val/pca_reconstruction`: squared errors on unseen images,
            divided by the variance about the mean of each channel.
        """
        from sklearn.decomposition import PCA

        low, high = self.span
        size = stride(self.shapes[low], self.shapes[high])
        per_image = (self.shapes[low].height // size) * (self.shapes[low].width // size)
        every = max(1, -(-len(seen) * per_image // PCA_ROWS))
        fitted = torch.cat([patches(x, size)[::every] for x in self._inputs(seen)])
        count = min(self.shapes[high].channels, *fitted.shape)
        solver = "covariance_eigh" if len(fitted) > fitted.shape[1] else "full"
        components: Any = PCA(count, svd_solver=solver)
        components.fit(fitted.double().numpy())

        own = linear = 0.0
        number = 0
        sums = torch.zeros(2, self.shapes[low].channels, dtype=torch.float64)
        for x in self._inputs(unseen):
            rows = patches(x, size).double()
            made = patches(self._reconstructed(x).float(), size)
            kept = torch.from_numpy(components.inverse_transform(components.transform(rows)))
            own += float((made - rows).square().sum())
            linear += float((kept - rows).square().sum())
            values = rows.view(len(rows), sums.shape[1], -1).transpose(0, 1).flatten(1)
            sums += torch.stack([values.sum(1), values.square().sum(1)])
            number += values.shape[1]
        variance = float((sums[1] / number - (sums[0] / number).square()).sum())
        spread = number * max(variance, LEAST)
        return {"val/reconstruction": own / spread, "val/pca_reconstruction": linear / spread}

    @property
    def span(self) -> tuple[int, int]:
        """The levels between which the present stage learns, of which 0 is the image."""
        unrolled = self.stage == self.depth
        return (0, self.depth) if unrolled else (self.stage, self.stage + 1)

    def _input(self, images: Tensor) -> Tensor:
        """Return what the present stage takes from images (N, C, H, W) in [0, 1]."""
        x = self.backbone.normalised(images)
        for stage in self.backbone.stages()[: self.span[0]]:
            x = stage(x)
        return x

    def _inputs(self, images: Tensor) -> Iterator[Tensor]:
        device = self.backbone.get_buffer("mean").device
        for at in range(0, len(images), MEASURED_AT_ONCE):
            yield self._input(images[at : at + MEASURED_AT_ONCE].to(device)).float()

    def _reconstructed(self, x: Tensor) -> Tensor:
        """Return what the present stage and its decoder make of its input."""
        low, high = self.span
        for stage in self.backbone.stages()[low:high]:
            x = stage(x)
        for decoder in self.decoders[low:high][::-1]:
            x = decoder(x)
        return x

    @torch.no_grad()
    def _shapes(self, image_size: int) -> list[Shape]:
        """Return the shapes of the image, as it is normalised, and of each stage's output."""
        was = [(module, module.training) for module in self.backbone.modules()]
        self.backbone.eval()  # no statistics of a black image
        levels = [
            self.backbone.normalised(torch.zeros(1, self.backbone.channels_in, *2 * (image_size,)))
        ]
        for stage in self.backbone.stages():
            levels.append(stage(levels[-1]))
        for module, training in was:
            module.training = training
        return [Shape(*level.shape[1:]) for level in levels]


class Decoder(nn.Module):
    """One linear layer from a stage's output back to its input.

    Args:
        made: Shape of what it makes, the stage's input.
        given: Shape of what it is given, the stage's output.
    """

    def __init__(self, made: Shape, given: Shape) -> None:
        super().__init__()
        self.size = (made.height, made.width)
        step = stride(made, given)
        overlap = 0 if given.height == 1 else (step + 1) // 2  # a lone place makes all there is
        # Each place of the input has weights of its own: bilinear interpolation before a
        # convolution, which shares them, left errors half as large again (conv_encoder on phantom).
        self.layer = nn.ConvTranspose2d(
            given.channels, made.channels, step + 2 * overlap, step, padding=overlap
        )
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, channels, height, width) as made, from what is given."""
        # a stage may have rounded its size either way
        least = [
            max(wanted, self.step * n) for wanted, n in zip(self.size, x.shape[2:], strict=True)
        ]
        made: Tensor = self.layer(x, output_size=least)
        return made[..., : self.size[0], : self.size[1]]


def stride(made: Shape, given: Shape) -> int:
    """Return how many places of a stage's input there are for one of its output, along a side."""
    return max(1, round(made.height / given.height))


def corrupt(clean: Tensor, corruption: Corruption, strength: float) -> Tensor:
    """Return a corrupted copy of (N, C, H, W), drawn from torch's global generator.

    Args:
        clean: The input of a stage.
        corruption: See `Sae`.
        strength: See `Sae`.
    """
    if corruption == "gaussian":
        return clean + strength * clean.std() * torch.randn_like(clean)
    hit = torch.rand_like(clean) < strength
    if corruption == "mask":
        return clean.masked_fill(hit, 0)
    salt = torch.rand_like(clean) < 0.5
    extremes = torch.where(salt, clean.amax((0, 2, 3), True), clean.amin((0, 2, 3), True))
    return torch.where(hit, extremes, clean)


def patches(x: Tensor, size: int) -> Tensor:
    """Return the patches of (N, C, H, W) that do not overlap, (patches, C * size * size).

    What is left at the right and at the bottom is left out.
    """
    n, c, h, w = x.shape
    rows, columns = h // size, w // size
    whole = x[:, :, : rows * size, : columns * size]
    grid = whole.reshape(n, c, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(-1, c * size * size).cpu()

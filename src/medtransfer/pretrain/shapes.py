"""Random shapes and textures with dense targets: what supervised pre-training learns from.

In the spirit of SynthSeg (Billot et al., 2023), nothing is modelled and everything is random:
smooth label maps with ellipses, diamonds and boxes on top; a grey value, a texture and a speckle
strength for each region; then shading, blur, noise, contrast and inversion. Half of the images are
in the manner of an ultrasound: regions lie in layers, bright interfaces run across, brightness
falls with the depth, and a shape may cast a shadow. The targets say what the image was before it
was degraded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  PyTorch's own name for it

TARGETS = ("intensity", "texture", "edge", "depth", "shape", "ragged")

_FIELDS = 3  # bits of a label of the smooth map
_BLOBS = 4  # shapes painted over it
_TEXTURES = 3  # texture fields an image; each region wears one
_ECHO = 0.5  # share of images in the manner of an ultrasound
# mean and standard deviation of each raw target, measured over 10 000 images at 64 px
_CENTRE = (0.474, 0.083, 0.187, 0.194, 0.218, 0.0116)
_SPREAD = (0.243, 0.074, 0.29, 0.206, 0.413, 0.0314)


class Shapes:
    """A source of random images and their dense targets.

    Args:
        size: Side of the square images in pixels, at least 16.
        channels: Channels of the images: grey is replicated, more than one are slightly tinted.
    """

    def __init__(self, size: int, channels: int) -> None:
        self.size, self.channels = size, channels
        pixel = (torch.arange(size) + 0.5) / size - 0.5
        self._x, self._y = pixel.view(1, 1, 1, -1), pixel.view(1, 1, -1, 1)
        self._reach = size // 8  # of the distance, in steps of two pixels
        across = torch.fft.rfftfreq(size, 1 / size).view(1, 1, 1, -1)
        down = torch.fft.fftfreq(size, 1 / size).view(1, 1, -1, 1)
        self._frequency = across, down

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw `n` images and their targets.

        Args:
            n: How many.
            generator: The only source of randomness, on the CPU.

        Returns:
            Images, float32 (n, channels, size, size) in [0, 1], and targets, float32
            (n, 6, size, size), in the order of `TARGETS` and each scaled to about zero mean and
            unit variance: the region's grey value as displayed, but for texture, speckle, shading,
            blur and noise; the standard deviation of its texture; whether an edge of the region is
            here, soft over two pixels; the distance to the nearest edge, up to a quarter of the
            image; whether a shape was painted here; how ragged the margin of that shape is.
        """
        draw = _Draw(n, generator)
        echo = draw.uniform(0, 1, 1, 1, 1) < _ECHO
        regions, ragged, shadow = self._regions(draw, echo)
        kinds = 2**_FIELDS + _BLOBS

        def of_region(table: Tensor) -> Tensor:
            return table.gather(1, regions.flatten(1)).view(n, 1, self.size, self.size)

        grey = of_region(draw.uniform(0.05, 0.95, kinds))
        shape = (regions >= 2**_FIELDS)[:, None].float()
        grey = torch.where(echo, grey * (1 - 0.5 * shape), grey)
        # the square makes faint textures the rule and leaves some regions nearly plain
        strength = of_region(0.25 * draw.uniform(0, 1, kinds).square())
        worn = of_region(draw.uniform(0, _TEXTURES, kinds).long())
        speckle = of_region(draw.uniform(0, 0.5, kinds)) * draw.uniform(0, 1, 1, 1, 1)

        image = grey + strength * self._textures(draw, echo).gather(1, worn)
        image = image + echo * self._interfaces(draw)
        image = image * (1 + speckle * self._grain(draw))
        image = image + draw.uniform(0, 0.15, 1, 1, 1) * self._smooth(draw, 1, 3, 3)
        image = torch.where(echo, image.clamp_min(0) * self._gain(draw, shadow), image)
        image = torch.lerp(image, _blur(image, 3), draw.uniform(0, 1, 1, 1, 1))
        image = image + draw.uniform(0, 0.1, 1, 1, 1) * self._grain(draw)

        contrast, level = draw.uniform(0.5, 1.2, 1, 1, 1), draw.uniform(0.35, 0.65, 1, 1, 1)
        contrast = contrast * draw.uniform(-1, 1, 1, 1, 1).sign()
        contrast = torch.where(echo, contrast.abs(), contrast)
        image = level + contrast * (image - 0.5)
        grey = level + contrast * (grey - 0.5)
        tint = 1 + (0.1 if self.channels > 1 else 0) * draw.normal(self.channels, 1, 1)
        edge, depth = self._edges(regions)
        targets = torch.cat((grey, strength, edge, depth, shape, ragged), 1)
        centre, spread = (targets.new_tensor(v).view(1, -1, 1, 1) for v in (_CENTRE, _SPREAD))
        return (image * tint).clamp(0, 1), (targets - centre) / spread

    def _regions(self, draw: _Draw, echo: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the label map.

        Returns:
            The region of each pixel, (n, size, size) in [0, 2**_FIELDS + _BLOBS); how ragged the
            margin of the shape at each pixel is, (n, 1, size, size), zero beside shapes; what lies
            below the uppermost shape, (n, 1, size, size) in [0, 1].
        """
        fine = self._smooth(draw, _BLOBS, 8, 8)
        fields = self._smooth(draw, _FIELDS, 3, 3)
        fields = torch.where(echo, self._smooth(draw, _FIELDS, 9, 2) + fields / 2, fields)
        fields = fields + draw.uniform(0, 0.5, 1, 1, 1) * fine[:, :_FIELDS]
        # one bit a field; its threshold makes some labels large and lets others vanish
        bits = (fields > draw.uniform(-2, 2, _FIELDS, 1, 1)).long()
        regions = (bits << torch.arange(_FIELDS).view(-1, 1, 1)).sum(1)
        shape = (_BLOBS, 1, 1)
        angle = draw.uniform(0, torch.pi, *shape)
        x, y = (axis - draw.uniform(-0.5, 0.5, *shape) for axis in (self._x, self._y))
        radius = draw.uniform(-3.2, -1.2, *shape).exp()
        stretch = draw.uniform(-0.6, 0.6, *shape).exp()
        u = ((angle.cos() * x + angle.sin() * y) / (radius * stretch)).abs()
        v = ((angle.cos() * y - angle.sin() * x) * stretch / radius).abs()
        # between a circle's norm and a box's or a diamond's
        corner = torch.where(draw.uniform(-1, 1, *shape) > 0, torch.maximum(u, v), (u + v) * 0.8)
        distance = torch.lerp(torch.hypot(u, v), corner, draw.uniform(0, 1, *shape))
        # some margins are smooth, some ragged
        roughness = draw.uniform(0, 0.4, *shape).square()
        distance = distance + roughness * fine
        inside = distance < 1
        ragged = torch.zeros(len(regions), 1, self.size, self.size)
        for blob in range(_BLOBS):
            here = inside[:, blob]
            regions = torch.where(here, 2**_FIELDS + blob, regions)
            ragged[:, 0] = torch.where(here, roughness[:, blob], ragged[:, 0])
        last = inside[:, -1:].float()
        return regions, ragged, _blur(last.cummax(2).values - last, 2)

    def _interfaces(self, draw: _Draw) -> Tensor:
        """Return thin bright lines that run across, broken at places, (n, 1, size, size)."""
        line = torch.exp(-(self._smooth(draw, 1, 10, 3) / 0.15).square())
        return draw.uniform(0, 0.7, 1, 1, 1) * line * self._smooth(draw, 1, 4, 4).clamp_min(0)

    def _gain(self, draw: _Draw, shadow: Tensor) -> Tensor:
        """Return brightness that changes with the depth, and behind a shape, (n, 1, size, size)."""
        fall = -draw.uniform(0, 1.5, 1, 1, 1) * (self._y + 0.5)
        wave = draw.uniform(0, 0.5, 1, 1, 1) * self._smooth(draw, 1, 3, 1)
        return torch.exp(fall + wave + draw.uniform(-1.5, 0.7, 1, 1, 1) * shadow)

    def _edges(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return soft edges and the distance to them, both (n, 1, size, size) in [0, 1]."""
        near = torch.zeros(len(regions), 1, self.size, self.size)
        for axis in (2, 3):
            last = self.size - 1
            here, there = near.narrow(axis, 0, last), near.narrow(axis, 1, last)
            change = regions.narrow(axis - 1, 0, last) != regions.narrow(axis - 1, 1, last)
            here += change[:, None]
            there += change[:, None]
        near.clamp_(max=1)
        # distances at half the resolution cost a quarter
        reached = F.max_pool2d(near, 2, ceil_mode=True)
        depth = torch.zeros_like(reached)
        for _ in range(self._reach):
            depth += (1 - reached) / self._reach
            reached = F.max_pool2d(reached, 3, 1, 1)
        depth = F.interpolate(depth, self.size, mode="bilinear", align_corners=False)
        return _blur(near, 1), depth

    def _smooth(self, draw: _Draw, count: int, down: int, across: int) -> Tensor:
        """Return smooth fields with about so many bumps a side, (n, count, size, size)."""
        knots = draw.normal(count, down + 2, across + 2)
        return torch.einsum("hi,ncij,wj->nchw", self._spread(down), knots, self._spread(across))

    def _spread(self, cells: int) -> Tensor:
        """Return how much each knot gives to each pixel of a side, (size, cells + 2)."""
        place = torch.linspace(0.5, cells + 0.5, self.size).view(-1, 1)
        weight = torch.exp(-1.5 * (place - torch.arange(cells + 2)).square())
        return weight / weight.square().sum(1, keepdim=True).sqrt()

    def _textures(self, draw: _Draw, echo: Tensor) -> Tensor:
        """Return band-limited noise, each field of its own scale and orientation, unit variance."""
        across, down = self._frequency
        shape = (_TEXTURES, 1, 1)
        # in cycles an image, from coarse to the finest that pixels can show
        scale = (draw.uniform(0, 1, *shape) * math.log(self.size / 8)).exp() * 3
        angle = torch.where(echo, 0.2 * draw.normal(*shape), draw.uniform(0, torch.pi, *shape))
        width = scale * draw.uniform(0.15, 0.8, *shape)
        kx, ky = scale * angle.sin(), scale * angle.cos()
        band = torch.exp(-((across - kx).square() + (down - ky).square()) / (2 * width.square()))
        spectrum = draw.normal(_TEXTURES, self.size, self.size // 2 + 1, 2)
        field = torch.fft.irfft2(torch.view_as_complex(spectrum) * band, s=(self.size, self.size))
        power = field.square().mean((2, 3), keepdim=True)
        return torch.as_tensor(field * power.clamp_min(1e-24).rsqrt())

    def _grain(self, draw: _Draw) -> Tensor:
        """Return noise between white and correlated over three pixels, (n, 1, size, size)."""
        white = draw.normal(1, self.size, self.size)
        return torch.lerp(white, 2 * _blur(white, 1), draw.uniform(0, 1, 1, 1, 1))


class _Draw:
    """Random tensors with one row an image."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self._n, self._generator = n, generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self._n, *shape, generator=self._generator)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self._n, *shape, generator=self._generator)


def _blur(image: Tensor, times: int) -> Tensor:
    """Smooth with the weights 1, 2, 1 along both axes; sums of slices are faster than pooling."""
    for _ in range(times):
        for axis, pad in ((2, (0, 0, 1, 1)), (3, (1, 1, 0, 0))):
            wide, length = F.pad(image, pad, mode="replicate"), image.shape[axis]
            around = wide.narrow(axis, 0, length) + wide.narrow(axis, 2, length)
            image = torch.lerp(image, around / 2, 0.5)
    return image

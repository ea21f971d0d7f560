"""Fractals drawn from formulas; what is learnt is which formula drew the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from medtransfer.backbones.base import Backbone
from medtransfer.pretrain.base import GeneratedSource, Learner, Material

MAPS = 6  # of a system at most; the least is two
POINTS = 512  # that wander at once, for each image
BURN_IN = 12  # steps until a point has forgotten where it started
STEPS = 16  # that are drawn, for each point
REACH = 2.2  # standard deviations of the points that the image shows on each side


class Systems(NamedTuple):
    """Iterated function systems: x -> matrix x + shift, one of several maps drawn at each step.

    Attributes:
        matrix: (n, MAPS, 2, 2), singular values below one.
        shift: (n, MAPS, 2).
        share: How often each map is drawn, (n, MAPS); zero for those that a system lacks.
    """

    matrix: Tensor
    shift: Tensor
    share: Tensor


@dataclass(frozen=True, kw_only=True)
class Formula(GeneratedSource):
    """Classification of fractals by their formula, after FractalDB (Kataoka et al. 2020).

    Each class is a random iterated function system; its images differ by small changes of the
    formula, by rotation, mirroring, zoom, contrast and noise. The singular values of the maps are
    drawn as Anderson and Farrell (2022) propose, so that nearly every system fills the image.

    Attributes:
        classes: How many systems there are.
    """

    trained_on: ClassVar[str] = "generated images of fractals"

    classes: Annotated[int, Field(ge=2)]

    def draw(
        self,
        step: int,  # noqa: ARG002
        size: int,
        channels: int,
        generator: Generator,
    ) -> tuple[Tensor, Tensor]:
        """See `Material.draw`; images (N, C, H, W) in [0, 1] and the number of the system (N,)."""
        target = torch.randint(self.classes, (size,), generator=generator)
        systems = _systems(self.classes)
        chosen = Systems(*(part[target] for part in systems))
        points = _wander(_varied(chosen, generator), generator)
        image = _developed(_scattered(points, self.image_size), generator)
        return image.expand(-1, channels, -1, -1), target

    def learner(self, backbone: Backbone, material: Material) -> Learner:  # noqa: ARG002
        """See `Source.learner`."""
        return Classifier(backbone, self.classes)


class Classifier(Learner):
    """One linear layer on the embedding.

    Args:
        backbone: What is trained.
        classes: How many there are.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.predict = nn.Linear(backbone.embedding_size, classes)

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """See `Learner.forward`; cross-entropy."""
        images, target = batch
        scores = self.predict(self.backbone.embed(images)).float()
        accuracy = (scores.argmax(1) == target).float().mean()
        return {"loss": cross_entropy(scores, target), "accuracy": accuracy}


@cache
def _systems(count: int) -> Systems:
    """Return the systems of all classes; the same ones for every seed."""
    generator = Generator().manual_seed(0)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    maps = torch.randint(2, MAPS + 1, (count, 1), generator=generator)
    there = torch.arange(MAPS) < maps
    large = uniform(0.2, 1, MAPS) * there
    small = large * uniform(0.2, 1, MAPS)
    # too little contraction leaves clouds, too much leaves dots; between lie the fractals
    wanted = (5 + maps + uniform(0, 1, 1)) / 2
    scale = wanted / (large + 2 * small).sum(1, keepdim=True)
    large, small = ((values * scale).clamp(max=0.9) for values in (large, small))
    matrix = _rotation(uniform(-math.pi, math.pi, MAPS)) @ torch.diag_embed(
        torch.stack((large, small), -1)
    )
    matrix = matrix @ _rotation(uniform(-math.pi, math.pi, MAPS))
    share = (matrix.det().abs() + 0.02) * there
    return Systems(matrix, uniform(-1, 1, MAPS, 2), share / share.sum(1, keepdim=True))


def _varied(systems: Systems, generator: Generator) -> Systems:
    """Return the systems, each with maps a little stronger or weaker and moved a little."""
    n = len(systems.matrix)
    strength = 1 + 0.1 * (2 * torch.rand(n, MAPS, 1, 1, generator=generator) - 1)
    moved = 0.1 * torch.randn(n, MAPS, 2, generator=generator)
    return Systems(systems.matrix * strength, systems.shift + moved, systems.share)


def _wander(systems: Systems, generator: Generator) -> Tensor:
    """Return points on the attractors, turned and scaled to their spread, (N, points, 2)."""
    n = len(systems.matrix)
    total = BURN_IN + STEPS
    drawn = torch.multinomial(systems.share, POINTS * total, replacement=True, generator=generator)
    drawn = drawn.view(n, total, POINTS)
    rows = torch.arange(n)[:, None]
    point = torch.zeros(n, POINTS, 2)
    path = []
    for step in range(total):
        number = drawn[:, step]
        point = (systems.matrix[rows, number] @ point[..., None])[..., 0]
        point = point + systems.shift[rows, number]
        path.append(point)
    points = torch.cat(path[BURN_IN:], 1)
    points = points - points.mean(1, keepdim=True)
    points = points / points.std(1, keepdim=True).amax(2, keepdim=True).clamp_min(1e-6)
    turn = _rotation(2 * math.pi * torch.rand(n, generator=generator))
    mirror = torch.ones(n, 1, 2)
    mirror[..., 0] = torch.randint(2, (n, 1), generator=generator) * 2.0 - 1
    zoom = 0.7 + 0.6 * torch.rand(n, 1, 1, generator=generator)
    return (points * mirror * zoom) @ turn.mT


def _scattered(points: Tensor, size: int) -> Tensor:
    """Return how many points fall on each pixel, on a logarithmic scale in [0, 1]."""
    place = ((points / REACH + 1) * (size / 2)).floor().long()
    inside = ((place >= 0) & (place < size)).all(-1)
    flat = (place[..., 1] * size + place[..., 0]).where(inside, 0)
    count = torch.zeros(len(points), size * size)
    count.scatter_add_(1, flat, inside.float())
    density = count.log1p()
    density = density / density.amax(1, keepdim=True).clamp_min(1)
    return density.view(-1, 1, size, size)


def _developed(density: Tensor, generator: Generator) -> Tensor:
    """Return grey images from densities: contrast, level, inversion and noise."""
    n = len(density)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)

    contrast = uniform(0.4, 0.9) * uniform(-1, 1).sign()
    ground = uniform(0, 0.1) * torch.randn(density.shape, generator=generator)
    level = torch.where(contrast > 0, uniform(0, 0.3), uniform(0.7, 1))
    return (level + contrast * density + ground).clamp(0, 1)


def _rotation(angle: Tensor) -> Tensor:
    """Return rotation matrices, (..., 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)

"""Grey phantom scenes that look like breast ultrasound: one patient, several views, one diagnosis.

The anatomy (tissue layers, lobules, the lesion's character) belongs to the patient; the probe's
position, the gain and the speckle belong to the view. Tissue never depends on the label: nothing
but the lesion, or the harmless lobule that stands in for it, tells the classes apart.

Lengths are fractions of the image's side, grey values lie in [0, 1] after log compression, and
depth `y` grows downwards from the probe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from medtransfer.errors import ConfigError

CLASS_NAMES = ("normal", "benign", "malignant")

_ANGLES = 128  # samples of a blob's contour
_LOBULES = 4

_Array = NDArray[np.float64]
_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """One image of an exam with every annotation that a task may ask for.

    Attributes:
        image: uint8 grey values, (size, size).
        label: Class index of the exam, into `CLASS_NAMES`.
        boxes: float32 (n, 4), a row x0, y0, x1, y1 a visible lesion, in pixels, end exclusive.
        mask: uint8 (size, size): the lesion's class index inside its margin, elsewhere 0.
    """

    image: NDArray[np.uint8]
    label: int
    boxes: NDArray[np.float32]
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class _Waves:
    """A random smooth field made of plane waves: defined everywhere, so the probe may move."""

    kx: _Array
    ky: _Array
    phase: _Array

    @classmethod
    def draw(cls, rng: Generator, count: int, fx: float, fy: float) -> _Waves:
        """Draw `count` waves of about `fx` and `fy` cycles an image."""
        kx, ky = 2 * np.pi * rng.normal(0, ((fx,), (fy,)), (2, count))
        return cls(kx, ky, rng.uniform(0, 2 * np.pi, count))

    def __call__(self, x: _Array, y: _Array) -> _Array:
        """Return the field, zero mean and unit variance, on the grid of `x` (w,) and `y` (h,)."""
        # cos(a + b) splits into products: a matrix product instead of h * w * count cosines
        across, down = np.outer(self.kx, x), np.outer(self.ky, y) + self.phase[:, None]
        field: _Array = np.cos(down).T @ np.cos(across) - np.sin(down).T @ np.sin(across)
        return field * math.sqrt(2 / len(self.phase))


@dataclass(frozen=True)
class _Blob:
    """An ellipse whose radius is multiplied by `contour`, given at `_ANGLES` angles."""

    centre: tuple[float, float]
    radii: tuple[float, float]
    tilt: float
    contour: _Array | None = None

    def radius(self, x: _Array, y: _Array) -> _Array:
        """Return the distance to the centre in units of the margin's: below 1 inside, (h, w)."""
        dx, dy = x[None, :] - self.centre[0], y[:, None] - self.centre[1]
        u = (np.cos(self.tilt) * dx + np.sin(self.tilt) * dy) / self.radii[0]
        v = (np.cos(self.tilt) * dy - np.sin(self.tilt) * dx) / self.radii[1]
        distance: _Array = np.hypot(u, v)
        if self.contour is not None:
            turn = np.rint(np.arctan2(v, u) * (_ANGLES / (2 * np.pi))).astype(np.intp)
            distance /= self.contour[turn]  # a negative turn counts from the end, as it should
        return distance


@dataclass(frozen=True)
class _Lesion:
    blob: _Blob
    contrast: float  # grey values darker than its surroundings
    softness: float  # width of the margin, in radii
    texture: float  # standard deviation of the grey values inside
    posterior: float  # grey values added behind it: above 0 enhancement, below 0 shadow


@dataclass(frozen=True)
class _Anatomy:
    depths: _Array  # where skin, fat and gland end
    echoes: _Array  # grey values of skin, fat, gland and muscle
    relief: tuple[_Waves, ...]  # the curve of each end
    streaks: _Waves
    septa: _Waves
    lobules: tuple[tuple[_Blob, float], ...]  # each with its darkness
    bands: _Array  # lateral position, width and grey values of shadows and enhancements
    lesion: _Lesion | None


def render_exam(
    seed: int,
    patient: int,
    label: int,
    *,
    images: int,
    size: int,
    difficulty: float,
    lesion_views: int | None = None,
) -> list[Scene]:
    """Render several views of one patient.

    View `k` does not depend on `images`; only the choice of `lesion_views` among them does.

    Args:
        seed: Seed of the data set, not negative.
        patient: Number of the patient, not negative.
        label: Class index, into `CLASS_NAMES`.
        images: How many views, at least 1.
        size: Side of the square images in pixels, at least 16.
        difficulty: From 0 (told apart at a glance) to 1 (near chance).
        lesion_views: How many views show the lesion; None for all. The others show healthy
            tissue under the same label, with an empty mask.

    Returns:
        One scene for each view.

    Raises:
        ConfigError: An argument lies outside its range.
    """
    shown = images if lesion_views is None else lesion_views
    for name, value, low, high in (
        ("label", label, 0, len(CLASS_NAMES) - 1),
        ("images", images, 1, np.inf),
        ("size", size, 16, np.inf),
        ("difficulty", difficulty, 0, 1),
        ("lesion_views", shown, 0, images),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{name}={value} is outside its range, {low} to {high}")
    # the label is in no key: tissue, probe and speckle are the same whatever the diagnosis
    ill, well = (
        _draw_anatomy(default_rng((seed, patient, 0)), drawn, difficulty) for drawn in (label, 0)
    )
    visible = default_rng((seed, patient, 1)).permutation(images)[:shown]
    scenes = []
    for view in range(images):
        rng = default_rng((seed, patient, 2, view))
        image, inside = _render_view(rng, ill if view in visible else well, size, difficulty)
        scenes.append(Scene(image, label, _boxes(inside), label * inside.astype(np.uint8)))
    return scenes


def _draw_anatomy(rng: Generator, label: int, difficulty: float) -> _Anatomy:
    contrast = 0.42 - 0.30 * difficulty
    lowest = (0.1, 0.15, 0.07, 0.03, -0.35, 0.4)
    highest = (0.9, 0.80, 0.16, 0.07, 0.35, 1.4)
    share = contrast * (0.2 + 0.7 * difficulty)  # the harder, the nearer lobules are to lesions
    lobules = tuple(
        (_Blob((x, y), (rx, ry), tilt), share * darkness)
        for x, y, rx, ry, tilt, darkness in rng.uniform(lowest, highest, (_LOBULES, 6))
    )
    anatomy = _Anatomy(
        depths=rng.normal((0.04, 0.24, 0.80), (0.006, 0.05, 0.06)),
        echoes=rng.normal((0.66, 0.32, 0.50, 0.34), 0.04),
        relief=tuple(_Waves.draw(rng, 4, fx, 0.0) for fx in (0.4, 0.9, 0.6)),
        streaks=_Waves.draw(rng, 24, 2.5, 7.0),
        septa=_Waves.draw(rng, 12, 2.0, 2.0),
        lobules=lobules,
        bands=rng.uniform((0.0, 0.03, -0.14), (1.0, 0.12, 0.08), (3, 3)),
        lesion=_draw_lesion(rng, label, difficulty, contrast),
    )
    # a lobule stands in for the lesion, or the number of dark spots would tell the class
    if label == 0:
        return replace(anatomy, lesion=None)
    return replace(anatomy, lobules=anatomy.lobules[1:])


def _draw_lesion(rng: Generator, label: int, difficulty: float, contrast: float) -> _Lesion:
    side = (0, -1, 1)[label] * (1 - difficulty**2)

    def trait(middle: float, gap: float, spread: float, least: float) -> float:
        # the means of benign and malignant lie a gap to either side; a patient's deviation stays
        return max(least, middle + gap * side + spread * rng.standard_normal())

    stretch = np.exp(trait(-0.15, 0.40, 0.12, -1.0) / 2)  # root of height over width
    radius = rng.uniform(0.10, 0.17)
    return _Lesion(
        blob=_Blob(
            centre=(rng.uniform(0.16, 0.84), rng.uniform(0.28, 0.78)),  # always in view
            radii=(radius / stretch, radius * stretch),
            tilt=rng.normal(0, 0.15),
            contour=_draw_contour(rng, trait(0.12, 0.11, 0.03, 0.01)),
        ),
        contrast=contrast * np.exp(rng.normal(0, 0.15)),
        softness=trait(0.11, 0.08, 0.02, 0.03),
        texture=trait(0.05, 0.05, 0.015, 0.0),
        posterior=trait(0.0, -0.12, 0.04, -0.3),
    )


def _draw_contour(rng: Generator, raggedness: float) -> _Array:
    """Return radii about 1 with standard deviation `raggedness`: lobes, spicules or between."""
    angle = np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False)
    turns = np.outer(np.arange(3, 7), angle) + rng.uniform(0, 2 * np.pi, (4, 1))
    lobes = rng.normal(size=4) @ np.cos(turns)
    lobes /= lobes.std()
    spikes = (1 - np.abs(np.sin(rng.integers(7, 13) * angle / 2 + rng.uniform(0, np.pi)))) ** 2
    spikes *= (1 + 0.3 * lobes) / spikes.std()
    shape = lobes + rng.uniform() * (spikes - lobes)
    contour: _Array = 1 + raggedness * (shape - shape.mean()) / shape.std()
    return contour.clip(0.4, 2.0)


def _render_view(
    rng: Generator, anatomy: _Anatomy, size: int, difficulty: float
) -> tuple[NDArray[np.uint8], _Mask]:
    """Return the image and the pixels inside the lesion's margin."""
    zoom, tilt = np.exp(rng.uniform(-0.1, 0.1)), rng.normal(0, 0.05)
    move = rng.uniform((-0.08, -0.03), (0.08, 0.03))
    pixel = (np.arange(size) + 0.5) / size
    x, y = (pixel - 0.5) / zoom + 0.5 + move[0], pixel / zoom + move[1]
    grey, inside = _tissue(anatomy, x, y, tilt), np.zeros((size, size), np.bool_)
    grain, shading = _Waves.draw(rng, 16, 7.0, 7.0), _Waves.draw(rng, 4, 0.6, 0.6)
    if anatomy.lesion is not None:
        grey, inside = _with_lesion(grey, anatomy.lesion, grain, x, y)
    gain, attenuation, contrast = rng.normal((0.0, 0.15, 1.0), (0.05, 0.08, 0.08))
    grey = contrast * (grey - 0.5) + 0.5 + gain - attenuation * (pixel[:, None] - 0.4)
    grey += 0.05 * shading(pixel, pixel) + (0.05 + 0.08 * difficulty) * _log_speckle(rng, size)
    # a curved probe's field of view widens with depth; beyond it there is no echo
    opening = rng.uniform(0.38, 0.6) + 0.25 * pixel[:, None]
    grey *= _step((opening - np.abs(pixel - 0.5)) / 0.02)
    return (255 * np.clip(grey, 0, 1)).astype(np.uint8), inside


def _tissue(anatomy: _Anatomy, x: _Array, y: _Array, tilt: float) -> _Array:
    """Return the grey values of a healthy breast before speckle, (h, w)."""
    grey = np.full((len(y), len(x)), anatomy.echoes[0])
    below = []
    layers = zip(anatomy.depths, anatomy.relief, np.diff(anatomy.echoes), strict=True)
    for depth, relief, change in layers:
        under = y[:, None] - depth - 0.025 * relief(x, np.zeros(1)) - tilt * (x - 0.5)
        below.append(_step(under / 0.01))
        grey += change * below[-1] + 0.18 * np.exp(-np.square(under / 0.009))  # a bright fascia
    skin, fat, _ = below
    grey += 0.05 * fat * anatomy.streaks(x, y)
    # the zero lines of a smooth field wind and branch like septa
    grey += 0.16 * (skin - fat) * np.exp(-np.square(anatomy.septa(x, y) / 0.15))
    for blob, darkness in anatomy.lobules:
        off = (1 - blob.radius(x, y)) / 0.12
        grey += darkness * (0.5 * np.exp(-np.square(off + 0.8)) - _step(off))  # a bright capsule
    for place, width, change in anatomy.bands:
        grey += change * fat * np.exp(-np.square((x - place) / width))
    return grey


def _with_lesion(
    grey: _Array, lesion: _Lesion, grain: _Waves, x: _Array, y: _Array
) -> tuple[_Array, _Mask]:
    """Return the tissue with the lesion in it, and the pixels inside the lesion's margin."""
    radius = lesion.blob.radius(x, y)
    soft, inside = _step((1 - radius) / lesion.softness), radius < 1
    level = grey[inside].mean() - lesion.contrast
    grey = grey + soft * (level + lesion.texture * grain(x, y) - grey)
    behind = np.maximum.accumulate(soft, axis=0) - soft
    return grey + lesion.posterior * gaussian_filter(behind, (0, 0.02 * len(x))), inside


def _log_speckle(rng: Generator, size: int) -> _Array:
    """Return Rayleigh speckle after log compression, about zero mean and unit variance."""
    # the beam resolves depth better than width
    field = gaussian_filter(rng.normal(size=(2, size, size)), (0, 0.006 * size, 0.011 * size))
    energy = np.square(field).sum(axis=0)
    log_amplitude: _Array = 0.5 * np.log(energy / energy.mean() + 1e-3)
    return (log_amplitude + np.euler_gamma / 2) * math.sqrt(24) / math.pi


def _boxes(inside: _Mask) -> NDArray[np.float32]:
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return np.zeros((0, 4), np.float32)
    return np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)


def _step(x: _Array) -> _Array:
    """Return a smooth step from 0 to 1, two units wide."""
    return 0.5 + 0.5 * np.tanh(x)

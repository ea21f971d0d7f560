"""Which images look alike: hashes of their coarse structure, looked up in sorted bands.

A hash is 64 signs of the discrete cosine transform (as in Zauner, "Implementation and benchmarking
of perceptual image hash functions", 2010), with two differences. The signs are those of what sets
an image apart from the mean image: radiographs of one kind share most of their coarse structure,
and signs of the plain transform would be equal among all of them. And the hashes of parts of each
image are looked up among those of whole images, so that a crop finds what it was cut from. Mirrored
and turned images cost no transform: in it, a mirror changes signs and a quarter turn transposes.

The look-up is locality-sensitive (Charikar, "Similarity estimation techniques from rounding
algorithms", 2002): the hashes are sorted by a few of their bits, another few in each of `TABLES`,
and only the `NEIGHBOURS` next in the order are compared, so that a crowded bucket costs no more
than an empty one. Work and memory grow linearly (times the logarithm that sorting costs), however
many images are alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from medtransfer.data.squares import Floats, resampling, squares

SIDE = 32  # of the squares that are transformed
WAVES = 9  # coefficients along each axis
BITS = 64
# parts of each axis, the first one whole: any crop of up to a tenth on each side is within a
# fortieth of one of the others, where most signs are still the same
CUTS = (0.025, 0.075)
PARTS = ((0.0, 1.0), *((cut, 1 - other) for cut in CUTS for other in CUTS), (0.1, 0.9))
TURNS = 8

TABLES = 16
KEY_BITS = 28  # more than the logarithm of any number of images that one machine decodes
NEIGHBOURS = 4  # in each table, for each part of an image
FARTHEST = 17  # of 64 bits: 3 standard deviations below what two unrelated images differ by
CANDIDATES = 5  # of each image, the nearest ones: the bound of all that follows
CHUNK = 1024  # images that are transformed at once
BLOCK = 1024  # images that are looked up at once
SAMPLE = 2048  # images from which the mean is taken
MANY = 50  # images that have a mean
TYPICAL = 0.9  # of it is taken off: of a scene that fills the dataset the signs of it are left

_Codes = NDArray[np.uint64]
_Ints = NDArray[np.int64]


class Candidates(NamedTuple):
    """Pairs of images that look alike; each array is (m,).

    Attributes:
        whole: Index of the image of which a part is meant.
        part: That part: 0 for all of it, else 1 plus a number whose digits, to the base of the
            number of cuts, tell the part of the rows and that of the columns.
        copy: Index of the image that looks like it.
        turn: How the copy is turned first, see `squares.turned`.
    """

    whole: _Ints
    part: _Ints
    copy: _Ints
    turn: _Ints

    @property
    def windows(self) -> Floats:
        """Where the parts start and end along rows and along columns, (m, 4), in parts of them."""
        ends, cuts = np.asarray(PARTS, np.float32), len(PARTS) - 1
        digits = np.stack(np.divmod(self.part - 1, cuts), axis=1) + 1
        digits[self.part == 0] = 0
        windows: Floats = ends[digits].reshape(-1, 4)
        return windows


def lookalikes(
    images: NDArray[np.uint8] | NDArray[np.uint16], facts: NDArray[Any], indices: NDArray[np.intp]
) -> Candidates:
    """Return the pairs whose hashes are close, at most `CANDIDATES` for each image.

    Args:
        images: (n, C, S, S), letterboxed.
        facts: (n,) of `facts.DTYPE`.
        indices: (m,) of the images that are compared.
    """
    parts, wholes = _codes(images, facts, indices)
    tables = _Tables.of(wholes)
    found = [
        tables.near(start, parts[start : start + BLOCK]) for start in range(0, len(parts), BLOCK)
    ]
    distance, whole, part, entry = (np.concatenate(column) for column in zip(*found, strict=True))
    copy, turn = np.divmod(entry, TURNS)
    # most pairs are met twice, from either side
    order = _nearest(distance, np.minimum(whole, copy) * len(parts) + np.maximum(whole, copy))
    return Candidates(indices[whole[order]], part[order], indices[copy[order]], turn[order])


def _nearest(distance: _Ints, pair: _Ints) -> NDArray[np.intp]:
    """Return where the least distance (m,) of each pair (m,) stands, the least of all first."""
    order = np.argsort(distance, kind="stable")
    return order[np.sort(np.unique(pair[order], return_index=True)[1])]


def _rank(values: _Ints) -> _Ints:
    """Return how often each value (m,) stood before."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.searchsorted(ordered, ordered)
    rank = np.empty(len(values), np.int64)
    rank[order] = np.arange(len(values)) - first
    return rank


def _codes(
    images: NDArray[np.uint8] | NDArray[np.uint16], facts: NDArray[Any], indices: NDArray[np.intp]
) -> tuple[_Codes, _Codes]:
    """Return the hashes of each image's parts (m, parts) and of its orientations (m, TURNS)."""
    steps = np.linspace(0, len(indices) - 1, min(SAMPLE, len(indices))).astype(np.intp)
    sample = squares(images, facts, indices[steps], SIDE)
    mean = TYPICAL * _coefficients(sample)[:, 0].mean(axis=0)
    if len(indices) < MANY:
        mean[:] = 0  # it would be made of the very ones that are compared
    parts = np.empty((len(indices), len(PARTS[1:]) ** 2 + 1), np.uint64)
    wholes = np.empty((len(indices), TURNS), np.uint64)
    for start in range(0, len(indices), CHUNK):
        rows = slice(start, start + CHUNK)
        found = _coefficients(squares(images, facts, indices[rows], SIDE))
        parts[rows] = _packed(found - mean)
        for turn in range(TURNS):
            wholes[rows, turn] = _packed(_turned_waves(found[:, 0], turn) - mean)
    return parts, wholes


def _coefficients(image: Floats) -> Floats:
    """Return the transform (m, parts, WAVES, WAVES) of squares and their parts, of unit norm."""
    transform = dct(np.eye(SIDE, dtype=np.float32), axis=0, norm="ortho")[:WAVES]
    lines = np.stack([transform @ resampling(SIDE, SIDE, *part) for part in PARTS])
    down = (lines.reshape(-1, SIDE) @ image).reshape(len(image), len(PARTS), WAVES, SIDE)
    cuts = len(PARTS) - 1
    cut = down[:, 1:].reshape(len(image), -1, SIDE) @ lines[1:].reshape(-1, SIDE).T
    cut = cut.reshape(len(image), cuts, WAVES, cuts, WAVES).transpose(0, 1, 3, 2, 4)
    cut = cut.reshape(len(image), cuts**2, WAVES, WAVES)
    result: Floats = np.concatenate([(down[:, 0] @ lines[0].T)[:, None], cut], axis=1)
    result[..., 0, 0] = 0  # brightness
    norm = np.sqrt(np.square(result).sum(axis=(-1, -2), keepdims=True))
    result /= np.maximum(norm, 1e-6)  # contrast
    return result


def _turned_waves(waves: Floats, turn: int) -> Floats:
    """Return the transform (..., WAVES, WAVES) of `turned` images from that of the images."""
    if turn & 4:
        waves = waves.swapaxes(-1, -2)
    signs = np.where(np.arange(WAVES) % 2, -1, 1).astype(np.float32)
    if turn & 1:
        waves = waves * signs[:, None]
    if turn & 2:
        waves = waves * signs
    return waves


def _packed(waves: Floats) -> _Codes:
    """Return the signs of the lowest waves (..., WAVES, WAVES) as numbers of `BITS` bits."""
    i, j = np.indices((WAVES, WAVES)).reshape(2, -1)
    lowest = np.lexsort((abs(i - j), i + j))[1 : BITS + 1]  # the first one is the brightness
    bits = waves.reshape(*waves.shape[:-2], -1)[..., lowest] > 0
    return np.ascontiguousarray(np.packbits(bits, axis=-1)).view(np.uint64)[..., 0]


def _bands() -> _Ints:
    """Return the bits that each table sorts by, (TABLES, KEY_BITS)."""
    rng = np.random.default_rng(0)
    return np.stack([rng.permutation(BITS)[:KEY_BITS] for _ in range(TABLES)])


@dataclass(frozen=True)
class _Tables:
    """Hashes of whole images, sorted by a few bits, others in each table.

    Attributes:
        codes: (m,) hashes, those of one image's orientations one after another.
        bits: (TABLES, KEY_BITS), which bits each table is sorted by.
        keys: (TABLES, m), those bits, sorted.
        orders: (TABLES, m), index of the hash that each key is of.
    """

    codes: _Codes
    bits: _Ints
    keys: NDArray[np.uint32]
    orders: NDArray[np.int32]

    @classmethod
    def of(cls, wholes: _Codes) -> _Tables:
        """Return the tables of hashes (n, TURNS)."""
        codes, bits = wholes.reshape(-1), _bands()
        keys = np.empty((TABLES, len(codes)), np.uint32)
        orders = np.empty((TABLES, len(codes)), np.int32)
        for table in range(TABLES):
            found = _keys(codes, bits[table])
            orders[table] = np.argsort(found, kind="stable")
            keys[table] = found[orders[table]]
        return cls(codes, bits, keys, orders)

    def near(self, start: int, parts: _Codes) -> tuple[_Ints, _Ints, _Ints, _Ints]:
        """Return distance, image, part and index of the hash of what is near to some images.

        Args:
            start: Index of the first of these images.
            parts: (k, parts) hashes of their parts.
        """
        queries = parts.reshape(-1)
        found: list[tuple[_Ints, _Ints, _Ints]] = []
        for bits, keys, order in zip(self.bits, self.keys, self.orders, strict=True):
            wanted = _keys(queries, bits)
            query = np.argsort(wanted)  # in this order, look-ups stay in the processor's cache
            place = np.searchsorted(keys, wanted[query])
            for step in range(-(NEIGHBOURS // 2), (NEIGHBOURS + 1) // 2):
                entry = order[np.clip(place + step, 0, len(order) - 1)]
                distance = np.bitwise_count(queries[query] ^ self.codes[entry])
                (near,) = np.nonzero(distance <= FARTHEST)
                asking, met = query[near], entry[near].astype(np.int64)
                other = start + asking // parts.shape[1] != met // TURNS  # not itself
                found.append((distance[near][other].astype(np.int64), asking[other], met[other]))
        distances, asked, entries = (np.concatenate(each) for each in zip(*found, strict=True))
        image, part = np.divmod(asked, parts.shape[1])
        image += start
        # of equal distances the first part and turn
        order = np.lexsort((entries, asked))
        distances, image, part, entries = (
            each[order] for each in (distances, image, part, entries)
        )
        kept = _nearest(distances, image * (len(self.codes) // TURNS) + entries // TURNS)
        kept = kept[_rank(image[kept]) < CANDIDATES]
        return distances[kept], image[kept], part[kept], entries[kept]


def _keys(codes: _Codes, bits: _Ints) -> NDArray[np.uint32]:
    keys = np.zeros(len(codes), np.uint32)
    for bit in bits.tolist():
        keys <<= np.uint32(1)
        keys |= ((codes >> np.uint64(bit)) & np.uint64(1)).astype(np.uint32)
    return keys

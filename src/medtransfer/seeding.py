"""Randomness that each part gets from the trial's seed alone."""

from __future__ import annotations

import zlib


def derive(seed: int, *parts: object) -> int:
    """Return a seed that depends on all that is given and on nothing else."""
    return zlib.crc32(" ".join(map(str, (seed, *parts))).encode())


def seed_part(seed: int, part: str) -> None:
    """Seed torch for one part, so that it does not depend on what was built before it."""
    import torch

    torch.manual_seed(derive(seed, part))

"""Turn a file of `medtransfer pretrain` into one that ships: half precision, in the package.

The weights that ship were made by the recipe in their header:

    medtransfer pretrain source=synthetic
    python scripts/ship_weights.py medtransfer-data/weights/synthetic-resnet10t-*.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from medtransfer.backbones.files import SHIPPED
from medtransfer.backbones.weights import hash_file, read_tensors, write

LARGEST = 12 * 2**20  # bytes


def main(path: Path) -> None:
    """Write the file, and print its hash and size."""
    state, known = read_tensors(path)
    target = SHIPPED / f"{known['source']}-{known['backbone']}.safetensors"
    real = (value for value in state.values() if value.is_floating_point())
    assert all(bool(torch.isfinite(value.half()).all()) for value in real)
    write(state, target, known, half=True)
    size = target.stat().st_size
    assert size < LARGEST, size
    print(f"{target}: {size} bytes, SHA-256 {hash_file(target)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

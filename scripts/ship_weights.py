"""Turn a file of `medtransfer pretrain` into one that ships: half precision, in the package.

The weights that ship were made by the recipe in their header:

    medtransfer pretrain source=synthetic trainer.max_steps=8000 scheduler.warmup=0.05
    python scripts/ship_weights.py medtransfer-data/weights/synthetic-resnet10t-*.safetensors
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from medtransfer.backbones.files import SHIPPED
from medtransfer.backbones.weights import METADATA_KEY, hash_file, read_tensors

LARGEST = 12 * 2**20  # bytes


def main(path: Path) -> None:
    """Write the file, and print its hash and size."""
    state, known = read_tensors(path)
    target = SHIPPED / f"{known['source']}-{known['backbone']}.safetensors"
    target.parent.mkdir(exist_ok=True)
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    assert all(bool(torch.isfinite(v).all()) for v in half.values() if v.is_floating_point())
    save_file(half, target, metadata={METADATA_KEY: json.dumps(known)})
    size = target.stat().st_size
    assert size < LARGEST, size
    print(f"{target}: {size} bytes, SHA-256 {hash_file(target)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

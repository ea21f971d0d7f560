"""The dataset `my_dataset` keeps what the shipped ones keep."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from medtransfer.testing import check_dataset

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))  # where my_dataset.py lies


def make_images(root: Path) -> None:
    """Write ten patients of each class with two images each, no two images alike."""
    # change: write a few of what your dataset reads
    rng = np.random.default_rng(0)
    rows = ["image,label,patient"]
    for patient in range(20):
        for view in range(2):
            name = f"{patient:02d}-{view}.png"
            Image.fromarray(rng.integers(0, 256, (24, 32), dtype=np.uint8)).save(root / name)
            rows.append(f"{name},{('benign', 'malignant')[patient % 2]},p{patient}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    """Samples stay what they are, and no patient lies on two sides of a split."""
    make_images(tmp_path)
    check_dataset(
        "my_dataset",
        f"dataset.root='{tmp_path}'",
        "dataset.image_size=32",
        config_dir=HERE / "conf",
        trusted=("my_dataset",),
    )

"""What a large dataset costs: audit, split and one epoch, at two sizes ten-fold apart.

Small generated images and a manifest with patients are written to a scratch folder. Then the
program's own commands run on them, each in a process of its own, and the largest memory of each is
noted. What the interpreter and its libraries take is measured by the same commands on 60 images.

    python scripts/scale_benchmark.py [--images 100000] [--size 28]
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

FEW = 60
PER_PATIENT = 2
CLASSES = ("negative", "positive")


@dataclass(frozen=True)
class Cost:
    """What a command took: wall seconds, and the largest resident memory in MB."""

    seconds: float
    memory: float


def main() -> None:
    """Measure all sizes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=28)
    arguments = parser.parse_args()
    found: dict[int, dict[str, Cost]] = {}
    for count in (FEW, arguments.images // 10, arguments.images):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_images(folder / "data", count, arguments.size)
            found[count] = measure(folder, arguments.size)
        show(count, found)


def measure(folder: Path, size: int) -> dict[str, Cost]:
    """Return the cost of each command on one set of images."""
    data = [
        *("dataset=csv_manifest", f"dataset.root={folder / 'data'}", "dataset.file=exams.csv"),
        *("dataset.image=file", "dataset.label=finding", "dataset.patient=patient"),
        *(f"dataset.image_size={size}", "dataset.channels=1", f"paths.output={folder / 'home'}"),
    ]
    backbone = ["backbone=timm", "backbone.name=test_resnet", "weights=random"]
    trainer = ["trainer.max_epochs=1", "trainer.workers=0", "trainer.threads=1"]
    return {
        "audit, images not decoded yet": run(["audit", *data]),
        "audit, again": run(["audit", *data]),
        "split and one epoch": run(
            ["train", *data, *backbone, *trainer, "strategy=fine_tuning", "transform=none"]
        ),
    }


def run(arguments: list[str]) -> Cost:
    """Run a command to its end."""
    command = [str(Path(sys.executable).with_name("medtransfer")), *arguments]
    started = time.perf_counter()
    # its own usage is known only to who waits for it by its id
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ})
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"failed: {' '.join(command)}")
    return Cost(time.perf_counter() - started, usage.ru_maxrss / 1024)


def write_images(folder: Path, count: int, size: int) -> None:
    """Write smooth random images, those of one class with a bright spot, and their manifest."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        target = i // PER_PATIENT % len(CLASSES)
        noise = Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8))
        image = np.asarray(noise.filter(ImageFilter.GaussianBlur(1.5))).copy()
        if target:
            y, x = rng.integers(4, size - 8, 2)
            image[y : y + 4, x : x + 4] = 255
        name = f"{i // 1000:04}/{i:07}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name, compress_level=1)
        rows.append((name, CLASSES[target], f"P{i // PER_PATIENT}"))
    with (folder / "exams.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "finding", "patient"))
        writer.writerows(rows)


def show(count: int, found: dict[int, dict[str, Cost]]) -> None:
    """Print what is known by now of one size, against the few images."""
    for name, cost in found[count].items():
        over = cost.memory - found[FEW][name].memory
        print(
            f"{count:>8,} images  {name:32}{cost.seconds:8.1f} s{cost.memory:8.0f} MB"
            f"{over:+8.0f} MB over {FEW} images",
            flush=True,
        )


if __name__ == "__main__":
    main()

"""How time and memory grow with images and with trials, and what a second worker brings.

1. `audit`, the same again, and one epoch of `train` on more and more generated images of 28 px.
2. Studies of more and more tiny trials, each in one process.
3. A study of small trials by one worker and by two.

Times are those of the CPU, which other programs hardly lengthen, over those of the fewest images
or trials: what starting takes is left out. Memory is what a process has for itself: how much of
the files of libraries lies in memory changes by 100 MB from run to run, and decoded images are such
a file.

MEDTRANSFER_BENCH_TRIALS: how many trials the largest study has, 1000 by default, at least 200.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import ROOT, Figure, process, program

FEW, IMAGE_SIZE, PER_PATIENT = 60, 28, 2
CLASSES = ("negative", "positive")
OFTEN = 10_000  # up to so many images everything is measured several times
WORK = 24  # trials for workers
LEAST = 0.01  # seconds: less is no difference
# with their looks, told apart by any eye
COMMANDS = {"audit": ("#0072b2", "o"), "audit again": ("#d55e00", "s"), "train": ("#009e73", "^")}
STUDY = """# @package _global_
defaults: [none@study, {override /hydra/sweeper: study}]
study: {name: tiny, arms: {one: [optimizer.lr=0.001], two: [optimizer.lr=0.01]}}
"""
NETWORK = (
    *("backbone=timm", "backbone.name=test_resnet", "weights=random", "transform=none"),
    *("trainer.workers=0", "trainer.threads=1"),
)
TINY = (  # hardly anything but what every trial costs
    *("strategy=feature_extraction", "features.mode=cached", "dataset.patients=36"),
    *("dataset.size=32", "dataset.image_size=32", "trainer.max_epochs=1", "trainer.max_steps=1"),
)
SMALL = ("strategy=fine_tuning", "dataset.patients=300", "trainer.max_epochs=8")  # some seconds
TABLE, PICTURE = ROOT / "docs" / "growth.csv", ROOT / "docs" / "pictures" / "growth.png"


@dataclass(frozen=True)
class Point:
    """What a command took at one size.

    Attributes:
        what: The command, or `study`.
        size: Number of images or trials.
        seconds: By the clock.
        cpu: Seconds of the CPU.
        own: Largest memory of its own, in MB: not backed by a file; looked at every 50 ms.
        resident: Largest resident memory in MB.
    """

    what: str
    size: int
    seconds: float
    cpu: float
    own: float
    resident: float


def run(quick: bool) -> Iterator[Figure]:
    """Measure images, then trials, then workers; write the table and the picture."""
    # in a quick run starting takes most of the time: it tells that all works and has no bars
    sizes = (FEW, 300, 3000) if quick else (FEW, 1000, 10_000, 100_000)
    images = measure_images(sizes, ["audit"] if quick else list(COMMANDS), 1 if quick else 3)
    yield from of_images(images, bars=not quick)
    largest = max(int(os.environ.get("MEDTRANSFER_BENCH_TRIALS", "1000")), 200)
    counts = (2, 4) if quick else (largest // 100, largest // 10, largest)
    trials = [study(count, TINY) for count in counts]
    yield from of_trials(trials, bars=not quick)
    if not quick:
        keep([*images, *trials])
        yield of_workers()


def of_images(points: Sequence[Point], *, bars: bool) -> Iterator[Figure]:
    """Return the exponents of time, and what an image takes of memory."""
    for command in dict.fromkeys(point.what for point in points):
        few, *_, middle, big = (point for point in points if point.what == command)
        yield Figure(
            name=f"growth.{command.replace(' ', '_')}",
            value=exponent(few, middle, big, lambda point: point.cpu),
            unit="",
            told=f"exponent of the time of `{command}`, 1 is linear: {big.cpu:.1f} s for"
            f" {big.size:,} images, {middle.cpu:.1f} s for {middle.size:,}, {few.cpu:.1f} s for"
            f" {few.size}, to start; by the clock"
            f" {exponent(few, middle, big, lambda point: point.seconds):.2f}",
            bar=1.15 if bars else None,
        )
        if command != "train":
            continue
        yield Figure(
            name="growth.images_memory",
            value=1024 * (big.own - middle.own) / (big.size - middle.size),
            unit="kB",
            told="memory of `train` for each further image, which is its row of the list;"
            f" {few.own:.0f} MB for {few.size} images, {middle.own:.0f} MB for {middle.size:,},"
            f" {big.own:.0f} MB for {big.size:,}",
            bar=2.0 if bars else None,
        )


def of_trials(points: Sequence[Point], *, bars: bool) -> Iterator[Figure]:
    """Return how seconds for a trial grow, where there are three sizes, and how memory does."""
    *few, middle, big = points
    for small in few:
        before = (middle.cpu - small.cpu) / (middle.size - small.size)
        after = (big.cpu - middle.cpu) / (big.size - middle.size)
        yield Figure(
            name="growth.trials",
            value=after / before,
            unit="times",
            told=f"CPU of each further trial of a study from {middle.size} to {big.size} trials,"
            f" {after:.2f} s / from {small.size} to {middle.size}, {before:.2f} s",
            bar=1.15 if bars else None,
        )
    yield Figure(
        name="growth.trials_memory",
        value=big.own - middle.own,
        unit="MB",
        told=f"memory of a process of {big.size} trials over that of {middle.size}, which is"
        f" {middle.own:.0f} MB",
        bar=100.0 if bars else None,
    )


def of_workers() -> Figure:
    """Return what a second worker of joblib brings; both start within the time."""
    joblib = (*SMALL, "hydra/launcher=joblib")
    one, two = (study(WORK, (*joblib, f"hydra.launcher.n_jobs={count}")) for count in (1, 2))
    return Figure(
        name="growth.workers",
        value=one.seconds / two.seconds,
        unit="times",
        told=f"a study of {WORK} trials of some seconds by one worker, {one.seconds:.0f} s / by"
        f" two, {two.seconds:.0f} s, by the clock, with the start of each",
    )


def exponent(few: Point, middle: Point, big: Point, of: Callable[[Point], float]) -> float:
    """Return by which power of the size something grows beyond what it is for the few."""
    more = [max(of(point) - of(few), LEAST) for point in (middle, big)]
    return math.log(more[1] / more[0]) / math.log((big.size - few.size) / (middle.size - few.size))


def measure_images(sizes: Sequence[int], commands: Sequence[str], times: int) -> list[Point]:
    """Return what each command takes on each number of images."""
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as scratch:
            write_images(Path(scratch), size)
            several = range(times if size <= OFTEN else 1)
            rounds = [once(Path(scratch), size, commands) for _ in several]
        # whatever else the machine does can only add to it
        found += [min(same, key=lambda point: point.cpu) for same in zip(*rounds, strict=True)]
    return found


def once(folder: Path, size: int, commands: Sequence[str]) -> list[Point]:
    """Return what each command takes on the images of a folder, nothing of which is decoded."""
    with tempfile.TemporaryDirectory() as home:
        data = [
            *("dataset=csv_manifest", f"dataset.root={folder}", "dataset.file=exams.csv"),
            *("dataset.image=file", "dataset.label=finding", "dataset.patient=patient"),
            *(f"dataset.image_size={IMAGE_SIZE}", "dataset.channels=1", f"paths.output={home}"),
        ]
        more = {"train": (*NETWORK, "strategy=fine_tuning", "trainer.max_epochs=1")}
        return [
            watched(what, size, [what.split()[0], *data, *more.get(what, ())]) for what in commands
        ]


def study(size: int, trial: Sequence[str]) -> Point:
    """Return what a study of so many trials takes, two arms of as many seeds."""
    with tempfile.TemporaryDirectory() as scratch:
        own = Path(scratch, "conf", "study", "tiny.yaml")
        own.parent.mkdir(parents=True)
        own.write_text(STUDY, encoding="utf-8")
        command = [
            *("train", "-m", "--config-dir", Path(scratch, "conf"), "study=tiny"),
            *(f"study.seeds={size // 2}", *NETWORK, "trainer.checkpoint=none", *trial),
        ]
        return watched("study", size // 2 * 2, command, MEDTRANSFER_HOME=Path(scratch, "home"))


def watched(what: str, size: int, arguments: Sequence[Any], **environment: Any) -> Point:
    """Run a command of the program, watched by a process that is itself small.

    The kernel counts the memory of whoever starts a process as the new one's until it is another
    program, so what a large process starts has been as large.
    """
    command = [sys.executable, __file__, program(), *arguments]
    cost = process(command, OMP_NUM_THREADS=1, **environment)
    held = json.loads(cost.output.splitlines()[-1])
    return Point(what, size, cost.seconds, cost.cpu, held["own"], held["resident"])


def watch(command: Sequence[str]) -> int:
    """Run a command, print what memory it has held, in MB, and return its exit code."""
    child = subprocess.Popen(command)
    own = 0
    while child.poll() is None:
        with suppress(OSError):  # it has just ended
            for line in Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8").splitlines():
                own = max(own, int(line.split()[1]) if line.startswith("RssAnon:") else 0)
        time.sleep(0.05)
    resident = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print("\n" + json.dumps({"own": own / 1024, "resident": resident / 1024}))
    return child.returncode


def write_images(folder: Path, count: int) -> None:
    """Write smooth random images, those of one class with a bright spot, and their manifest."""
    import numpy as np
    import pandas as pd
    from PIL import Image, ImageFilter

    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        target = i // PER_PATIENT % len(CLASSES)
        noise = Image.fromarray(rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8))
        image = np.asarray(noise.filter(ImageFilter.GaussianBlur(1.5))).copy()
        if target:
            y, x = rng.integers(4, IMAGE_SIZE - 8, 2)
            image[y : y + 4, x : x + 4] = 255
        name = f"{i // 1000:04}/{i:07}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name, compress_level=1)
        rows.append((name, CLASSES[target], f"P{i // PER_PATIENT}"))
    table = pd.DataFrame(rows, columns=["file", "finding", "patient"])
    table.to_csv(folder / "exams.csv", index=False)


def keep(points: Sequence[Point]) -> None:
    """Write all points as a table, and draw them."""
    import pandas as pd

    pd.DataFrame(points).round(2).to_csv(TABLE, index=False)
    draw(points)


def draw(points: Sequence[Point]) -> None:
    """Draw time and memory against size, on logarithmic axes, with what they would be unbent."""
    from matplotlib import pyplot as plt
    from matplotlib import ticker

    plt.switch_backend("Agg")
    rows = (("images", [*COMMANDS]), ("trials of a study", ["study"]))
    sheet, axes = plt.subplots(len(rows), 2, figsize=(10, 8), layout="constrained")
    for (unit, shown), (time_axis, memory_axis) in zip(rows, axes, strict=True):
        for what in shown:
            colour, marker = COMMANDS.get(what, ("black", "o"))
            few, *rest = (point for point in points if point.what == what)
            dashed: dict[str, Any] = {"color": colour, "linestyle": "--", "linewidth": 1}
            x = [point.size for point in rest]
            y = [max(point.cpu - few.cpu, LEAST) for point in rest]
            label = f"{what}: {few.cpu:.1f} s for {few.size}"
            time_axis.plot(x, y, color=colour, marker=marker, label=label)
            slope = y[-2] / (x[-2] - few.size)
            time_axis.plot(x, [slope * (each - few.size) for each in x], **dashed)
            x, y = [few.size, *x], [few.own, *(point.own for point in rest)]
            memory_axis.plot(x, y, label=what, color=colour, marker=marker)
            memory_axis.plot(x, [few.own] * len(x), **dashed)
        time_axis.set_ylabel("CPU beyond that of the fewest, s")
        memory_axis.set_ylabel("memory of its own, MB")
        ticks = sorted({point.size for point in points if point.what in shown})
        for axis, unbent in ((time_axis, "linear"), (memory_axis, "flat")):
            axis.plot([], [], "--", color="grey", label=unbent)
            axis.set(xscale="log", yscale="log", xlabel=unit)
            low, high = axis.get_ylim()
            axis.set_ylim(low / 2, high * 4)  # room for the legend
            axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.minorticks_off()
            axis.grid(visible=True, alpha=0.3)
            axis.legend(frameon=False, fontsize=8, loc="upper left")
    sheet.savefig(PICTURE, dpi=120)
    plt.close(sheet)


if __name__ == "__main__":
    sys.exit(watch(sys.argv[1:]))

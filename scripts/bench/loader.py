"""What loading costs: images decoded once against images decoded anew, and how long training waits.

The other side is torchvision's `ImageFolder` with the same files, of which Pillow opens, scales and
pads each one in each epoch. Decoding them once, as is done before, is not counted.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measure import Figure, in_turn, median_of, prepared, process, run_here, seconds_of

SIZE, BATCH = 224, 32
ALIKE = 1.5 / 255  # that two images may differ by
OF = (
    *("dataset=busi", f"dataset.image_size={SIZE}", "dataset.channels=3"),
    "dataset.split.duplicates=exact",  # near ones take longer to find, and nothing is judged here
)
TRAINING = ("backbone=resnet18", "weights=random", "strategy=fine_tuning", "test=false")


def run(quick: bool) -> Iterator[Figure]:
    """Measure epochs of a loader alone, with and without augmentation, then training."""
    with tempfile.TemporaryDirectory() as home:
        here = (*OF, f"paths.output={home}")
        pairs = 3 if quick else 7
        plain = "images a second from the decoded cache / from ImageFolder, busi at 224 px"
        yield median_of(
            ratios("none", here, pairs),
            name="loader.decoded",
            unit="times",
            told=f"{plain}, one thread",
            bar=5.0,
            sense="at least",
        )
        steps = 6 if quick else 28  # there are 14 in an epoch
        yield median_of(
            waits((*here, f"trainer.max_steps={steps}"), 1 if quick else 5),
            name="loader.idle",
            unit="%",
            told="share of fine-tuning resnet18 at 224 px, validation aside, in which the model"
            " waits for its next batch; all cores",
            bar=5.0,
        )
        if not quick:
            yield median_of(
                ratios("light", here, pairs),
                name="loader.augmented",
                unit="times",
                told=f"{plain}, one thread, both with the light augmentation",
            )


def ratios(transform: str, overrides: Sequence[str], pairs: int) -> list[float]:
    """Return how many times as many images a second come from our loader as from the other.

    Raises:
        SystemExit: If the images are not the same.
    """
    from medtransfer.machine import threads

    trial = prepared([*overrides, f"transform={transform}"])
    ours = trial.data.train_loader(trial.transform, batch_size=BATCH, workers=0, sampler="shuffle")
    theirs = folder_loader(trial)
    if transform == "none":
        require_alike(trial.data, theirs.dataset)

    def epoch(loader: Any, times: int = 1) -> Callable[[], float]:
        return lambda: seconds_of(lambda: [sum(1 for _ in loader) for _ in range(times)]) / times

    with threads(1):
        # of seconds, so the other way round; one epoch of ours is too short for a clock
        found: list[float] = in_turn(epoch(theirs), epoch(ours, 3), pairs)
    return found


def folder_loader(trial: Any) -> Any:
    """Return torchvision's loader of a trial's training images, with the same augmentation."""
    import torch
    from PIL import Image, ImageOps
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    def boxed(picture: Image.Image) -> Image.Image:
        return ImageOps.pad(picture, (SIZE, SIZE), Image.Resampling.BICUBIC)

    steps: list[Any] = [boxed, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    told = trial.transform
    if told.random:
        steps += [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(
                told.rotation,
                translate=(told.translation, told.translation),
                scale=(1 - told.scale, 1 + told.scale),
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
            v2.ColorJitter(brightness=told.brightness, contrast=told.contrast),
        ]
    root = Path(trial.config.paths.data) / "busi"
    folder = ImageFolder(root, v2.Compose(steps))
    place = {str(Path(path).relative_to(root)): k for k, (path, _) in enumerate(folder.samples)}
    records = trial.data.decoded.records
    chosen = [place[records[i].sample_id] for i in trial.data.train]
    return DataLoader(Subset(folder, chosen), batch_size=BATCH, shuffle=True, drop_last=True)


def require_alike(data: Any, folder: Any) -> None:
    """Compare the first batch of images, in their own order."""
    import torch

    mine = next(iter(data.loader("train", batch_size=BATCH)))
    theirs = [folder[k] for k in range(BATCH)]
    distance = (mine["image"] - torch.stack([image for image, _ in theirs])).abs().max()
    same = mine["target"].tolist() == [target for _, target in theirs]
    if not same or distance > ALIKE:
        raise SystemExit(f"not the same images: they differ by up to {float(distance):.3f}")


def waits(overrides: Sequence[str], count: int) -> list[float]:
    """Return the share of each of several trainings in which the model waits, in %.

    They run in a process of their own, which may use all cores.
    """
    command = [sys.executable, __file__, count, *overrides]
    alone = process(command, OMP_NUM_THREADS=None, MLFLOW_TRACKING_URI=None)
    shares: list[float] = json.loads(alone.output.splitlines()[-1])
    return shares


def shares_of(count: int, overrides: Sequence[str]) -> list[float]:
    """Train several times in this process, and return what `waits` does."""
    watch = put_watch()
    shares = []
    for number in range(count):
        run_here(["train", *overrides, *TRAINING, f"seed={number}", "trainer.checkpoint=none"])
        shares.append(watch.share())
    return shares


def put_watch() -> Any:
    """Put a clock into all further trainings of this process, and return it."""
    import torch
    from pytorch_lightning.callbacks import Callback

    from medtransfer import training

    usual = training.trainer_of

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what was told to the GPU before belongs to the step
        return time.perf_counter()

    class Watch(Callback):
        """Adds up the steps, and what lies between them; the first step sets up libraries."""

        def on_train_start(self, *_: Any) -> None:
            self.steps: list[float] = []
            self.waits: list[float] = []
            self.at = now()

        def on_train_epoch_start(self, *_: Any) -> None:
            self.at = now()  # what came before is the end of an epoch, with its validation

        def on_train_batch_start(self, *_: Any) -> None:
            self.waits.append(-self.at + (at := now()))
            self.at = at

        def on_train_batch_end(self, *_: Any) -> None:
            self.steps.append(-self.at + (at := now()))
            self.at = at

        def share(self) -> float:
            waited, computed = sum(self.waits[1:]), sum(self.steps[1:])
            return 100 * waited / (waited + computed)

    watch = Watch()

    def watched(settings: Any, **more: Any) -> Any:
        return usual(settings, **more | {"callbacks": [*more.get("callbacks", ()), watch]})

    training.trainer_of = watched
    return watch


if __name__ == "__main__":
    print(json.dumps(shares_of(int(sys.argv[1]), sys.argv[2:])))

"""The offline evaluation of kaiko's eva on a table of images: embeddings once, then the heads.

Its own interface, with what its configurations for classification have: a checkpoint of the best
epoch, its metrics in training and validation, a log for TensorBoard, the test set at the end.

It loads in its own process: it spawns workers anew for each fit, which takes longer than they save.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import eva
import torch
from eva.vision import datasets, transforms
from eva.vision.models import TimmModel
from eva.vision.utils import io
from given import read_table
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

SPLITS = ("train", "val", "test")


class Listed(datasets.VisionDataset[Any, torch.Tensor]):
    """The images of one split of a table."""

    def __init__(self, root: Path, table: Path, split: str, classes: list[str], size: int) -> None:
        super().__init__(
            transforms.ResizeAndCrop(size, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        self._root = root
        self._rows = read_table(table, split)
        self._classes = classes

    def __len__(self) -> int:
        return len(self._rows)

    def filename(self, index: int) -> str:
        """Return the path below the root."""
        return self._rows[index].image

    def load_data(self, index: int) -> Any:
        """Return the image, uint8 (3, height, width)."""
        return io.read_image_as_tensor(str(self._root / self._rows[index].image))

    def load_target(self, index: int) -> torch.Tensor:
        """Return the number of the class."""
        return torch.tensor(self._classes.index(self._rows[index].label))


def main() -> None:
    """Extract, then fit as many heads as there are runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("root", "table", "weights", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("size", "fits", "epochs", "batch"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("lr", "decay"):
        parser.add_argument(f"--{name}", type=float, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)

    classes = sorted({row.label for row in read_table(args.table, "train")})
    embedded = args.out / "embeddings"
    listed = [Listed(args.root, args.table, split, classes, args.size) for split in SPLITS]
    train, val, test = (
        eva.datasets.EmbeddingsClassificationDataset(str(embedded), "manifest.csv", split)
        for split in SPLITS
    )
    data = eva.DataModule(
        eva.DatasetsSchema(train=train, val=val, test=test, predict=listed),
        eva.DataloadersSchema(
            train=loader(args.batch, shuffle=True, drop_last=True),
            val=loader(args.batch),
            test=loader(args.batch),
            predict=loader(args.batch),
        ),
    )
    backbone = TimmModel(
        "resnet18", checkpoint_path=str(args.weights), model_kwargs={"num_classes": 0}
    )
    shape = {"in_features": backbone.model.num_features, "out_features": len(classes)}
    metrics = [
        eva.metrics.AverageLoss(),
        eva.metrics.MulticlassClassificationMetrics(num_classes=len(classes)),
    ]
    model = eva.HeadModule(
        head={"class_path": "torch.nn.Linear", "init_args": shape},  # drawn anew for each run
        criterion=torch.nn.CrossEntropyLoss(),
        optimizer=lambda p: torch.optim.AdamW(p, lr=args.lr, weight_decay=args.decay),
        metrics=eva.metrics.MetricsSchema(common=metrics),
    )
    writer = eva.callbacks.ClassificationEmbeddingsWriter(
        str(embedded), backbone, dataloader_idx_map=dict(enumerate(SPLITS))
    )
    best = ModelCheckpoint(filename="best", monitor="val/MulticlassAUROC", mode="max")
    trainer = eva.Trainer(
        default_root_dir=str(args.out / "logs"),
        n_runs=args.fits,
        max_epochs=args.epochs,
        callbacks=[best, writer],
        logger=TensorBoardLogger(str(args.out / "logs")),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    eva.Interface().predict_fit(trainer, model, data)


def loader(batch: int, **more: Any) -> eva.DataLoader:
    """Return a loader without workers."""
    return eva.DataLoader(
        batch_size=batch,
        num_workers=0,
        persistent_workers=False,
        prefetch_factor=None,
        pin_memory=False,
        **more,
    )


if __name__ == "__main__":
    main()

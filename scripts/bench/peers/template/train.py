"""A project as its user would write it with Lightning and Hydra: one trial, or with -m a sweep."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import timm
import torch
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batch = tuple[Tensor, Tensor]


class Images(pl.LightningDataModule):
    """A folder of images as SPLIT/CLASS/FILE."""

    def __init__(self, root: str, size: int, batch_size: int, workers: int) -> None:
        super().__init__()
        self.root, self.batch_size, self.workers = Path(root), batch_size, workers
        resize = transforms.Resize((size, size))
        to_tensor = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.plain = transforms.Compose([resize, *to_tensor])
        self.augmented = transforms.Compose(
            [
                resize,
                transforms.RandomHorizontalFlip(),
                transforms.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1)),
                transforms.ColorJitter(brightness=0.1, contrast=0.1),
                *to_tensor,
            ]
        )

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Find the files."""
        self.train = ImageFolder(str(self.root / "train"), self.augmented)
        self.val = ImageFolder(str(self.root / "validation"), self.plain)
        self.test = ImageFolder(str(self.root / "test"), self.plain)

    def _loader(self, images: ImageFolder, *, train: bool = False) -> DataLoader[Any]:
        return DataLoader(
            images,
            batch_size=self.batch_size,
            shuffle=train,
            drop_last=train,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the augmented images, shuffled."""
        return self._loader(self.train, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the images that choose the epoch."""
        return self._loader(self.val)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the images that are used once."""
        return self._loader(self.test)


class Classifier(pl.LightningModule):
    """A network of timm's, whole or frozen below its last layer."""

    def __init__(
        self,
        *,
        network: str,
        classes: int,
        weights: str | None,
        freeze: bool,
        lr: float,
        weight_decay: float,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.weight_decay = lr, weight_decay
        self.net = timm.create_model(network, num_classes=classes)
        if weights:
            self.net.load_state_dict(load_file(weights), strict=False)
        if freeze:
            self.net.requires_grad_(False)
            self.net.get_classifier().requires_grad_(True)  # type: ignore[operator]
        kinds = ("val", "test")
        self.accuracy: Any = nn.ModuleDict({kind: MulticlassAccuracy(classes) for kind in kinds})
        self.auroc: Any = nn.ModuleDict({kind: MulticlassAUROC(classes) for kind in kinds})

    def training_step(self, batch: Batch, index: int) -> Tensor:  # noqa: ARG002
        """Return the loss."""
        images, targets = batch
        loss = cross_entropy(self.net(images), targets)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def _evaluate(self, batch: Batch, kind: str) -> None:
        images, targets = batch
        logits = self.net(images)
        self.accuracy[kind](logits, targets)
        self.auroc[kind](logits.softmax(-1), targets)
        self.log(f"{kind}/loss", cross_entropy(logits, targets))
        self.log(f"{kind}/accuracy", self.accuracy[kind])
        self.log(f"{kind}/auroc", self.auroc[kind])

    def validation_step(self, batch: Batch, index: int) -> None:  # noqa: ARG002
        """Log what chooses the epoch."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, index: int) -> None:  # noqa: ARG002
        """Log what is reported."""
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        """Return AdamW with a cosine over the epochs."""
        learning = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=self.lr, weight_decay=self.weight_decay)
        epochs = self.trainer.max_epochs or 1
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)]


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Train, then test the best epoch."""
    pl.seed_everything(cfg.seed, workers=True)
    data = hydra.utils.instantiate(cfg.data)
    model = hydra.utils.instantiate(cfg.model)
    logger = hydra.utils.instantiate(cfg.logger)
    callbacks = [hydra.utils.instantiate(one) for one in cfg.callbacks.values()]
    trainer = hydra.utils.instantiate(cfg.trainer, logger=logger, callbacks=callbacks)
    trainer.fit(model, data)
    trainer.test(model, data, ckpt_path="best")
    return float(trainer.callback_metrics["test/auroc"])


if __name__ == "__main__":
    main()

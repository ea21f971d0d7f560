"""The loss of segmentation: a weighted sum of parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from segmentation_models_pytorch.losses import DiceLoss, JaccardLoss, LovaszLoss, TverskyLoss
from torch import Tensor, nn

from medtransfer.data.base import IGNORED
from medtransfer.errors import ConfigError
from medtransfer.tasks.losses import Focal, Loss

Weight = Annotated[float, Field(ge=0)]


class MaskLoss(Loss):
    """A weighted sum of losses that compare each pixel, or the regions of each class.

    Ignored pixels are dropped before any part sees them. What is left of a batch counts as one
    image: parts are means over its pixels, or over classes. Without any pixel the loss is zero, as
    is its gradient. All is computed in float32.

    The overlaps `dice`, `jaccard` and `tversky` are 1 less the overlap of probabilities with the
    truth, as a mean over all foreground classes in [0, 1]. A class that is absent from the batch
    counts as zero there, and what is wrongly taken for it costs nothing: only together with
    another part does a batch without foreground teach anything.

    Args:
        counts: Training images of each foreground class.
        cross_entropy: Weight of cross-entropy.
        focal: Weight of the focal loss (Lin et al. 2017, arXiv 1708.02002), of the softmax.
        dice: Weight of the soft Dice loss (Milletari et al. 2016, arXiv 1606.04797), without
            squares in its denominator.
        jaccard: Weight of the soft Jaccard loss (Rahman & Wang 2016).
        tversky: Weight of the Tversky loss (Salehi et al. 2017, arXiv 1706.05721).
        lovasz: Weight of the Lovasz-softmax loss (Berman et al. 2018, arXiv 1705.08790): a mean
            over the classes that the batch shows, background too, as in the paper.
        focal_gamma: How much less an easy pixel counts in `focal`.
        tversky_alpha: Price of a false positive in `tversky`; Dice has 0.5.
        tversky_beta: Price of a false negative there.

    Raises:
        ConfigError: If no part has a weight.
    """

    def __init__(
        self,
        *,
        counts: Sequence[int],
        cross_entropy: Weight,
        focal: Weight,
        dice: Weight,
        jaccard: Weight,
        tversky: Weight,
        lovasz: Weight,
        focal_gamma: Annotated[float, Field(ge=0)],
        tversky_alpha: Annotated[float, Field(gt=0)],
        tversky_beta: Annotated[float, Field(gt=0)],
    ) -> None:
        super().__init__(counts, "none")
        self.classes = len(counts) + 1
        foreground = list(range(1, self.classes))
        made: dict[str, tuple[float, nn.Module]] = {
            "cross_entropy": (cross_entropy, nn.CrossEntropyLoss()),
            "focal": (focal, Focal(counts, "none", focal_gamma)),
            "dice": (dice, DiceLoss("multiclass", foreground)),
            "jaccard": (jaccard, JaccardLoss("multiclass", foreground)),
            "tversky": (
                tversky,
                TverskyLoss("multiclass", foreground, alpha=tversky_alpha, beta=tversky_beta),
            ),
            "lovasz": (lovasz, LovaszLoss("multiclass")),
        }
        self.weights = {name: weight for name, (weight, _) in made.items() if weight}
        if not self.weights:
            raise ConfigError("the loss has no part", choices=made, remedy="loss.dice=1")
        self.parts = nn.ModuleDict({name: made[name][1] for name in self.weights})

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: Shape (N, classes with background, H, W).
            mask: Shape (N, H, W): 0 background, k + 1 the k-th class, 255 ignored.

        Raises:
            ValueError: If the logits are of other classes than those counted.
        """
        if logits.shape[1] != self.classes:  # some classes would count and others not
            msg = f"logits of {logits.shape[1]} classes, with background, instead of {self.classes}"
            raise ValueError(msg)
        with torch.autocast(logits.device.type, enabled=False):
            known = mask != IGNORED
            pixels, target = logits.movedim(1, -1)[known].float(), mask[known]
            loss = pixels.sum() * 0
            if len(target):
                for name, weight in self.weights.items():
                    loss = loss + weight * self.parts[name](pixels, target)
        return loss

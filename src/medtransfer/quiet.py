"""Libraries say only what a user of this program can act on."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Silence Lightning's advice about settings that this program chooses by itself."""
    for name in ("pytorch_lightning", "lightning", "timm", "huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*LeafSpec.*is deprecated.*",
        ".*module\\(s\\) in eval mode at the start of training.*",  # frozen means so
    ):
        warnings.filterwarnings("ignore", message)

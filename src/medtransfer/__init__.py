"""medtransfer: feature extraction or fine-tuning, compared on your own medical images."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medtransfer.api import Model, Study, compose, sweep, train

__all__ = ["Model", "Study", "__version__", "compose", "sweep", "train"]
__version__ = "0.1.0"

# No dependency reports to anyone, or fills the screen, unless the user turns it on.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # advice on settings that are chosen here
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # one bar for each small file
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for each run on a server
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # what is not taken is kept, and told again
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
}.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is asked for: the command line should not wait for it."""
    if name in __all__:
        return getattr(importlib.import_module("medtransfer.api"), name)
    msg = f"module '{__name__}' has no attribute '{name}'"
    raise AttributeError(msg)

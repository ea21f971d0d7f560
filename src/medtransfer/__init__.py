"""medtransfer: feature extraction or fine-tuning, compared on your own medical images."""

import os

__version__ = "0.1.0"

# Nothing is reported to anyone unless the user turns it on.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}.items():
    os.environ.setdefault(_name, _value)

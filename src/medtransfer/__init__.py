"""medtransfer: feature extraction or fine-tuning, compared on your own medical images."""

import os

__version__ = "0.1.0"

# No dependency reports to anyone, or fills the screen, unless the user turns it on.
for _name, _value in {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # one bar for each small file
}.items():
    os.environ.setdefault(_name, _value)

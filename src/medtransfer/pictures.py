"""Pictures of a test: how a few of its cases were judged."""

from __future__ import annotations

import torch

from medtransfer.drawing import draw
from medtransfer.feed import device_of
from medtransfer.machine import Machine
from medtransfer.run import Trial
from medtransfer.tracking.runs import Run


@torch.no_grad()
def record(trial: Trial, run: Run, settings: Machine) -> None:
    """Log `pictures/test.png`: some cases of the test that was just made, if the task shows any.

    They are chosen from what the test kept; only these few are looked at again.

    Args:
        trial: Its model is left in eval mode.
        run: The open MLflow run.
        settings: How the trial computes.
    """
    device = device_of(settings)
    model = trial.model.to(device).eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision.value == "bf16"):
        examples = model.examples(trial.data, model.kept["test"])
    if examples is not None and examples.groups:
        with run.folder("pictures") as folder:
            # packed tightly, a page would take longer than many a head to train
            draw(examples, trial.data.decoded).save(folder / "test.png", compress_level=1)

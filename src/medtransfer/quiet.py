"""Libraries say only what a user of this program can act on."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TextIO

from medtransfer.errors import Note
from medtransfer.secrets import printable, redact


def quiet_libraries() -> None:
    """Silence Lightning's advice about settings that this program chooses by itself."""
    for name in ("pytorch_lightning", "lightning", "timm", "huggingface_hub", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*LeafSpec.*is deprecated.*",
        ".*`srun` command is available.*",  # launchers start processes, trainings do not
        ".*module\\(s\\) in eval mode at the start of training.*",  # frozen means so
    ):
        warnings.filterwarnings("ignore", message)


def show_notes() -> None:
    """Show each note of the program's own once, and other warnings as they would be."""
    usual = warnings.showwarning
    shown: set[str] = set()

    def show(  # noqa: PLR0917  as the warnings module calls it
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, Note):
            usual(message, category, filename, lineno, file, line)
        elif str(message) not in shown:
            shown.add(str(message))
            sys.stderr.write(f"note: {printable(redact(str(message)))}\n")

    warnings.simplefilter("always", Note)
    warnings.showwarning = show

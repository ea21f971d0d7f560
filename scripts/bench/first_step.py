"""Run the program with the arguments given, and end it at its first training step."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from typing import Any

from medtransfer.cli import main


class Stop(MetaPathFinder):
    """Waits until training is about to be imported; to import it here would be unlike use."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> None:  # noqa: ARG002
        """See `MetaPathFinder.find_spec`; finds nothing."""
        if name == "medtransfer.training":
            sys.meta_path.remove(self)
            from medtransfer.tasks.base import Task

            def end(*_: Any) -> None:
                os._exit(0)

            Task.on_train_batch_start = end  # type: ignore[method-assign]


sys.meta_path.insert(0, Stop())
sys.exit(main(sys.argv[1:]))

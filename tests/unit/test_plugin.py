"""Hydra finds the study sweeper by itself, whatever program runs it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
from hydra import compose, initialize_config_module
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

found = {cls.__name__ for cls in Plugins.instance().discover(Sweeper)}
assert {"StudySweeper", "BasicSweeper"} <= found, found
"""


def test_a_program_that_does_not_import_medtransfer_can_use_hydra():
    run = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(run, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

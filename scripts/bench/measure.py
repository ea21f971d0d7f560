"""How the benchmarks measure: side by side, in turn, and what is kept of it."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
Sense = Literal["at least", "at most"]


@dataclass(frozen=True)
class Figure:
    """One thing that was measured.

    Attributes:
        name: What the stored figures know it by, such as `overhead.images`.
        value: What was found: the median, where it was measured several times.
        bar: What it shall reach; None: it is told and nothing more.
        sense: Whether it shall be at least or at most that.
        unit: `times`, `s` or `%`.
        told: What was measured against what, in one line.
        low: Least of several.
        high: Largest of several.
    """

    name: str
    value: float
    unit: str
    told: str
    bar: float | None = None
    sense: Sense = "at most"
    low: float | None = None
    high: float | None = None

    @property
    def holds(self) -> bool | None:
        """Whether it reaches the bar; None where there is none."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.sense == "at least" else self.value <= self.bar

    def plain(self) -> dict[str, Any]:
        """Return it as it is stored."""
        return asdict(self)


def median_of(values: Sequence[float], **more: Any) -> Figure:
    """Return the figure of something that was measured several times."""
    return Figure(value=statistics.median(values), low=min(values), high=max(values), **more)


def in_turn(ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> list[float]:
    """Return ours / theirs of several pairs, so that what drifts in between counts for both.

    Which of the two goes first changes from pair to pair. One pair before is not counted.
    """
    ratios = []
    for number in range(pairs + 1):
        if number % 2:
            mine = ours()
            other = theirs()
        else:
            other = theirs()
            mine = ours()
        ratios.append(mine / other)
    return ratios[1:]


def seconds_of(call: Callable[[], Any]) -> float:
    """Return what a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@dataclass(frozen=True)
class Cost:
    """What a process took: seconds by the clock and of CPU, and its largest memory in MB."""

    seconds: float
    cpu: float
    memory: float
    code: int
    output: str


def process(command: Sequence[Any], *, code: int | None = 0, **environment: Any) -> Cost:
    """Run a command to its end.

    Args:
        command: What to run.
        code: The exit code that it shall end with; None: any.
        environment: What else it finds in its environment; what is None is taken from it.

    Raises:
        SystemExit: If it ends with another code.
    """
    told = {name: value for name, value in environment.items() if value is not None}
    around = {k: v for k, v in os.environ.items() if k not in environment}
    around |= {name: str(value) for name, value in told.items()}
    started = time.perf_counter()
    # its own usage is known only to who waits for it by its id
    child = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=around,
    )
    assert child.stdout is not None
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if code is not None and child.returncode != code:
        told_of = f"{' '.join(map(str, command))} ended with {child.returncode}"
        raise SystemExit(f"{told_of}:\n{output[-3000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(seconds, cpu, usage.ru_maxrss / 1024, child.returncode, output)


def program() -> str:
    """Return the path of the program under test."""
    return str(Path(sys.executable).with_name("medtransfer"))


def run_here(arguments: Sequence[str]) -> str:
    """Run a command of the program in this process, and return its screen.

    Raises:
        SystemExit: If it fails.
    """
    from medtransfer.cli import main as medtransfer

    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        code = medtransfer(list(arguments))
    if code:
        raise SystemExit(f"{' '.join(arguments)} ended with {code}:\n{screen.getvalue()}")
    return screen.getvalue()


def memory() -> float:
    """Return the largest memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    import torch

    from medtransfer.machine import usable_cores
    from medtransfer.tracking import environment

    chosen = asdict(settings_of(composed([])))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": environment.processor(),
        "cores": usable_cores()[0],
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "chosen": {name: choice["value"] for name, choice in chosen.items()},
    }


def composed(overrides: Sequence[str]) -> Any:
    """Return the typed configuration of one trial."""
    from medtransfer.app import App
    from medtransfer.config import TrainConfig

    with App.open("train", None) as app:
        return app.compose(list(overrides)).typed(TrainConfig)


def prepared(overrides: Sequence[str]) -> Any:
    """Return one trial, ready to run."""
    from medtransfer.run import prepare

    return prepare(composed(overrides))


def settings_of(config: Any) -> Any:
    """Return what a trial uses on this machine."""
    from medtransfer.machine import resolve

    return resolve(config.trainer)


def write_weights(folder: Path, name: str = "resnet18", size: int = 224) -> Path:
    """Write a network of random values as a file that brings its statistics."""
    import torch

    from medtransfer.backbones.timm import TimmBackbone
    from medtransfer.backbones.weights import save

    torch.manual_seed(0)
    path = folder / "weights.safetensors"
    backbone = TimmBackbone(name, 3, size)
    save(backbone, path, source="random", trained_on="nothing", licence="none")
    return path

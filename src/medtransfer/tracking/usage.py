"""How busy the machine is while a trial runs, as MLflow's page of system metrics shows it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from medtransfer.tracking.runs import Run

PREFIX = "system/"


@contextmanager
def sampled(run: Run, every: float | None) -> Iterator[None]:
    """Log the use of processors, memory and GPUs inside, in MLflow's own names.

    Args:
        run: The open run.
        every: Seconds between samples; None: there are none.
    """
    if every is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_sample, args=(run, every, over), daemon=True, name="usage")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()  # nothing is told of a run after its end


def _sample(run: Run, every: float, over: threading.Event) -> None:
    if over.wait(every):
        return  # what is over so soon does not even wait for the imports
    monitors = _monitors()
    step = 0
    while True:
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        with suppress(OSError):  # a full disk ends the trial elsewhere, and says so
            run.metrics({f"{PREFIX}{name}": value for name, value in values.items()}, step)
        step += 1
        if over.wait(every):
            return


def _monitors() -> list[Any]:
    import psutil
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

    psutil.cpu_percent()  # the first call has nothing to compare with
    found: list[Any] = [CPUMonitor()]  # type: ignore[no-untyped-call]
    with suppress(ImportError, RuntimeError):  # no NVIDIA GPU
        found.append(GPUMonitor())  # type: ignore[no-untyped-call]
    return found

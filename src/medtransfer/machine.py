"""What `auto` means on this machine, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from medtransfer.config import Budget


@dataclass(frozen=True)
class Choice:
    """A value and the reason for it."""

    value: str | int
    why: str


@dataclass(frozen=True)
class Machine:
    """The settings that depend on the machine and not on the experiment."""

    accelerator: Choice
    precision: Choice
    threads: Choice
    workers: Choice
    layout: Choice = Choice("channels last", "convolutions compute fastest in it")


def resolve(trainer: Budget) -> Machine:
    """Return what a trial uses here; a value that was given stands as it is."""
    import torch

    cores, whose = usable_cores()
    given = "as configured"
    accelerator = trainer.accelerator
    if accelerator == "auto":
        available = torch.cuda.is_available()
        chosen = Choice("gpu" if available else "cpu", "a GPU is there" if available else "no GPU")
    else:
        chosen = Choice(accelerator, given)
    on_gpu = chosen.value == "gpu"
    return Machine(
        accelerator=chosen,
        precision=_precision(on_gpu)
        if trainer.precision == "auto"
        else Choice(trainer.precision, given),
        threads=Choice(cores, whose)
        if trainer.threads == "auto"
        else Choice(trainer.threads, given),
        workers=_workers(on_gpu, cores)
        if trainer.workers == "auto"
        else Choice(trainer.workers, given),
    )


def _precision(on_gpu: bool) -> Choice:
    import torch

    if on_gpu:
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16", "the GPU computes in bf16")
        return Choice("fp32", "the GPU has no bf16")
    capabilities = torch.cpu.get_capabilities()
    for name, label in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX-512")):
        if capabilities.get(name):
            return Choice("bf16", f"the CPU computes in bf16 ({label})")
    return Choice("fp32", "the CPU has no bf16")


def _workers(on_gpu: bool, cores: int) -> Choice:
    if not on_gpu or cores <= 2:
        return Choice(0, "images are decoded once, so the cores serve the network")
    return Choice(min(cores - 1, 8), "the GPU computes while processes load")


def usable_cores() -> tuple[int, str]:
    """Return how many cores this process may use, and who says so.

    Processes of one machine share its cores. Whoever starts them tells each its part: joblib and
    Ray by OMP_NUM_THREADS, Slurm by SLURM_CPUS_PER_TASK.
    """
    from joblib import cpu_count

    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [(mine, f"{mine} cores may be used"), (cpu_count(), "by the quota of its container")]
    for name in ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS"):
        given = os.environ.get(name, "").partition(",")[0].strip()  # OpenMP: one for each level
        if given.isdecimal() and int(given) > 0:
            limits.append((int(given), f"{name} says so"))
    return min(limits, key=lambda limit: limit[0])  # of equal ones the first


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with so many threads inside: torch, and the linear algebra of NumPy and SciPy."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


Precision = Literal["32-true", "bf16-mixed"]


def lightning_precision(precision: str | int) -> Precision:
    """Return a precision in Lightning's words."""
    return "bf16-mixed" if precision == "bf16" else "32-true"

import os

import joblib
import pytest
import torch

from medtransfer import machine
from medtransfer.config import Budget

AUTO = {
    "batch_size": 8,
    "gradient_clip": None,
    "precision": "auto",
    "accelerator": "auto",
    "devices": 1,
    "threads": "auto",
    "workers": "auto",
}


@pytest.fixture
def here(monkeypatch):
    """Return a function that resolves a budget on a machine made up for it."""

    def resolve(*, gpu=False, gpu_bf16=False, cpu=(), cores=4, quota=64, limits=(), **given):
        for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in dict(limits).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(joblib, "cpu_count", lambda: min(cores, quota))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: gpu_bf16)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(cpu, True))
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
        found = machine.resolve(Budget(**AUTO | given))
        assert all(choice.why for choice in vars(found).values())
        return {name: choice.value for name, choice in vars(found).items()}

    return resolve


def test_what_is_given_stands(here):
    given = {"precision": "bf16", "accelerator": "cpu", "threads": 3, "workers": 2}
    assert here(gpu=True, **given).items() >= given.items()


def test_a_gpu_is_taken_where_there_is_one(here):
    assert here(gpu=True)["accelerator"] == "gpu"
    assert here(gpu=False)["accelerator"] == "cpu"


@pytest.mark.parametrize(
    ("surroundings", "precision"),
    [
        ({"gpu": True, "gpu_bf16": True}, "bf16"),
        ({"gpu": True, "gpu_bf16": False, "cpu": ["amx_bf16"]}, "fp32"),
        ({"cpu": ["amx_bf16"]}, "bf16"),
        ({"cpu": ["avx512_bf16"]}, "bf16"),
        ({"cpu": ["avx2"]}, "fp32"),
        ({"gpu": True, "gpu_bf16": True, "accelerator": "cpu"}, "fp32"),
    ],
)
def test_the_precision_is_what_the_chosen_device_computes_in(here, surroundings, precision):
    assert here(**surroundings)["precision"] == precision


def test_threads_are_the_cores_that_may_be_used(here):
    assert here(cores=3)["threads"] == 3


@pytest.mark.parametrize(
    ("surroundings", "threads", "who"),
    [
        ({}, 8, "8 cores may be used"),
        ({"quota": 3}, 3, "quota"),
        ({"limits": {"OMP_NUM_THREADS": "2"}}, 2, "OMP_NUM_THREADS"),
        ({"limits": {"OMP_NUM_THREADS": "2,1"}}, 2, "OMP_NUM_THREADS"),
        ({"limits": {"SLURM_CPUS_PER_TASK": "4"}}, 4, "SLURM_CPUS_PER_TASK"),
        ({"limits": {"SLURM_CPUS_PER_TASK": "4", "OMP_NUM_THREADS": "2"}}, 2, "OMP"),
        ({"limits": {"OMP_NUM_THREADS": "32"}}, 8, "8 cores may be used"),
        ({"limits": {"OMP_NUM_THREADS": "0", "SLURM_CPUS_PER_TASK": "all"}}, 8, "8 cores"),
    ],
)
def test_threads_are_no_more_than_anybody_allows(here, surroundings, threads, who):
    assert here(cores=8, **surroundings)["threads"] == threads
    assert who in machine.resolve(Budget(**AUTO)).threads.why


def test_processes_of_joblib_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "6")
    at_once = joblib.Parallel(2, backend="loky")
    found = at_once(joblib.delayed(machine.usable_cores)() for _ in range(2))
    mine = len(os.sched_getaffinity(0))
    assert [cores for cores, _ in found] == [max(min(mine, 6) // 2, 1)] * 2


def test_workers_load_only_where_a_gpu_leaves_them_time(here):
    assert here(cores=16)["workers"] == 0
    assert here(gpu=True, cores=2)["workers"] == 0
    assert here(gpu=True, cores=4)["workers"] == 3
    assert here(gpu=True, cores=64)["workers"] == 8


def test_precision_in_lightnings_words():
    assert machine.lightning_precision("bf16") == "bf16-mixed"
    assert machine.lightning_precision("fp32") == "32-true"

"""The Ray launcher: `hydra/launcher=ray` runs trials on a Ray cluster, whoever started it."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from medtransfer.errors import ConfigError, LaunchError, MedtransferError
from medtransfer.tracking.runs import Interrupted

ADDRESS = re.compile(r"([^/\s]+):(\d+)")


class RayLauncher(Launcher):
    """Runs each trial as a task of Ray, in a process of some node.

    A trial has the folder and the environment variables of the command that started the study, so
    that relative paths mean the same; the folder must be one that all nodes share.

    Args:
        init: Keywords of `ray.init`.
        remote: Keywords of `ray.remote`: what a trial needs.
        environment: Patterns of the variables that are handed over. They travel as data: Ray's own
            way of setting variables would write their values, passwords too, into its logs.
        patience: Seconds that trials have to end by themselves once the study is interrupted.
    """

    def __init__(
        self,
        init: Mapping[str, Any],
        remote: Mapping[str, Any],
        environment: Sequence[str],
        patience: float,
    ) -> None:
        self.init = _plain(init)
        self.remote = _plain(remote)
        self.environment = list(environment)
        self.patience = patience
        self.config: DictConfig | None = None
        self.task: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """See Hydra's `Launcher.setup`."""
        self.config = config
        self.task = task_function
        self.hydra_context = hydra_context

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """See Hydra's `Launcher.launch`.

        Raises:
            LaunchError: If there is no cluster at the address; or if the process of a trial died,
                after all others have ended.
            MedtransferError: What a trial raises beside its outcome.
        """
        self._connect()
        import ray

        start = cast("Any", ray.remote(trial)).options(**self.remote)
        around = {
            name: value
            for name, value in os.environ.items()
            if any(fnmatchcase(name, pattern) for pattern in self.environment)
        }
        tasks = []
        with _noted_signals() as noted:
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                if noted:
                    break
                job = ray.cloudpickle.dumps(self._job(number, overrides))
                tasks.append(start.remote(str(Path.cwd()), around, job))
            left = tasks
            while left and not noted:
                _, left = ray.wait(left, num_returns=len(left), timeout=1)
            for task in left:
                ray.cancel(task)
            if left:
                ray.wait(left, num_returns=len(left), timeout=self.patience)
        if noted:
            raise Interrupted(noted[0])
        return _results(tasks)

    def _connect(self) -> None:
        # no telemetry, and all that trials say, not what differs alone; read when Ray is loaded
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_DEDUP_LOGS"):
            os.environ.setdefault(name, "0")
        import ray
        from ray.exceptions import RayError

        if ray.is_initialized():
            return
        address = self.init.get("address") or os.environ.get("RAY_ADDRESS", "")
        if found := ADDRESS.fullmatch(address):
            try:  # Ray itself would end this process after a minute, and say nothing that helps
                socket.create_connection((found[1], int(found[2])), timeout=10).close()
            except OSError as error:
                raise LaunchError(
                    f"no Ray cluster answers at {address}: {error}",
                    remedy="hydra.launcher.init.address=HOST:PORT, as `ray start --head` shows it",
                ) from None
        with _noted_signals() as noted:
            try:
                ray.init(**self.init)
            except (OSError, RuntimeError, ValueError, RayError) as error:
                first = str(error).strip().splitlines()[0]
                raise LaunchError(f"Ray cannot be used: {first}") from error
        if noted:
            raise Interrupted(noted[0])

    def _job(self, number: int, overrides: Sequence[str]) -> tuple[Any, ...]:
        """Return what a node needs to run one job; it is composed here, where all files are."""
        assert self.config is not None
        assert self.hydra_context is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = f"{config.hydra.job.name}_{number}"
            config.hydra.job.num = number
        return self.hydra_context, self.task, config, Singleton.get_state()


def _results(tasks: Sequence[Any]) -> list[JobReturn]:
    """Return what tasks that are done have returned."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    results, lost = [], []
    for task in tasks:
        try:
            results.append(cast("JobReturn", ray.get(task)))
        except RayTaskError as error:
            if isinstance(error.cause, MedtransferError):
                raise error.cause from None
            raise
        except RayError as error:  # the process is gone, or its node
            lost.append(" ".join(str(error).split()))
    if lost:
        raise LaunchError(
            f"{len(lost)} of {len(tasks)} trials died with their process: {lost[0]}",
            remedy="a study that has a name goes on by the same command",
        )
    return results


def trial(folder: str, environment: Mapping[str, str], job: bytes) -> JobReturn:
    """Run one job, in a process that Ray has started."""
    try:
        os.chdir(folder)
    except FileNotFoundError:
        raise ConfigError(
            f"node '{socket.gethostname()}' has no folder '{folder}'",
            remedy="start the study in a folder that all nodes share",
        ) from None
    os.environ |= environment  # before anything is loaded that reads them
    from ray import cloudpickle

    context, task, config, state = cloudpickle.loads(job)
    Singleton.set_state(state)
    setup_globals()
    HydraConfig.instance().set_config(config)
    try:
        return run_job(
            task_function=task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=context,
        )
    except Interrupted:
        raise KeyboardInterrupt from None  # as Ray knows that a task was cancelled


def _plain(node: Mapping[str, Any]) -> dict[str, Any]:
    plain = OmegaConf.to_container(cast("Any", node), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Give the numbers of signals that come meanwhile; afterwards they are handled as before.

    Ray sets a handler of its own when it connects, and swallows what a handler raises while it
    waits.
    """
    noted: list[int] = []
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in kept:
        signal.signal(number, lambda signum, _: noted.append(signum))
    try:
        yield noted
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)

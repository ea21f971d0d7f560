"""The Hydra applications: from overrides to typed configurations, with errors of our own."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest import mock

from hydra import version
from hydra._internal import hydra as hydra_main
from hydra._internal.core_plugins import basic_launcher, basic_sweeper
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, run_job
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from hydra_plugins.medtransfer_study.sweeper import StudySweeper, declare, tuners
from medtransfer import guard
from medtransfer.config import Section, check
from medtransfer.errors import ConfigError, LaunchError, MedtransferError
from medtransfer.secrets import redacted_output, watch_environment
from medtransfer.study import Declared, spelled_override
from medtransfer.tuning import AHEAD

C = TypeVar("C", bound=Section)

watch_environment()  # here, since each process that resolves a configuration imports this module

LAUNCHERS = {  # the extra that has each, and a module of it
    "joblib": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
    "ray": ("ray", "ray"),
    "submitit_slurm": ("slurm", "hydra_plugins.hydra_submitit_launcher"),
}
# Launchers of our own config have the names of their plug-ins, whose schemas are to check them.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher/.* is validated against ConfigStore")


def config_dir() -> Path:
    """Return the folder of the config groups: inside of the wheel, or of the repository."""
    package = Path(__file__).parent
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parents[1] / "conf"


@dataclass(frozen=True)
class Plan:
    """What a multirun will do.

    Attributes:
        jobs: The overrides of each final job. A sweeper that decides as it goes, such as Optuna's,
            shows only what all of its jobs share.
        swept: The keys that differ between them, or may in another call of the same study.
        tuning: The overrides of jobs that come before; of an adaptive search only the first ones.
        trials: How many jobs there will be in all; 0 where nobody knows.
    """

    jobs: tuple[tuple[str, ...], ...]
    swept: tuple[str, ...]
    tuning: tuple[tuple[str, ...], ...]
    trials: int


@dataclass(frozen=True)
class Composed:
    """A configuration as Hydra composed it, before it is checked.

    Attributes:
        values: The configuration.
        choices: What was chosen in each group.
        overrides: What was given on the command line, or by the sweep.
        number: The place of the job in its sweep, from 1.
    """

    values: DictConfig
    choices: dict[str, str]
    overrides: tuple[str, ...]
    number: int

    @classmethod
    def of_job(cls, values: DictConfig) -> Composed:
        """Return the configuration of the job that Hydra is running."""
        return cls.of(values, HydraConfig.get())

    @classmethod
    def of(cls, values: DictConfig, hydra: HydraConf | DictConfig) -> Composed:
        """Return a configuration and what Hydra's own node says of it."""
        choices = {str(k): str(v) for k, v in hydra.runtime.choices.items()}
        number = 0 if OmegaConf.is_missing(hydra.job, "num") else hydra.job.num
        return cls(values, choices, tuple(_given(hydra)), int(number) + 1)

    def plain(self) -> dict[str, Any]:
        """Return plain containers, every interpolation resolved.

        Raises:
            ConfigError: If a key needs a value that is not there.
        """
        try:
            plain = OmegaConf.to_container(self.values, resolve=True, throw_on_missing=True)
        except MissingMandatoryValue as error:
            found = re.search(r"full_key: (\S+)", str(error))
            key = found[1] if found else str(error)
            raise ConfigError(f"key '{key}' needs a value", remedy=f"{key}=VALUE") from None
        except OmegaConfBaseException as error:
            raise ConfigError(str(error).splitlines()[0]) from None
        assert isinstance(plain, dict)
        return {str(key): value for key, value in plain.items()}

    def typed(self, model: type[C]) -> C:
        """Return the configuration as its schema has it.

        Raises:
            ConfigError: If a key is unknown, missing, or of the wrong type; or if trust in modules
                stands in a file, where the user may not have seen it.
        """
        config = check(model, self.plain())
        trusted = getattr(config, "trusted_modules", ())
        if trusted and not any(o.startswith("trusted_modules=") for o in self.overrides):
            raise ConfigError(
                f"trusted_modules={list(trusted)} stands in a config file",
                remedy="give it on the command line, where you see what you trust",
            )
        return config


class App:
    """Hydra on one primary config, with the user's own groups beside the shipped ones.

    Args:
        hydra: Hydra itself.
        name: The primary config: `train` or `pretrain`.
    """

    def __init__(self, hydra: Hydra, name: str) -> None:
        self.hydra = hydra
        self.name = name

    @classmethod
    @contextmanager
    def open(cls, name: str, own_config: Path | None) -> Iterator[App]:
        """Give the application, and clear Hydra's global state afterwards.

        Raises:
            ConfigError: If the user's config folder does not exist.
        """
        search_path = create_config_search_path(str(config_dir()))
        if own_config is not None:
            if not own_config.is_dir():
                raise ConfigError(f"config folder '{own_config}' does not exist")
            if (own_config / f"{name}.yaml").exists():
                raise ConfigError(
                    f"'{own_config / name}.yaml' would take the place of the program's own",
                    remedy="write it as experiment/NAME.yaml, and choose experiment=NAME",
                )
            # before ours: a choice that bears a shipped name is the user's
            search_path.prepend(provider="user", path=f"user://{own_config.resolve()}")
        GlobalHydra.instance().clear()
        version.setbase("1.3")
        try:
            yield cls(Hydra.create_main_hydra2(f"medtransfer_{name}", search_path), name)
        finally:
            GlobalHydra.instance().clear()

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Return the configuration that one job with these overrides has.

        Raises:
            ConfigError: If a choice or a key is unknown, or an override cannot be read.
        """
        config = self._compose(overrides, RunMode.RUN)
        hydra = config.hydra
        with open_dict(config):
            del config["hydra"]
        return Composed.of(config, hydra)

    def plan(self, overrides: Sequence[str]) -> Plan:
        """Return the jobs of a multirun, as Hydra's basic sweeper would start them."""
        config = self._compose(overrides, RunMode.MULTIRUN)
        _check_launcher(config.hydra.runtime.choices["hydra/launcher"])
        params = config.hydra.sweeper.get("params") or {}
        guard.require_own([[str(key) for key in params]], overrides)
        given = [*(f"{key}={value}" for key, value in params.items()), *_given(config.hydra)]
        with self._explained(given):
            parser = OverridesParser.create(config_loader=self.hydra.config_loader)
            parsed = parser.parse_overrides(given)
            if config.hydra.sweeper._target_ == f"{StudySweeper.__module__}.StudySweeper":
                return self._study(declare(config, parsed), overrides)
            if config.hydra.sweeper._target_ != f"{BasicSweeper.__module__}.BasicSweeper":
                shared = tuple(str(o.input_line) for o in parsed if not o.is_sweep_override())
                varied = tuple(o.get_key_element() for o in parsed if o.is_sweep_override())
                return Plan((shared,), varied, (), trials=0)
            (jobs,) = BasicSweeper.split_arguments(parsed, None)
            return _planned(jobs)

    def _study(self, declared: Declared, overrides: Sequence[str]) -> Plan:
        guard.require_own(declared.final(), overrides)  # before any job is composed
        found = tuners(declared, lambda job: self.compose(job).values)
        jobs = []
        for place, tuner in enumerate(found):
            # what an adaptive sampler draws next nobody knows, but what its first draw is like
            while (settings := tuner.ask()) is not None:
                jobs.append(declared.tuning(place, len(tuner.asked) - 1, settings))
                if declared.sampler not in AHEAD and len(tuner.asked) == 2:
                    break
        guard.require_own(jobs, overrides)
        plan = _planned(declared.final(), jobs, sum(tuner.trials for tuner in found))
        return replace(plan, swept=tuple(dict.fromkeys([*plan.swept, *declared.axes])))

    def run(self, task: Callable[[DictConfig], Any], overrides: Sequence[str]) -> Any:
        """Run one job and return what the task returns, or raise what it raises."""
        raised: list[Exception] = []

        def job(values: DictConfig) -> Any:
            try:
                return task(values)
            except Exception as error:  # Hydra would print it in its own way
                raised.append(error)

        self._compose(overrides, RunMode.RUN)  # refuses what Hydra itself would run before the job
        with self._explained(overrides):
            spelled = [spelled_override(each) for each in overrides]
            done = self.hydra.run(self.name, job, spelled, with_log_configuration=False)
        if raised:
            raise raised[0]
        return done.return_value

    def multirun(self, task: Callable[[DictConfig], Any], overrides: Sequence[str]) -> list[Any]:
        """Run the jobs of a sweep, checked before, and return what the tasks return."""
        with (
            # Hydra would compose every job once more, only to see whether it can
            mock.patch.object(Sweeper, "validate_batch_is_legal"),
            # and leave a file with the command line as it is, passwords in it
            mock.patch.object(basic_sweeper, "OmegaConf", guard.Unsaved),
            # and keep the configuration of every job until the last has ended
            mock.patch.object(basic_launcher, "run_job", _run_job),
        ):
            spelled = [spelled_override(each) for each in overrides]
            try:
                done = self.hydra.multirun(self.name, task, spelled, with_log_configuration=False)
            except MedtransferError:
                raise
            except Exception as error:  # launchers raise whatever their transports raise
                lines = str(error).strip().splitlines() or [""]
                raise LaunchError(
                    f"a worker was lost: {type(error).__name__}: {lines[0]}",
                    remedy="a study that has a name goes on by the same command",
                ) from error
        return [job.return_value for job in _jobs(done)]

    def show(self, arguments: Sequence[str]) -> None:
        """Print what Hydra's own flags ask for: `--cfg job`, `--info`, `--shell-completion`."""
        asked = get_args_parser().parse_args(list(arguments))
        asked.overrides = [spelled_override(each) for each in asked.overrides]
        with (
            redacted_output(),
            mock.patch.object(hydra_main, "OmegaConf", guard.Redacted),
            self._explained(asked.overrides),
        ):
            if asked.cfg is not None:
                self.hydra.show_cfg(
                    self.name, asked.overrides, asked.cfg, asked.package, asked.resolve
                )
            elif asked.info is not None:
                self.hydra.show_info(asked.info, self.name, asked.overrides)
            elif asked.shell_completion:
                self.hydra.shell_completion(self.name, asked.overrides)
            else:
                raise ConfigError(f"flags {list(arguments)} ask for nothing that is known here")

    def _compose(self, overrides: Sequence[str], mode: RunMode) -> DictConfig:
        with self._explained(overrides):
            spelled = [spelled_override(each) for each in overrides]
            config = self.hydra.compose_config(
                self.name, spelled, run_mode=mode, with_log_configuration=False
            )
        guard.require_harmless(config, config_dir(), self.name)
        return config

    @contextmanager
    def _explained(self, overrides: Sequence[str]) -> Iterator[None]:
        try:
            yield
        except MissingConfigException as error:
            raise self._unknown_choice(error) from None
        except YAMLError as error:
            text = " ".join(str(error).split())
            raise ConfigError(f"a config file is not YAML: {text}") from None
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise self._unusable(error, overrides) from None
        except RecursionError:
            raise ConfigError(
                "the configuration is nested too deeply, or refers to itself",
                remedy="look at its lists and its ${references}",
            ) from None

    def _unknown_choice(self, error: MissingConfigException) -> ConfigError:
        missing = str(error.missing_cfg_file)
        group, _, choice = missing.rpartition("/")
        if not group or not error.options:
            return ConfigError(str(error).splitlines()[0])
        return ConfigError(
            f"{group} '{choice}' is unknown",
            value=choice,
            choices=error.options,
            remedy=f"medtransfer list {group}",
        )

    def _unusable(self, error: Exception, overrides: Sequence[str]) -> ConfigError:
        text = str(error)
        found = re.search(r"Could not override '([^']+)'", text)
        if found is not None:
            key = found[1].lstrip("+~")
            return ConfigError(
                f"key '{key}' is unknown",
                value=key,
                choices=self._keys_beside(key),
                remedy=f"medtransfer {self.name} --cfg job shows every key",
            )
        first, *more = text.strip().splitlines()
        first += f" {more[0]}" if more and first.endswith(":") else ""
        given = next((o for o in overrides if o.partition("=")[0] in text), "")
        where = f" (in '{given}')" if given and given not in first else ""
        return ConfigError(f"{first}{where}", remedy="overrides are written group=choice key=value")

    def _keys_beside(self, key: str) -> list[str]:
        """Return the keys that stand where an unknown one was given."""
        base = self.compose(()).values
        parent, _, _ = key.rpartition(".")
        node = OmegaConf.select(base, parent) if parent else base
        if not isinstance(node, DictConfig):
            return sorted(str(name) for name in base)
        prefix = f"{parent}." if parent else ""
        return sorted(prefix + str(name) for name in node if name != "_target_")


def _check_launcher(choice: str) -> None:
    """Refuse a launcher that is not installed, before anything is opened."""
    extra, module = LAUNCHERS.get(choice, ("", ""))
    if module and find_spec(module) is None:
        raise ConfigError(
            f"hydra/launcher={choice} wants the extra '{extra}': pip install 'medtransfer[{extra}]'"
        )


def _planned(
    jobs: Sequence[Sequence[str]], tuning: Sequence[Sequence[str]] = (), tried: int = 0
) -> Plan:
    values: dict[str, set[str]] = {}
    for job in jobs:
        for override in job:
            key, _, value = override.partition("=")
            values.setdefault(key, set()).add(value)
    swept = tuple(key for key, found in values.items() if len(found) > 1)
    before = tuple(tuple(job) for job in tuning)
    return Plan(tuple(tuple(job) for job in jobs), swept, before, trials=len(jobs) + tried)


def _given(hydra: HydraConf | DictConfig) -> list[str]:
    """Return the overrides as given; those that point to other keys cannot be resolved here."""
    given = OmegaConf.to_container(cast("Any", hydra.overrides.task), resolve=False)
    assert isinstance(given, list)
    return [str(override) for override in given]


def _run_job(*arguments: Any, **named: Any) -> JobReturn:
    done = run_job(*arguments, **named)
    done.cfg = done.hydra_cfg = None
    return done


def _jobs(returned: Any) -> Iterator[JobReturn]:
    """Flatten what a sweeper returns: job returns, in lists of any depth."""
    if isinstance(returned, JobReturn):
        yield returned
    elif isinstance(returned, Sequence):
        for part in returned:
            yield from _jobs(part)

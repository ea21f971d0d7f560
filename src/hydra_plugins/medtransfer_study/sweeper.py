"""The study sweeper: `hydra/sweeper=study` runs what a study declares, by any launcher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from medtransfer.study import jobs

# A plain node: Hydra runs plug-ins before they are in sys.modules, where dataclasses look up names.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="study",
    node={"_target_": "hydra_plugins.medtransfer_study.sweeper.StudySweeper"},
    provider="medtransfer",
)


class StudySweeper(Sweeper):
    """Starts the trials of a study: its seeds x axes x arms."""

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.launcher: Launcher | None = None
        self.hydra_context: HydraContext | None = None

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """See Hydra's `Sweeper.setup`."""
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """See Hydra's `Sweeper.sweep`."""
        assert self.config is not None
        assert self.launcher is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        planned = expand(self.config, parser.parse_overrides(arguments))
        return [self.launcher.launch([list(job) for job in planned], initial_job_idx=0)]


def expand(config: DictConfig, overrides: Iterable[Override]) -> tuple[tuple[str, ...], ...]:
    """Return the overrides of every trial of the study in `config`.

    Args:
        config: The configuration, as the command line composes it.
        overrides: Those of the command line.
    """
    given = []
    for override in overrides:
        key = override.get_key_element()
        if override.is_sweep_override():
            given.append((key, list(override.sweep_string_iterator())))
        else:
            given.append((key, [override.get_value_element_as_str()]))
    study = OmegaConf.to_container(config.study, resolve=True)
    assert isinstance(study, dict)
    return jobs({str(key): value for key, value in study.items()}, given)

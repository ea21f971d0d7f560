"""The study sweeper: `hydra/sweeper=study` runs what a study declares, by any launcher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from medtransfer.study import Declared, Job
from medtransfer.tuning import AHEAD, Tuner

# A plain node: Hydra runs plug-ins before they are in sys.modules, where dataclasses look up names.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="study",
    node={"_target_": "hydra_plugins.medtransfer_study.sweeper.StudySweeper"},
    provider="medtransfer",
)


class StudySweeper(Sweeper):
    """Starts the trials of a study: those that tune each cell, then seeds x axes x arms.

    A trial returns an object with a `score`, more being better, or None.
    """

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
        config, launcher, context = self.config, self.launcher, self.hydra_context
        assert config is not None
        assert launcher is not None
        assert context is not None
        parser = OverridesParser.create(config_loader=context.config_loader)
        declared = declare(config, parser.parse_overrides(arguments))
        done: list[JobReturn] = []

        def launch(jobs: Sequence[Job]) -> Sequence[JobReturn]:
            returned = launcher.launch([list(job) for job in jobs], initial_job_idx=len(done))
            done.extend(returned)
            return returned

        def compose(job: Job) -> DictConfig:
            return context.config_loader.load_sweep_config(config, list(job))

        found = tuners(declared, compose)
        at_once = declared.sampler in AHEAD and config.study.search.pruner is None
        tune(declared, found, launch, at_once=at_once)
        launch(declared.final({place: tuner.best for place, tuner in enumerate(found)}))
        return [done]


def declare(config: DictConfig, overrides: Iterable[Override]) -> Declared:
    """Return what the study in `config` declares.

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
    return Declared.of({str(key): value for key, value in study.items()}, given)


def tuners(declared: Declared, compose: Callable[[Job], DictConfig]) -> list[Tuner]:
    """Return what draws settings for each cell, from its strategy's own search space.

    Args:
        declared: The study.
        compose: Returns the configuration of a job.
    """
    if not declared.trials:
        return []
    found = []
    for cell in declared.cells:
        space = compose(cell.job(str(declared.seed))).strategy.get("search_space") or {}
        free = {str(key): told for key, told in space.items() if key not in declared.fixed}
        plain = OmegaConf.to_container(OmegaConf.create(free), resolve=True)
        assert isinstance(plain, dict)
        found.append(
            Tuner(
                {str(key): told for key, told in plain.items()},
                trials=declared.trials,
                sampler=declared.sampler,
                seed=declared.seed,
            )
        )
    return found


def tune(
    declared: Declared,
    found: Sequence[Tuner],
    launch: Callable[[Sequence[Job]], Sequence[JobReturn]],
    *,
    at_once: bool,
) -> None:
    """Try settings for every cell until the budget is spent.

    Args:
        declared: The study.
        found: A tuner for each cell.
        launch: Runs jobs and returns what they return, in their order.
        at_once: Launch all draws together; else one of each cell at a time, since a draw may
            depend on those before it.
    """
    while True:
        asked: list[tuple[int, int]] = []
        jobs = []
        for place, tuner in enumerate(found):
            while (settings := tuner.ask()) is not None:
                draw = len(tuner.asked) - 1
                asked.append((place, draw))
                jobs.append(declared.tuning(place, draw, settings))
                if not at_once:
                    break
        if not jobs:
            return
        for (place, draw), returned in zip(asked, launch(jobs), strict=True):
            found[place].tell(draw, returned.return_value.score)

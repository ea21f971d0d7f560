"""What a configuration may tell Hydra itself.

Hydra acts on its own part of a configuration, `hydra.*`, before any code of this program runs: it
calls what callbacks, logging, launchers and sweepers name, sets environment variables, makes
folders. A config file may come from anyone; the command line is the user's. So what acts has to be
as it is shipped, or stand on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from medtransfer.errors import ConfigError
from medtransfer.secrets import redacted

ABSENT: dict[str, Any] = {
    "callbacks": {},
    "job_logging.root": None,  # without it Hydra configures no logging
    "hydra_logging.root": None,
    "job.chdir": None,
    "job.env_set": {},
    "job.env_copy": [],
    "mode": None,
}
"""Keys that no file sets, with what Hydra has for them."""

SHIPPED = ("run.dir", "sweep.dir", "sweep.subdir", "output_subdir")
"""Keys that files set only as the shipped ones do."""

NEVER = ("callbacks", "mode")
"""Keys that have no use here, on the command line neither."""

RESOURCES = (
    *("partition", "qos", "account", "constraint", "exclude", "gres", "mem_per_gpu"),
    *("mem_per_cpu", "comment", "name"),
)
"""Words that a launcher hands to a cluster: what is asked for, and nothing that is run."""

GROUPS = ("hydra/launcher", "hydra/sweeper")
"""What is chosen there is a file, which may be anyone's."""

PLUGINS = ("hydra._internal.core_plugins.", "hydra_plugins.")
REMEDY = "leave it out, or give it on the command line, where you see what you trust"


class Unsaved(OmegaConf):
    """OmegaConf for a sweeper that would save its configuration with what is secret in it."""

    @staticmethod
    def save(*_: Any, **__: Any) -> None:
        """Write no file: what a study was asked is an artifact of its run."""


class Redacted(OmegaConf):
    """OmegaConf for what Hydra prints."""

    @staticmethod
    def to_yaml(cfg: Any, *, resolve: bool = False, sort_keys: bool = False) -> str:
        """See `OmegaConf.to_yaml`; a text that is folded over lines has no secret to be found."""
        plain = redacted(OmegaConf.to_container(OmegaConf.create(cfg), resolve=resolve))
        return OmegaConf.to_yaml(OmegaConf.create(plain), sort_keys=sort_keys)


def require_harmless(config: DictConfig, shipped: Path, name: str) -> None:
    """Refuse a composed configuration that tells Hydra to act as nobody at the keyboard said.

    Args:
        config: The configuration with its `hydra` node.
        shipped: Folder of the shipped config groups.
        name: Of the primary config.

    Raises:
        ConfigError: If it does; it names the key.
    """
    told = OmegaConf.to_container(config.hydra, resolve=False)
    assert isinstance(told, dict)
    given = keys_of(str(each) for each in told["overrides"]["hydra"])
    own = OmegaConf.to_container(OmegaConf.load(shipped / f"{name}.yaml"), resolve=False)
    assert isinstance(own, dict)
    expected = {**ABSENT, **{key: _select(own["hydra"], key) for key in SHIPPED}}
    for key, usual in expected.items():
        found = _select(told, key)
        if found != usual and (key in NEVER or not _is_given(f"hydra.{key}", given)):
            what = "names code that Hydra would run before anything is checked"
            raise ConfigError(
                f"hydra.{key} {what if key == 'callbacks' else f'is {found!r} in a config file'}",
                remedy="leave it out" if key in NEVER else REMEDY,
            )
    for group, choice in told["runtime"]["choices"].items():
        if ".." in PurePath(str(choice)).parts:
            raise ConfigError(
                f"{group} '{choice}' leads out of the config folders",
                remedy=f"medtransfer list {group.partition('@')[0]}",
            )
    trusted = _trusted(told, config)
    for group in (each.partition("/")[2] for each in GROUPS):
        _require_plain(group, told[group] or {}, given, trusted, shipped)


def require_own(jobs: Iterable[Sequence[str]], given: Iterable[str]) -> None:
    """Refuse jobs of a sweep that a file gave trust, or words to Hydra itself.

    A file can do so in `study.arms`, `study.axes`, a search space or `hydra.sweeper.params`, whose
    keys become overrides of each job, as if they stood on the command line.

    Args:
        jobs: Overrides of each job, or those keys alone.
        given: Overrides of the command line.

    Raises:
        ConfigError: If there is one.
    """
    allowed = keys_of(given)
    for key in sorted({key for job in jobs for key in keys_of(job)} - allowed):
        if re.split("[./@]", key)[0] in {"trusted_modules", "hydra"}:
            raise ConfigError(
                f"the sweep sets {key}, which stands in a config file",
                remedy=REMEDY,
            )


def keys_of(overrides: Iterable[str]) -> set[str]:
    """Return the keys that overrides set, or the groups that they choose in."""
    parser = OverridesParser.create()
    return {
        parser.parse_override(each).key_or_group if "=" in each else each.strip().lstrip("+~")
        for each in overrides
    }


def _is_given(key: str, given: Iterable[str]) -> bool:
    """Tell whether a key, or one above it, was given; groups are written with slashes."""
    own = [each.replace("/", ".") for each in given if each not in GROUPS]
    return any(f"{key}.".startswith(f"{each}.") or each.startswith(f"{key}.") for each in own)


def _trusted(told: Mapping[Any, Any], config: DictConfig) -> tuple[str, ...]:
    """Return the modules that the command line trusts."""
    if "trusted_modules" not in keys_of(str(each) for each in told["overrides"]["task"]):
        return ()
    return tuple(map(str, config.get("trusted_modules") or ()))


def _require_plain(
    group: str, node: Mapping[str, Any], given: set[str], trusted: Sequence[str], shipped: Path
) -> None:
    """Refuse a launcher or sweeper with texts that could be run, unless they are known.

    A text is known if it is shipped, with this program or with a plug-in; if it stands on the
    command line; or if it asks a cluster for resources, in one line.
    """
    usual: list[Any] | None = None
    for path, value in _leaves(node):
        if _is_plain(path, value, trusted) or _is_given(f"hydra.{group}.{path}", given):
            continue
        if usual is None:
            usual = _usual(group, shipped)
        if not any(str(_select(each, path)) == str(value) for each in usual):  # a schema converts
            raise ConfigError(
                f"hydra.{group}.{path}={value!r} stands in a config file, and could be run",
                remedy=REMEDY,
            )


def _is_plain(path: str, value: Any, trusted: Sequence[str]) -> bool:
    """Tell whether a value of a launcher or sweeper runs nothing but what it may."""
    last = path.rpartition(".")[2]
    if last == "_target_":  # Hydra itself looks for the outer one among its plug-ins alone
        prefixes = [*(PLUGINS if path == last else ()), *(f"{each}." for each in trusted)]
        return str(value).startswith(tuple(prefixes))
    if path.startswith("params."):  # overrides of jobs, see `require_own`
        return True
    if value is None or isinstance(value, bool | int | float):
        return True
    return path in RESOURCES and str(value).isprintable()


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield key and value of what is no mapping; empty ones are none."""
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value not in ([], ""):
            yield f"{prefix}{name}", value


def _usual(group: str, shipped: Path) -> list[Any]:
    """Return the launchers or sweepers that are shipped, with this program or with plug-ins."""
    found: list[Any] = [
        OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        for path in sorted((shipped / "hydra" / group).glob("*.yaml"))
    ]
    store = ConfigStore.instance()
    for name in store.list(f"hydra/{group}"):
        if name.endswith(".yaml"):
            node = store.load(f"hydra/{group}/{name}").node
            found.append(OmegaConf.to_container(OmegaConf.create(node), resolve=False))
    return found


def _select(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values

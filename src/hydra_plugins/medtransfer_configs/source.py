"""Config files of users: `user://FOLDER` in a search path is `file://FOLDER`, with limits.

A short YAML file can stand for more values than memory holds, by aliases of aliases, and one that
is nested deeply enough exhausts the interpreter's stack. Both are refused before they are built.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult

from medtransfer.errors import ConfigError

MOST_BYTES = 2**20
MOST_VALUES = 100_000
DEEPEST = 64


class UserConfigSource(FileConfigSource):
    """Reads config files from a folder that came from outside."""

    @staticmethod
    def scheme() -> str:
        """See Hydra's `ConfigSource.scheme`."""
        return "user"

    def load_config(self, config_path: str) -> ConfigResult:
        """See Hydra's `ConfigSource.load_config`.

        Raises:
            ConfigError: If the file leads out of the folder, or holds more than a configuration.
        """
        path = Path(self.path, self._normalize_file_name(config_path))
        if ".." in path.parts:
            raise ConfigError(
                f"config file '{config_path}' leads out of '{self.path}'",
                remedy="name what lies in the folder of --config-dir",
            )
        if path.is_file():
            _require_moderate(path)
        return super().load_config(config_path)


def _require_moderate(path: Path) -> None:
    """Refuse what is too large or too deep; what is no YAML is told by who reads it."""
    problem = ""
    if path.stat().st_size > MOST_BYTES:
        problem = f"is larger than {MOST_BYTES} bytes"
    else:
        try:
            values, depth = measure(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, yaml.YAMLError):
            return
        if depth > DEEPEST:
            problem = f"is nested more than {DEEPEST} levels deep"
        elif values > MOST_VALUES:
            problem = f"stands for more than {MOST_VALUES} values, by aliases"
    if problem:
        raise ConfigError(
            f"config file '{path}' {problem}", remedy="no configuration needs that: look at it"
        )


def measure(text: str) -> tuple[int, int]:
    """Return how many values a YAML text stands for, aliases followed, and how deep it is nested.

    Nothing is built: the text is only gone through, and that ends where it is too deep.
    """
    inside: list[tuple[str | None, int]] = [(None, 0)]  # anchor and values of what is open
    anchored: dict[str, int] = {}
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            inside.append((event.anchor, 1))
            depth = max(depth, len(inside) - 1)
            if depth > DEEPEST:
                break
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = inside.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, anchored.get(str(event.anchor), 1)
        else:
            continue
        if anchor is not None:
            anchored[anchor] = size
        inside[-1] = (inside[-1][0], inside[-1][1] + size)
    return inside[0][1], depth

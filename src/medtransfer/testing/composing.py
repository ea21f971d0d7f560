"""A choice as the command line would have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medtransfer.app import App, Composed


def composed(
    overrides: Sequence[str], config_dir: Path | str | None, trusted: Sequence[str]
) -> Composed:
    """Return the configuration of a trial with these overrides.

    Args:
        overrides: As on the command line.
        config_dir: The folder with config groups of one's own.
        trusted: Modules that a `_target_` may name.

    Raises:
        ConfigError: If a choice or a key is unknown, or an override cannot be read.
    """
    with App.open("train", own(config_dir)) as app:
        return app.compose([*overrides, *trust(trusted)])


def own(config_dir: Path | str | None) -> Path | None:
    """Return the folder of --config-dir as the program takes it."""
    return None if config_dir is None else Path(config_dir)


def trust(modules: Sequence[str]) -> list[str]:
    """Return the override that trusts modules; none for none."""
    return [f"trusted_modules=[{','.join(modules)}]"] if modules else []

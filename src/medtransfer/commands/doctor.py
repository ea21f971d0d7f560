"""What this machine, the store, the caches and the hub offer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from medtransfer import console, machine
from medtransfer.config import TrainConfig
from medtransfer.errors import StoreError
from medtransfer.secrets import redact
from medtransfer.tracking import environment
from medtransfer.tracking.store import open_client, resolve_uri


def show(config: TrainConfig, *, as_json: bool) -> None:
    """Print the findings."""
    found = findings(config)
    if as_json:
        print(redact(json.dumps(found, indent=2)))  # noqa: T201
        return
    table = Table(box=SIMPLE_HEAD, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in found.items():
        if isinstance(value, dict):
            text = "\n".join(f"{k} {v}" for k, v in value.items())
        else:
            text = str(value)
        table.add_row(name, escape(text))
    console.out.print(table)


def findings(config: TrainConfig) -> dict[str, Any]:
    """Return everything that a trial would find here, each with its reason."""
    settings = machine.resolve(config.trainer)
    around = environment.describe()
    return {
        "versions": {"python": around["python"], **around["packages"]},
        "platform": around["platform"],
        "processor": around["processor"],
        "accelerator": _reasoned(settings.accelerator),
        "precision": _reasoned(settings.precision),
        "layout": _reasoned(settings.layout),
        "threads": _reasoned(settings.threads),
        "workers": _reasoned(settings.workers),
        "data": _folder(config.paths.data),
        "cache": _folder(config.paths.cache),
        "weights": _folder(config.paths.output / "weights"),
        "store": _store(config),
        "hub": _hub(),
    }


def _reasoned(choice: machine.Choice) -> str:
    return f"{choice.value} ({choice.why})"


def _folder(path: Path) -> str:
    where = str(path.absolute())
    if not path.is_dir():
        return f"{where} (not there yet)"
    return where if os.access(where, os.W_OK) else f"{where} (read-only)"


def _store(config: TrainConfig) -> str:
    uri = resolve_uri(config.tracking.uri, config.paths.output)
    try:
        open_client(uri)
    except StoreError as error:
        return f"{redact(uri)} ({error.problem.partition(': ')[2] or 'not there yet'})"
    return redact(uri)


def _hub() -> str:
    from huggingface_hub import constants

    from medtransfer.backbones.hub import unreachable

    return f"{unreachable() or constants.ENDPOINT + ' answers'}; cache {constants.HF_HUB_CACHE}"

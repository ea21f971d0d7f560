"""`medtransfer <command>`: nothing heavy is imported until a command needs it."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medtransfer import __version__
from medtransfer.errors import ConfigError, MedtransferError
from medtransfer.quiet import show_notes
from medtransfer.secrets import printable, redact
from medtransfer.signals import obey_signals
from medtransfer.tracking.runs import Interrupted

if TYPE_CHECKING:
    from medtransfer.config import TrainConfig

HYDRA_FLAGS = "--cfg job prints the configuration; --info and --shell-completion are Hydra's too."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program's name; None takes the process's.

    Returns:
        0 done, 1 a trial failed, 2 the user's mistake, 3 leakage refused, 130 or 143 interrupted.
    """
    obey_signals()
    with warnings.catch_warnings():
        show_notes()
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments, rest = _parser().parse_known_args(argv)
        command: Callable[[argparse.Namespace, list[str]], int] = arguments.command
        return command(arguments, rest)
    except MedtransferError as error:
        print(f"error: {printable(redact(str(error)))}", file=sys.stderr)
        return error.exit_code
    except Interrupted as interrupted:
        print("interrupted", file=sys.stderr)
        return 128 + interrupted.signum


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="medtransfer",
        description="Feature extraction or fine-tuning? Compared on your own medical images.",
    )
    parser.add_argument("--version", action="version", version=f"medtransfer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: Callable[..., int], text: str, **extra: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, **extra)  # type: ignore[arg-type]
        command.set_defaults(command=run)
        command.add_argument(
            "--config-dir", type=Path, metavar="DIR", help="a folder with config groups of your own"
        )
        return command

    for name, text, many in (
        ("train", "train one trial, or with -m a sweep that ends with the answer", True),
        ("pretrain", "train a backbone on other images and keep its weights", True),
        ("extract", "write the features of a frozen backbone to one Parquet file", False),
        ("rank", "estimate which backbones and weights, given as a,b,c, suit a dataset", False),
        ("audit", "look for leaks between splits, duplicates and shortcuts in a dataset", False),
    ):
        flags = f"{'[-m] ' if many else ''}[--config-dir DIR]"
        command = add(
            name,
            _hydra_command(name),
            text,
            usage=f"medtransfer {name} {flags} [group=choice ...] [key=value ...]",
            epilog=HYDRA_FLAGS,
        )
        if many:
            command.add_argument(
                "-m", "--multirun", action="store_true", help="sweep over values given as a,b,c"
            )

    command = add("list", _list, "show the choices of a config group, your own included")
    command.add_argument("group", nargs="?", help="the group; none: every group")
    command.add_argument("--json", action="store_true", help="for programs")

    command = add("doctor", _doctor, "show what this machine, the store and the hub offer")
    command.add_argument("--json", action="store_true", help="for programs")

    command = add("report", _report, "repeat the answer of a study from the store alone")
    command.add_argument("study", help="a study's id or name, or the id of a run")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    command.add_argument(
        "--rebuild", action="store_true", help="read all results from the store again"
    )

    add("sync", _sync, "tell the store what it could not be told while it did not answer")

    command = add("ui", _ui, "open MLflow's pages on the store, on this machine only")
    command.add_argument("--port", type=int, default=5000, help="default: 5000")
    return parser


def _hydra_command(name: str) -> Callable[[argparse.Namespace, list[str]], int]:
    def run(arguments: argparse.Namespace, rest: list[str]) -> int:
        from medtransfer.app import App

        with App.open(name, arguments.config_dir) as app:
            if any(item.startswith("-") for item in rest):
                app.show(rest)
                return 0
            if name == "pretrain":
                from medtransfer.commands.pretrain import pretrain, pretrain_many

                return (pretrain_many if arguments.multirun else pretrain)(app, rest)
            if name == "extract":
                from medtransfer.commands.extract import extract

                return extract(app, rest)
            if name == "rank":
                from medtransfer.commands.rank import rank

                return rank(app, rest)
            if name == "audit":
                from medtransfer.commands.audit import audit

                return audit(app, rest)
            from medtransfer.commands.train import train, train_many

            return (train_many if arguments.multirun else train)(app, rest)

    return run


def _list(arguments: argparse.Namespace, rest: list[str]) -> int:
    from medtransfer.app import App
    from medtransfer.commands import catalog

    if rest:
        raise ConfigError(f"'{rest[0]}' is not an argument of list")
    with App.open("train", arguments.config_dir) as app:
        catalog.show(app, arguments.group, as_json=arguments.json)
    return 0


def _doctor(arguments: argparse.Namespace, rest: list[str]) -> int:
    from medtransfer.commands import doctor

    doctor.show(_config(arguments, rest), as_json=arguments.json)
    return 0


def _report(arguments: argparse.Namespace, rest: list[str]) -> int:
    from functools import partial

    from medtransfer.commands.report import answer, rebuild
    from medtransfer.tracking.ledger import ledger_path
    from medtransfer.tracking.store import open_client, resolve_uri

    config = _config(arguments, rest)
    uri = resolve_uri(config.tracking.uri, config.paths.output)
    client, ledger = open_client(uri), partial(ledger_path, uri, config.paths.output)
    if arguments.rebuild:
        rebuild(client, arguments.study, ledger)
    answer(client, arguments.study, arguments.out, ledger)
    return 0


def _sync(arguments: argparse.Namespace, rest: list[str]) -> int:
    from medtransfer.commands.sync import sync

    sync(_config(arguments, rest))
    return 0


def _ui(arguments: argparse.Namespace, rest: list[str]) -> int:
    from medtransfer.commands.ui import serve

    serve(_uri(arguments, rest), arguments.port)
    return 0


def _config(arguments: argparse.Namespace, overrides: list[str]) -> TrainConfig:
    """Return the configuration that a trial with the same overrides would have."""
    from medtransfer.app import App
    from medtransfer.config import TrainConfig

    with App.open("train", arguments.config_dir) as app:
        return app.compose(overrides).typed(TrainConfig)


def _uri(arguments: argparse.Namespace, overrides: list[str]) -> str:
    from medtransfer.tracking.store import resolve_uri

    config = _config(arguments, overrides)
    return resolve_uri(config.tracking.uri, config.paths.output)

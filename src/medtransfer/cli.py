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

RUN = "id of a trial; or id or name of a study, for its best trial on validation data"
HYDRA_FLAGS = "--cfg job prints the configuration; --info is Hydra's too."
EXIT_CODES = "exit codes: 0 done, 1 a trial failed, 2 your mistake, 3 leakage, 130/143 interrupted"


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
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"medtransfer {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(
        name: str, run: Callable[..., int], text: str, app: str | None = "train", **extra: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, **extra)  # type: ignore[arg-type]
        command.set_defaults(command=run, app=app)  # overrides are of its configuration
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
            name,
            usage=f"medtransfer {name} {flags} [group=choice ...] [key=value ...]",
            epilog=HYDRA_FLAGS,
        )
        if many:
            command.add_argument(
                "-m", "--multirun", action="store_true", help="sweep over values given as a,b,c"
            )

    command = add("list", _list, "show the choices of a config group, your own included", None)
    command.add_argument("group", nargs="?", help="the group; none: every group")
    command.add_argument("--search", metavar="TEXT", help="those with these words, timm's too")
    command.add_argument("--json", action="store_true", help="for programs")

    command = add("doctor", _doctor, "show what this machine, the store and the hub offer")
    command.add_argument("--json", action="store_true", help="for programs")

    command = add("report", _report, "repeat the answer of a study from the store alone")
    command.add_argument("study", help="a study's id or name, or the id of a run")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    command.add_argument(
        "--rebuild", action="store_true", help="read all results from the store again"
    )

    for name, run, text in (
        ("predict", _predict, "judge new images with a trained model"),
        ("explain", _explain, "show where in new images a trained model sees what it says"),
    ):
        command = add(name, run, text)
        command.add_argument("run", help=RUN)
        command.add_argument("paths", nargs="+", metavar="PATH", help="images, or folders of them")
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
        command.add_argument(
            "--skip-unreadable", action="store_true", help="leave out images that cannot be read"
        )
        if name == "explain":
            command.add_argument("--class", dest="target", help="default: what is predicted")

    command = add("export", _export, "write a trained model to a file that other programs run")
    command.add_argument("run", help=RUN)
    command.add_argument("--format", choices=("onnx", "torch_export", "mlflow"), required=True)
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="of mlflow a new folder"
    )

    command = add("new", _new, "write a choice of your own that works, for you to change", None)
    command.add_argument("kind", choices=("strategy", "dataset", "study"))
    command.add_argument("name", metavar="NAME", help="of the choice, and of its module")
    command.add_argument("--dir", type=Path, required=True, metavar="DIR", help="your own folder")

    add("sync", _sync, "tell the store what it could not be told while it did not answer")

    command = add("ui", _ui, "open MLflow's pages on the store, on this machine only")
    command.add_argument("--port", type=int, default=5000, help="default: 5000")

    use = 'for bash: eval "$(medtransfer completion bash)"'
    command = add("completion", _completion, "print what makes TAB complete", None, epilog=use)
    command.add_argument("shell", nargs="?", choices=("bash", "zsh", "fish"))
    command.add_argument("--query", metavar="LINE", help=argparse.SUPPRESS)  # for the shell
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

    _refuse(rest, "list")
    with App.open("train", arguments.config_dir) as app:
        catalog.show(app, arguments.group, search=arguments.search, as_json=arguments.json)
    return 0


def _new(arguments: argparse.Namespace, rest: list[str]) -> int:
    from medtransfer.app import App
    from medtransfer.commands.new import new

    _refuse(rest, "new")
    with App.open("train", arguments.config_dir) as app:
        new(app, arguments.kind, arguments.name, arguments.dir)
    return 0


def _completion(arguments: argparse.Namespace, rest: list[str]) -> int:
    from medtransfer.commands import completion

    _refuse(rest, "completion")
    if arguments.query is not None:
        for found in completion.answer(_parser(), arguments.query):
            print(found)
        return 0
    if arguments.shell is None:
        raise ConfigError("which shell is it?", choices=completion.SCRIPTS)
    print(completion.SCRIPTS[arguments.shell], end="")
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


def _predict(arguments: argparse.Namespace, rest: list[str]) -> int:
    from medtransfer.commands.deploy import predict

    paths, overrides = _apart(arguments.paths, rest)
    config = _config(arguments, overrides)
    predict(config, arguments.run, paths, arguments.out, skip=arguments.skip_unreadable)
    return 0


def _explain(arguments: argparse.Namespace, rest: list[str]) -> int:
    from medtransfer.commands.deploy import explain

    paths, overrides = _apart(arguments.paths, rest)
    config = _config(arguments, overrides)
    skip, target = arguments.skip_unreadable, arguments.target
    explain(config, arguments.run, paths, arguments.out, target=target, skip=skip)
    return 0


def _export(arguments: argparse.Namespace, rest: list[str]) -> int:
    from medtransfer.commands.deploy import export

    export(_config(arguments, rest), arguments.run, arguments.format, arguments.out)
    return 0


def _apart(given: Sequence[str], rest: list[str]) -> tuple[list[Path], list[str]]:
    """Return the paths and the overrides among arguments; what exists is a path."""
    overrides = [each for each in given if "=" in each and not Path(each).exists()]
    return [Path(each) for each in given if each not in overrides], [*overrides, *rest]


def _refuse(rest: list[str], command: str) -> None:
    """Refuse arguments of a command that takes no overrides."""
    if rest:
        raise ConfigError(f"'{rest[0]}' is not an argument of {command}")


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

"""A trained model is taken into use: it judges new images, explains itself, and is exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medtransfer import console
from medtransfer.config import TrainConfig
from medtransfer.tracking.store import open_client, resolve_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from medtransfer.deploy.exporting import Format
    from medtransfer.deploy.trained import Trained


def predict(config: TrainConfig, run: str, paths: Sequence[Path], out: Path, *, skip: bool) -> None:
    """Write what a model says of images, and say where it is.

    Raises:
        MedtransferError: If there is no such model, an image cannot be read, or the folder not be
            written.
    """
    from medtransfer.deploy import predicting

    trained = _opened(config, run)[1]
    written = predicting.predict(trained, paths, out, skip=skip)
    unit = "exams" if trained.spec.annotation == "exam" else "images"
    console.say(f"{written.cases} {unit} judged by {trained.name} ({trained.run_id})")
    for problem in written.skipped:
        console.say(f"left out: {problem}")
    for name in written.files:
        console.say(f"  {out / name}")


def explain(
    config: TrainConfig,
    run: str,
    paths: Sequence[Path],
    out: Path,
    *,
    target: str | None,
    skip: bool,
) -> None:
    """Write heat maps of images, and say where they are.

    Raises:
        MedtransferError: As `predict`, or if the model has no heat maps or no such class.
    """
    from medtransfer.deploy import explaining

    trained = _opened(config, run)[1]
    count = explaining.explain(trained, paths, out, target=target, skip=skip)
    console.say(f"{count} pictures and explanations.json in {out}")


def export(config: TrainConfig, run: str, form: Format, out: Path) -> None:
    """Write a model to a file, and say how well the two agree.

    Raises:
        MedtransferError: If there is no such model, or it cannot be written so.
    """
    from medtransfer.deploy import exporting
    from medtransfer.deploy.card import write_card

    client, trained = _opened(config, run)
    found = exporting.export(trained, form, out, write_card(client, trained))
    console.say(f"model:     {out}")
    console.say(
        f"card:      {out / exporting.CARD if form == 'mlflow' else out.with_suffix('.md')}"
    )
    console.say(f"agreement: outputs differ from the trial's by {found:.1g} at most")
    if form == "mlflow":
        console.say(f"serve:     mlflow models serve -m {out} --env-manager local")


def _opened(config: TrainConfig, run: str) -> tuple[MlflowClient, Trained]:
    from medtransfer.deploy.trained import open_trained

    output = config.paths.output
    client = open_client(resolve_uri(config.tracking.uri, output))
    return client, open_trained(client, run, output, trusted=config.trusted_modules)

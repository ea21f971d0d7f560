"""The features of a frozen backbone, in one Parquet file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from medtransfer import __version__, console
from medtransfer.app import App, Composed
from medtransfer.commands.trials import log_config, open_configured
from medtransfer.config import ExtractConfig
from medtransfer.console import Reporter
from medtransfer.errors import StoreError
from medtransfer.tracking.runs import open_run

if TYPE_CHECKING:
    import pyarrow as pa
    from omegaconf import DictConfig

    from medtransfer.extraction import Extraction
    from medtransfer.features import Split

ROWS = 2048  # in one row group: no more than these are in memory at once


@dataclass(frozen=True)
class _Done:
    path: Path
    rows: dict[Split, int]
    columns: tuple[str, ...]
    size: int


def extract(app: App, overrides: Sequence[str]) -> int:
    """Write the features of every split, and say where they are.

    Returns:
        The exit code.
    """
    done: _Done = app.run(_extract, overrides)
    counts = ", ".join(f"{count} {split}" for split, count in done.rows.items())
    console.say(f"features: {done.path}")
    console.say(f"rows:     {sum(done.rows.values())} ({counts})")
    console.say(f"columns:  {', '.join(done.columns)} ({done.size} values each)")
    console.say(f"read:     pandas.read_parquet({str(done.path)!r})")
    return 0


def _extract(values: DictConfig) -> _Done:
    composed = Composed.of_job(values)
    config = composed.typed(ExtractConfig)
    from medtransfer.extraction import open_data, prepare

    data = open_data(config, whole=True)
    progress = Progress(sum(len(getattr(data.division, split)) for split in config.splits))
    prepared = prepare(config, data, progress)
    choices, backbone = composed.choices, prepared.backbone.name
    parts = (choices["dataset"], backbone, choices["weights"])
    path = config.out or config.paths.output / "features" / f"{'-'.join(parts)}.parquet"
    if path.is_dir():
        raise StoreError(f"'{path}' is a folder", remedy=f"out={path}/FILE.parquet")
    tags = {
        "phase": "extract",
        "backbone": backbone,
        "weights": choices["weights"],
        "dataset": choices["dataset"],
        "seed": config.seed,
        "data_hash": data.spec.data_hash,
        "split_hash": data.spec.split_hash,
    }
    label = "extract " + "/".join(parts)
    with (
        claimed(path.parent),
        Reporter(1) as reporter,
        open_run(open_configured(config), label, tags) as run,
    ):
        log_config(run, composed)
        reporter.start(label, unit="images")
        header = _header(prepared)
        rows, schema = _write(prepared, config.splits, path, header)
        run.json({**header, "keys": prepared.provenance.detail.get("keys")}, "features.json")
        run.metrics({f"rows/{split}": count for split, count in rows.items()})
        run.params({"features_file": str(path)})
        reporter.finish("finished")
    return _Done(path, rows, tuple(schema.names), prepared.backbone.embedding_size)


class Progress:
    """Shows how many of all images went through.

    Args:
        total: All images.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def __call__(self, count: int) -> None:
        """Note that so many more went through."""
        self.done = min(self.done + count, self.total)
        if Reporter.active is not None:
            Reporter.active.advance(self.done, self.total, {})


def _header(prepared: Extraction) -> dict[str, str]:
    """Return what the file says of itself."""
    known, spec, extractor = prepared.provenance, prepared.data.spec, prepared.extractor
    return {
        "version": __version__,
        "backbone": prepared.backbone.name,
        "weights.source": known.source,
        "weights.trained_on": known.trained_on,
        "weights.sha256": known.sha256,
        "weights.licence": known.licence,
        "batchnorm": prepared.batchnorm,
        "precision": extractor.precision,
        "kept_as": extractor.dtype,
        "image_size": str(spec.image_size),
        "channels": str(spec.channels),
        "data_hash": spec.data_hash,
        "split_hash": spec.split_hash,
    }


def _write(
    prepared: Extraction, splits: Sequence[Split], path: Path, header: dict[str, str]
) -> tuple[dict[Split, int], pa.Schema]:
    """Write the file beside its place, row group by row group, and put it there when it is whole.

    Returns:
        The number of rows of each split, and the schema.

    Raises:
        StoreError: If it cannot be written; nothing of it is left then.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = prepared.backbone.embedding_size
    named: list[tuple[str, Any]] = [
        *((name, pa.string()) for name in ("sample_id", "group_id", "exam_id", "split")),
        ("target", pa.int64()),
        ("class_name", pa.string()),
        ("embedding", pa.list_(pa.float32(), size)),
    ]
    schema = pa.schema(named, metadata={f"medtransfer.{k}": v for k, v in header.items()})
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    rows = {}
    try:
        with writing(path), pq.ParquetWriter(partial, schema) as writer:
            for split in splits:
                rows[split] = 0
                for batch in _batches(prepared, split, schema):
                    writer.write_batch(batch, row_group_size=ROWS)
                    rows[split] += batch.num_rows
        with writing(path):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return rows, schema


def _batches(prepared: Extraction, split: Split, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a split in its own order."""
    import numpy as np
    import pyarrow as pa

    from medtransfer.features import EMBEDDING

    features = prepared.features(split)
    all_of_it = getattr(prepared.data.division, split)
    for start in range(0, len(all_of_it), ROWS):
        indices = all_of_it[start : start + ROWS]
        records = [prepared.data.decoded.records[i] for i in indices]
        values = features.read(indices, np.zeros_like(indices))[EMBEDDING].numpy()
        names = prepared.data.spec.class_names
        columns = [
            [record.sample_id for record in records],
            [record.group_id for record in records],
            [record.exam_id for record in records],
            [split] * len(records),
            [record.target for record in records],
            [names[record.target] for record in records],
        ]
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, schema, strict=False)
        ]
        embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        yield pa.record_batch([*arrays, embedding], schema=schema)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make sure, before anything is computed, that files can be written to a folder.

    What had to be made for it and is empty at the end is removed.

    Raises:
        StoreError: If it cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    try:
        yield
    finally:
        with suppress(OSError):  # the first that is not empty
            for path in made:
                path.rmdir()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in the program's own words that a path cannot be written.

    Raises:
        StoreError: Instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"'{path}' cannot be written: {error.strerror or error}",
            remedy="make it writable, free some space, or give another place as out=",
        ) from None

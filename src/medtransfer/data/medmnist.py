"""The 2D sets of MedMNIST (Yang et al. 2023, Scientific Data 10:41): one archive each."""

from __future__ import annotations

import csv
import hashlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import IO, Any, ClassVar, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from medtransfer.data.base import Dataset, Image, Record
from medtransfer.data.npz import header, stream
from medtransfer.data.splits import SPLITS
from medtransfer.errors import DataError

REMEDY = "get the file anew: remove it and set dataset.download=true, or name one in dataset.file"

PAPERS = {  # that presets follow; they know the same sets
    "medmnist_v2": "Yang et al. 2023, Scientific Data 10:41, table 3; 224 px: scaled up from 28",
    "doerrich": "Doerrich et al. 2025; 28 px: with a margin up to 224",
}


@dataclass(frozen=True, kw_only=True)
class MedMNIST(Dataset):
    """`<name>.npz` with `train_images` (n, size, size[, 3]) uint8, `train_labels` (n, k) and so on.

    Names of classes, counts and checksums are those of the `medmnist` package. Patients are not
    known; the official division is in the lists.

    Attributes:
        name: Of the set, such as `pneumoniamnist`.
        size: Height and width of its images in pixels, as they lie in the file.
        file: The archive; None for the official name below `root`.
        root: Where downloads lie.
        download: Whether a missing archive is downloaded.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"class"})

    name: str
    size: Literal[28, 64, 128, 224]
    file: Path | None
    root: Path
    download: bool

    def __post_init__(self) -> None:
        if self._several:
            object.__setattr__(self, "provides", frozenset({"labels"}))

    @property
    def identity(self) -> str:
        """See `Dataset.identity`: the set, in whatever size; any other file is another."""
        return f"{type(self).__qualname__} {self.name if self.official else self._path.resolve()}"

    @property
    def official(self) -> bool:
        """Whether the archive is the published one, to the bit."""
        return self._md5 == self._expected

    def records(self) -> tuple[tuple[str, ...], Sequence[Record]]:
        """See `Dataset.records`; ids are those of the official split with a number, from 0."""
        records = []
        for side, labels in self._labels.items():
            for i, row in enumerate(labels.tolist()):
                name = f"{side}/{i:05d}"
                target, several = (0, tuple(row)) if self._several else (row[0], ())
                records.append(Record(name, name, name, target, several))
        return ("image",) if self._several else self._names, records

    def labels(self) -> tuple[str, ...]:
        """See `Dataset.labels`."""
        return self._names if self._several else ()

    def read(self, record: Record) -> Image:
        """See `Dataset.read`."""
        side, _, number = record.sample_id.partition("/")
        try:
            return stream(self._path, self._stamp, f"{side}_images")[int(number)]
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"image '{record.sample_id}' of '{self._path}' cannot be unpacked: {error}",
                remedy=REMEDY,
            ) from None

    def fingerprint(self, records: Sequence[Record]) -> str:
        """Return path, size and time of change of the archive."""
        return f"{self._path.resolve()} {self._stamp} {self.name} {self.size} {len(records)}"

    def lists(self) -> Mapping[str, Sequence[str]]:
        """See `Dataset.lists`: the official split."""
        return {s: [f"{s}/{i:05d}" for i in range(len(n))] for s, n in self._labels.items()}

    def notes(self) -> tuple[str, ...]:
        """See `Dataset.notes`: what was published, or that the file is another one."""
        notes = []
        if self.official:
            notes.append(
                f"published for {self.name}, under the protocol of the preset that is named:"
                f" {'; '.join(self._published())}"
            )
        if not self.official:
            told = [
                f"{len(self._labels[side])} and not {count} images in {side}"
                for side, count in self._info["n_samples"].items()
                if len(self._labels[side]) != count
            ]
            notes.append(
                f"'{self._path}' is not the published {self.name}: its MD5 is {self._md5} and not"
                f" {self._expected}{''.join(f', it has {text}' for text in told)}; comparisons with"
                " published figures are withheld"
            )
        if self._info["task"].startswith("ordinal"):
            notes.append(
                f"the classes of {self.name} are grades in order; with task.ordinal=true they are"
                " scored as such"
            )
        return tuple(notes)

    def _published(self) -> list[str]:
        """Return what was published for the set, by the preset that follows the protocol."""
        text = Path(__file__).with_name("medmnist_published.csv").read_text(encoding="utf-8")
        known = [row for row in csv.DictReader(text.splitlines()) if row["dataset"] == self.name]
        return [
            f"experiment={protocol} ({paper}):"
            f" {', '.join(_figure(row) for row in known if row['protocol'] == protocol)}"
            for protocol, paper in PAPERS.items()
        ]

    @cached_property
    def _info(self) -> Mapping[str, Any]:
        # imports torch and scikit-learn, and makes a folder ~/.medmnist
        from medmnist.info import INFO

        known = [name for name in INFO if not name.endswith("3d")]
        if self.name not in known:
            raise DataError(
                f"'{self.name}' is no 2D set of MedMNIST",
                value=self.name,
                choices=known,
                remedy="name one in dataset.name",
            )
        return dict(INFO[self.name])

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(self._info["label"].values())

    @property
    def _several(self) -> bool:
        return str(self._info["task"]).startswith("multi-label")

    @property
    def _flag(self) -> str:
        return "" if self.size == 28 else f"_{self.size}"

    @property
    def _expected(self) -> str:
        return str(self._info[f"MD5{self._flag}"])

    @property
    def _md5(self) -> str:
        return _md5_of(self._path, self._stamp)

    @cached_property
    def _stamp(self) -> tuple[int, int]:
        stat = self._path.stat()
        return stat.st_size, stat.st_mtime_ns

    @cached_property
    def _path(self) -> Path:
        path = self.file or self.root / f"{self.name}{self._flag}.npz"
        if self.file is None and self.download and not path.exists():
            self._fetch(path)
        if not path.is_file():
            raise DataError(
                f"file '{path}' does not exist",
                remedy="set dataset.download=true, or name a file that you have in dataset.file",
            )
        return path

    def _fetch(self, path: Path) -> None:
        """Download the archive through the package; it appears whole."""
        from medmnist.dataset import MedMNIST as Package

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                FileLock(path.parent / f".{path.name}.lock"),
                TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder,
            ):
                if path.exists():  # another trial was faster
                    return
                # an object of the package would load all images into memory at once
                bare: Any = SimpleNamespace(info=self._info, root=folder, size_flag=self._flag)
                Package.download(bare)  # type: ignore[no-untyped-call]
                Path(folder, path.name).replace(path)
        except (OSError, RuntimeError) as error:
            cause = error.__context__ or error
            if not isinstance(cause, Exception):  # the package takes Ctrl-C for a failure too
                raise cause from None
            url = self._info[f"url{self._flag}"]
            raise DataError(
                f"{self.name} cannot be downloaded: {cause}",
                remedy=f"download {url} by hand, and name the file in dataset.file",
            ) from None

    @cached_property
    def _labels(self) -> dict[str, NDArray[np.int64]]:
        """Labels of each split, (n, k); the whole archive is checked by them."""
        with self._opened() as archive:
            return {side: self._labels_of(archive, side) for side in SPLITS}

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                yield archive
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"'{self._path}' is damaged, or no archive of arrays: {error}", remedy=REMEDY
            ) from None

    def _labels_of(self, archive: zipfile.ZipFile, side: str) -> NDArray[np.int64]:
        images, names = f"{side}_images", f"{side}_labels"
        with self._member(archive, images) as file:
            shape, kind = header(file)
        square = shape[1:3] == (self.size, self.size) and shape[3:] in {(), (3,)}
        if not square or kind != np.uint8:
            raise self._error(
                f"array '{images}' is {shape} {kind}, and images of {self.size} pixels are"
                f" (n, {self.size}, {self.size}) or (n, {self.size}, {self.size}, 3) uint8",
                "set dataset.size to that of the file, or name another in dataset.file",
            )
        with self._member(archive, names) as file:
            labels_shape, kind = header(file)
            wide = len(self._info["label"]) if self._several else 1
            if labels_shape not in {(shape[0], wide), (shape[0],) * wide} or kind.kind not in "iu":
                raise self._error(
                    f"array '{names}' is {labels_shape} {kind}, and {shape[0]} images of"
                    f" {self.name} have ({shape[0]}, {wide}) whole numbers"
                )
            labels = np.frombuffer(file.read(), kind).reshape(shape[0], wide).astype(np.int64)
        top = 1 if self._several else len(self._info["label"]) - 1
        wrong = np.flatnonzero(((labels < 0) | (labels > top)).any(axis=1))
        if len(wrong):
            raise self._error(
                f"label {labels[wrong[0]].tolist()} of '{side}/{wrong[0]:05d}' is not among 0 to"
                f" {top}"
            )
        return labels

    @contextmanager
    def _member(self, archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
        """Open one array, of which as much must be there as its header promises."""
        try:
            info = archive.getinfo(f"{name}.npy")
        except KeyError:
            raise self._error(
                f"has no array '{name}'",
                f"an archive of MedMNIST holds {', '.join(archive.namelist())}",
            ) from None
        with archive.open(info) as file:
            shape, kind = header(file)
            promised = file.tell() + int(np.prod(shape, dtype=object)) * kind.itemsize
            if promised != info.file_size:
                raise self._error(f"array '{name}' has {info.file_size} and not {promised} bytes")
        with archive.open(info) as file:
            yield file

    def _error(self, problem: str, remedy: str = REMEDY) -> DataError:
        link = "" if problem.startswith("has") else ":"
        return DataError(f"'{self._path}'{link} {problem}", remedy=remedy)


def _figure(row: Mapping[str, str]) -> str:
    area = f"AUROC {row['auroc']}, " if row["auroc"] else ""
    spread = f" (SD {row['sd']} over seeds)" if row["sd"] else ""
    return (
        f"{row['strategy']} {row['model']} at {row['size']} px {area}accuracy"
        f" {row['accuracy']}{spread}"
    )


@lru_cache(maxsize=8)
def _md5_of(path: Path, stamp: tuple[int, int]) -> str:  # noqa: ARG001
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

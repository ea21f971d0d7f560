"""What datasets share that read files below one folder."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath
from typing import ClassVar, Literal

from medtransfer.data.base import Dataset, Image, Record
from medtransfer.data.pseudonyms import Pseudonyms
from medtransfer.data.reading import base as reader
from medtransfer.data.reading.base import Reading
from medtransfer.errors import ConfigError, DataError

FRAME = re.compile(r"(.*)#(\d{4,})", re.DOTALL)  # how a sample's id tells the file and the frame


@dataclass(frozen=True, kw_only=True)
class FileDataset(Dataset):
    """Images below a folder; a sample's id is its path from there, with `#0007` for frame 7.

    Attributes:
        root: The folder.
        reading: How pixels are read.
        identifiers: How patients and exams are named in whatever is kept.
        salt: File with the secret that they are hashed with.
    """

    by_manifest: ClassVar[bool] = False
    """Whether a file says where images lie, so that they have to lie below the root, links too."""

    root: Path
    reading: Reading = field(default_factory=Reading)
    identifiers: Literal["hashed", "plain"] = "plain"
    salt: Path | None = None

    def __post_init__(self) -> None:
        if self.identifiers == "hashed" and self.salt is None:
            raise ConfigError(
                "dataset.identifiers=hashed needs a file with the secret to hash with",
                remedy="name one in dataset.salt; it is made if it is missing",
            )

    @property
    def identity(self) -> str:
        """See `Dataset.identity`: the folder."""
        return str(self.root.resolve())

    def where(self, sample_id: str) -> tuple[Path, int | None]:
        """Return the file behind a sample, and the number of its frame if it holds several."""
        frame = FRAME.fullmatch(sample_id)
        if frame is None or (self.root / sample_id).exists():  # a name may look like that
            return self.root / sample_id, None
        return self.root / frame[1], int(frame[2])

    def frame_ids(self, path: Path) -> list[str]:
        """Return the ids of the samples in one file: its path, or one for each of its frames."""
        name = path.relative_to(self.root).as_posix()
        frames = reader.frames(path, self.reading)
        return [name] if frames is None else [f"{name}#{frame:04d}" for frame in frames]

    def patient_of(self, pattern: re.Pattern[str] | None, name: str) -> str:
        """Return the patient that a file's name tells, hashed if identifiers are.

        Args:
            pattern: See `group_of`; None takes each file for a patient of its own.
            name: Path of the file.

        Raises:
            DataError: If the name does not tell.
        """
        found = group_of(pattern, name)
        return found if pattern is None else self.pseudonyms.of(found)

    @cached_property
    def pseudonyms(self) -> Pseudonyms:
        """What patients and exams are called by."""
        return Pseudonyms(self.salt if self.identifiers == "hashed" else None)

    def read(self, record: Record) -> Image:
        """See `Dataset.read`."""
        path, frame = self.where(record.sample_id)
        self.require_below(path)
        return reader.read(path, frame, self.reading)

    def spacing(self, record: Record) -> tuple[float, float] | None:
        """See `Dataset.spacing`."""
        return reader.spacing(*self.where(record.sample_id), self.reading)

    def require_below(self, path: Path) -> None:
        """Refuse a file that a link takes out of the root, where a manifest says what is read.

        Raises:
            DataError: If one does.
        """
        # unlike Path.resolve, it does not stumble over links that go round in circles
        real, root = Path(os.path.realpath(path)), Path(os.path.realpath(self.root))
        if self.by_manifest and not real.is_relative_to(root):
            raise DataError(
                f"'{path}' is a link that leads out of the dataset's folder",
                remedy="copy the file there, or set dataset.root to a folder that holds both",
            )

    def files(self, record: Record) -> tuple[Path, ...]:
        """Return the files behind one sample."""
        return (self.where(record.sample_id)[0],)

    def fingerprint(self, records: Sequence[Record]) -> str:
        """Return path, size and time of change of every file, and how it is read."""
        lines = [str(self.root.resolve()), repr(self.reading)]
        known: set[Path] = set()
        for record in records:
            lines.append(record.sample_id)
            for file in self.files(record):
                if file not in known:  # volumes are the files of many samples
                    known.add(file)
                    lines.append(self._state(file))
        return "\n".join(lines)

    def _state(self, file: Path) -> str:
        name = file.relative_to(self.root).as_posix()
        try:
            stat = file.stat()
        except OSError:  # reading it will tell
            return f"{name} -"
        return f"{name} {stat.st_size} {stat.st_mtime_ns}"

    def require_root(self) -> None:
        """Refuse a root that is no folder.

        Raises:
            DataError: If it is none.
        """
        if not self.root.is_dir():
            raise DataError(
                f"folder '{self.root}' does not exist",
                remedy="set MEDTRANSFER_DATA or paths.data to where the data lie, or dataset.root"
                " to the folder itself",
            )

    def inside(self, name: str, key: str, *, folder: bool = True) -> Path:
        """Return the folder or file of a name below the root.

        Args:
            name: Its path from the root.
            key: The key that names it, for messages.
            folder: Whether it is one; else it is a file.

        Raises:
            DataError: If the name leads out of the root, or there is nothing.
        """
        self.require_root()
        require_inside(name, f"dataset.{key}")
        path = self.root / name
        if not (path.is_dir() if folder else path.is_file()):
            there = sorted(p.name for p in self.root.iterdir() if p.is_dir() == folder)
            kind = "sub-folder" if folder else "file"
            raise DataError(
                f"{kind} '{name}' is not in '{self.root}'",
                value=name,
                choices=[found for found in there if found[0] != "."],
                remedy=f"name it in dataset.{key}",
            )
        return path


def require_inside(name: str, where: str) -> None:
    """Refuse a path that could lead out of the folder that it is to be below.

    Raises:
        DataError: If it is absolute or climbs.
    """
    parts = PurePath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or "\0" in name:
        raise DataError(
            f"'{name}' in {where} leads out of the dataset's folder",
            remedy="name files below dataset.root, without '..'",
        )


def visible_files(folder: Path) -> list[Path]:
    """Return the files at any depth below a folder, sorted, without the hidden ones."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(parent, name) for name in files if name[0] != "."]
    return sorted(path for path in found if path.is_file() or path.is_symlink())


def group_of(pattern: re.Pattern[str] | None, sample_id: str) -> str:
    """Return the patient that a file's name tells; without a pattern each image is its own.

    Args:
        pattern: Found in the file's name; its first group, or else all of it, is the patient.
        sample_id: Path of the file.

    Raises:
        DataError: If the name does not tell.
    """
    if pattern is None:
        return sample_id
    name = PurePath(sample_id).name
    match = pattern.search(name)
    found = match and (match[1] if pattern.groups else match[0])
    if not found:
        raise DataError(
            f"the name of image '{sample_id}' tells no patient by the pattern '{pattern.pattern}'",
            remedy="mend dataset.group so that it fits every image, or the name",
        )
    return found

"""Inputs that would do harm: each tries to leave a mark, or to read what it must not see.

A case is a function of a `Ground`; it writes what it needs and returns the command line.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image as PILImage

SECRET = "the-patients-are-called-Doe"
NETWORK = ("backbone=timm", "backbone.name=test_resnet")
PHANTOM = ("dataset.patients=18", "dataset.size=32", "dataset.image_size=32")
USUAL = {
    "task": "classification",
    "dataset": "phantom",
    "transform": "light",
    "backbone": "resnet10t",
    "weights": "random",
    "strategy": "feature_extraction",
    "head": "linear",
    "loss": "cross_entropy",
    "optimizer": "adamw",
    "scheduler": "cosine",
    "study": "none",
    "tracking": "default",
    "trainer": "default",
    "source": "synthetic",
    "hydra/launcher": "submitit_slurm",
    "hydra/sweeper": "basic",
}
ROUNDS = 30  # of doubling: 10^9 values


class Mark:
    """Makes the mark where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@dataclass(frozen=True)
class Ground:
    """Where a case is made.

    Attributes:
        folder: Empty; for what the case brings along.
        mark: What is there only if something was executed.
        secret: A file that holds `SECRET`.
        home: The program's own.
    """

    folder: Path
    mark: Path
    secret: Path
    home: Path

    def config(self, group: str, content: object, *rest: str) -> list[str]:
        """Write one choice of a group, like the usual one but for this, and choose it."""
        path = self.folder / "own" / group / "evil.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            content = {"defaults": [USUAL[group], "_self_"], **content}
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        own = ("--config-dir", str(self.folder / "own"))
        return ["train", *own, *PHANTOM, f"{group}=evil", *rest]

    def experiment(self, content: object, *rest: str) -> list[str]:
        """Write an experiment, and return the command that chooses it."""
        text = content if isinstance(content, str) else yaml.safe_dump(content)
        return self.config("experiment", f"# @package _global_\n# X.\n{text}", *rest)

    def images(self, *names: str, root: str = "data") -> Path:
        """Write small images that are all different, and return their folder."""
        rng = np.random.default_rng(0)
        for name in names:
            path = self.folder / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            PILImage.fromarray(rng.integers(0, 256, (12, 16), dtype=np.uint8)).save(path)
        return self.folder / root

    def classes(self) -> Path:
        """Write two classes of sound images."""
        return self.images(*(f"{c}/{i}.png" for c in "ab" for i in range(6)))

    def manifest(self, cell: str, *rest: str) -> list[str]:
        """Write a table with sound rows and one that names `cell`."""
        names = [f"{c}{i}.png" for c in "ab" for i in range(6)]
        root = self.images(*names)
        rows = [f"{name},{name[0]}" for name in names]
        (root / "m.csv").write_text("\n".join(["image,label", f"{cell},a", *rows]))
        told = ("dataset=csv_manifest", f"dataset.root={root}", "dataset.file=m.csv")
        return ["train", *NETWORK, *told, "dataset.image_size=32", *rest]

    def folders(self, *rest: str) -> list[str]:
        """Return the command that learns from the folder of two classes."""
        told = ("dataset=image_folder", f"dataset.root={self.folder}/data")
        return ["train", *NETWORK, *told, "dataset.image_size=32", *rest]

    def weights(self, name: str, content: bytes) -> list[str]:
        """Write a file of weights, and return the command that starts from it."""
        path = self.folder / name
        path.write_bytes(content)
        return ["train", *NETWORK, *PHANTOM, "weights=file", f"weights.path={path}"]


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        make: Writes it and returns the command.
        said: What the error must name.
        code: What the command must end with.
    """

    make: Callable[[Ground], list[str]]
    said: str
    code: int = 2


CASES: dict[str, Case] = {}


def case(said: str, code: int = 2):
    """Enter a function as a case."""

    def enter(make):
        CASES[make.__name__] = Case(make, said, code)
        return make

    return enter


# -- code that a configuration names

TARGETS = {
    "os.system": {"command": "mkdir {mark}"},
    "subprocess.Popen": {"args": ["mkdir", "{mark}"]},
    "builtins.eval": {"_args_": ["__import__('os').mkdir('{mark}')"]},
    "builtins.exec": {"_args_": ["import os; os.mkdir('{mark}')"]},
    "builtins.open": {"file": "{mark}", "mode": "w"},
    "pathlib.Path.mkdir": {"_args_": ["{mark}"]},
    "torch.load": {"f": "{pickle}", "weights_only": False},
    "torch.hub.load": {"repo_or_dir": "{folder}", "model": "x", "source": "local"},
    "numpy.load": {"file": "{pickle}", "allow_pickle": True},
    "pickle.loads": {"_args_": ["x"]},
    "functools.partial": {"_args_": ["os.mkdir", "{mark}"]},
    "hydra.utils.instantiate": {"config": {"_target_": "os.mkdir", "path": "{mark}"}},
    "hydra.utils.get_method": {"path": "os.mkdir"},
    "medtransfer.data.phantom.Phantom.read": {"record": None},
    "medtransfer.data.files.os.mkdir": {"path": "{mark}"},
    "medtransfer.cache.shutil.rmtree": {"path": "{folder}"},
    "medtransfer.backbones.weights.read_tensors": {"path": "{pickle}"},
    "medtransfer.__main__.main": {},
    "medtransfer": {},
    "stranger.Own": {},
}
GROUPS = (
    *("task", "dataset", "transform", "backbone", "weights", "strategy", "head", "loss"),
    *("optimizer", "scheduler"),
)
NESTED = ("strategy.search_space", "head.nms", "dataset.split", "transform.more", "weights.path")


def _filled(ground: Ground, value):
    if isinstance(value, str):
        return value.format(mark=ground.mark, folder=ground.folder, pickle=ground.folder / "x.pt")
    if isinstance(value, dict):
        return {key: _filled(ground, each) for key, each in value.items()}
    return [_filled(ground, each) for each in value] if isinstance(value, list) else value


def _target(group: str, target: str) -> Case:
    def make(ground: Ground) -> list[str]:
        (ground.folder / "x.pt").write_bytes(pickle.dumps(Mark(ground.mark)))
        (ground.folder / "hubconf.py").write_text(f"import os; os.mkdir({str(ground.mark)!r})")
        (ground.folder / "stranger.py").write_text(f"import os; os.mkdir({str(ground.mark)!r})")
        node = {"_target_": target, **_filled(ground, TARGETS[target])}
        return ground.config(group, node)

    return Case(make, "_args_" if "_args_" in TARGETS[target] else "_target_")


def _nested(key: str, *, listed: bool) -> Case:
    def make(ground: Ground) -> list[str]:
        node: object = {"_target_": "os.mkdir", "path": str(ground.mark), "_partial_": False}
        node = [node] if listed else node
        *path, last = key.split(".")
        for part in reversed([*path, last]):
            node = {part: node}
        return ground.experiment(node)

    return Case(make, "_target_")


def _reserved(key: str, value: object) -> Case:
    return Case(lambda ground: ground.experiment({"strategy": {key: value}}), key)


CASES |= {f"{group} os.system": _target(group, "os.system") for group in GROUPS}
CASES |= {f"dataset {target}": _target("dataset", target) for target in TARGETS}
CASES |= {f"{key} in a mapping": _nested(key, listed=False) for key in NESTED}
CASES |= {f"{key} in a list": _nested(key, listed=True) for key in ("strategy.x", "head.nms")}
CASES |= {
    f"strategy {key}": _reserved(key, value)
    for key, value in {
        "_partial_": True,
        "_args_": ["x"],
        "_recursive_": True,
        "_convert_": "all",
    }.items()
}


def _misplaced(group: str) -> Case:
    def make(ground: Ground) -> list[str]:
        node = {"_target_": "os.system", "command": f"mkdir {ground.mark}"}
        return ground.config(group, node)

    return Case(make, f"{group}._target_")


CASES |= {f"{group} os.system": _misplaced(group) for group in ("study", "tracking", "trainer")}


@case("_target_")
def a_source_of_pretraining(ground):
    node = {"_target_": "os.system", "command": f"mkdir {ground.mark}"}
    arguments = ground.config("source", node)
    return ["pretrain", *(each for each in arguments[1:] if each not in PHANTOM)]


@case("_target_")
def an_external_dataset(ground):
    node = {"_target_": "os.system", "command": f"mkdir {ground.mark}"}
    arguments = ground.config("dataset", node)
    return [*arguments[:-1], "dataset.external=evil"]


# -- what a configuration tells Hydra


def _hydra(key: str, value: object, *rest: str, said: str = "") -> Case:
    def make(ground: Ground) -> list[str]:
        node = _filled(ground, value)
        for part in reversed(["hydra", *key.split(".")]):
            node = {part: node}
        return ground.experiment(node, *rest)

    return Case(make, said or f"hydra.{key}")


def _plugin(kind: str, node: dict[str, object]) -> Case:
    def make(ground: Ground) -> list[str]:
        arguments = ground.config(f"hydra/{kind}", _filled(ground, node), "-m", "seed=0,1")
        (ground.folder / "stranger.py").write_text(STRANGER.format(mark=str(ground.mark)))
        return arguments

    return Case(make, f"hydra.{kind}.{next(iter(node))}")


STRANGER = "from medtransfer.data.phantom import Phantom\nimport os\nos.mkdir({mark!r})\n"
CALL = {"_target_": "os.mkdir", "path": "{mark}"}
LOGGING = {
    "version": 1,
    "root": {"handlers": ["h"]},
    "handlers": {"h": {"()": "os.mkdir", "path": "{mark}"}},
}
CASES |= {
    "hydra.callbacks": _hydra("callbacks", {"x": CALL}),
    "hydra.callbacks of a sweep": _hydra("callbacks", {"x": CALL}, "-m", "seed=0,1"),
    "hydra.job_logging": _hydra("job_logging", LOGGING, "-m", "seed=0,1"),
    "hydra.hydra_logging": _hydra("hydra_logging", LOGGING, "-m", "seed=0,1"),
    "hydra.job_logging in one job": _hydra("job_logging", LOGGING, "-m", "experiment=evil,null"),
    "hydra.launcher._target_": _hydra("launcher._target_", "os.mkdir", "-m", "seed=0,1"),
    "hydra.launcher nested": _plugin("launcher", {"additional_parameters": CALL}),
    "hydra.launcher nested in a list": _plugin(
        "launcher", {"additional_parameters": {"x": [CALL]}}
    ),
    "hydra.launcher of a stranger": _plugin("launcher", {"_target_": "stranger.Own"}),
    "hydra.launcher setup": _plugin("launcher", {"setup": ["mkdir {mark}"]}),
    "hydra.launcher folder": _plugin("launcher", {"submitit_folder": "{mark}"}),
    "hydra.launcher in a comment": _plugin("launcher", {"comment": "x\nmkdir {mark}\n"}),
    "hydra.launcher in a resource": _plugin("launcher", {"partition": "x\nmkdir {mark}\n"}),
    "hydra.sweeper._target_": _hydra("sweeper._target_", "os.mkdir", "-m", "seed=0,1"),
    "hydra.sweeper nested": _plugin("sweeper", {"params": CALL}),
    "hydra.sweeper of a stranger": _plugin("sweeper", {"_target_": "stranger.Own"}),
    "hydra.run.dir": _hydra("run.dir", "{mark}"),
    "hydra.sweep.dir": _hydra("sweep.dir", "{mark}", "-m", "seed=0,1"),
    "hydra.sweep.subdir": _hydra("sweep.subdir", "../../../x", "-m", "seed=0,1"),
    "hydra.output_subdir": _hydra("output_subdir", "{mark}"),
    "hydra.job.chdir": _hydra("job.chdir", True),
    "hydra.job.env_set": _hydra("job.env_set", {"PATH": "{folder}"}, said="hydra.job.env_set"),
    "hydra.mode": _hydra("mode", "MULTIRUN"),
    "hydra.sweeper.params": _hydra(
        "sweeper.params", {"trusted_modules": "[os]"}, "-m", said="trusted_modules"
    ),
    "hydra.sweeper.params with a plus": _hydra(
        "sweeper.params", {"++hydra.job.chdir": "true"}, "-m", said="hydra.job.chdir"
    ),
    "hydra.searchpath": _hydra("searchpath", ["pkg://stranger"], said="hydra.searchpath"),
}


@case("take the place of the program's own")
def a_primary_config(ground):
    (ground.folder / "stranger").mkdir()
    (ground.folder / "stranger" / "__init__.py").write_text(
        f"import os; os.mkdir({str(ground.mark)!r})"
    )
    own = ground.folder / "own"
    own.mkdir()
    (own / "train.yaml").write_text("hydra:\n  searchpath: ['pkg://stranger']\n")
    return ["train", "--config-dir", own]


def _trust(study: Callable[[Ground], dict[str, object]], *rest: str) -> Case:
    def make(ground: Ground) -> list[str]:
        (ground.folder / "stranger.py").write_text(STRANGER.format(mark=str(ground.mark)))
        ground.config("dataset", {"_target_": "stranger.Own"})
        return ground.experiment(study(ground), "-m", "hydra/sweeper=study", *rest)

    return Case(make, "trusted_modules")


ARMS = {"a": ["trusted_modules=[stranger]", "dataset=evil"], "b": ["seed=1"]}
SPACE = {"trusted_modules": {"kind": "choice", "values": [["stranger"]]}}
CASES |= {
    "trust in an arm": _trust(lambda _: {"study": {"arms": ARMS, "seeds": 1}}),
    "trust in an axis": _trust(
        lambda _: {"study": {"arms": {"a": [], "b": []}, "axes": {"trusted_modules": ["[os]"]}}}
    ),
    "trust in a file": Case(
        lambda ground: ground.experiment({"trusted_modules": ["os"]}), "trusted_modules"
    ),
    "trust in one element": _trust(
        lambda _: {"study": {"arms": {"a": ["trusted_modules.0=stranger"], "b": []}}},
        "trusted_modules=[os]",
    ),
}


# -- YAML that is more than it seems


@case("python/object")
def a_yaml_tag(ground):
    return ground.experiment(f"seed: !!python/object/apply:os.mkdir ['{ground.mark}']\n")


@case("by aliases")
def a_yaml_of_many_laughs(ground):
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, ROUNDS)]
    return ground.experiment("study:\n" + "".join(f"  {line}\n" for line in lines))


@case("levels deep")
def a_yaml_without_bottom(ground):
    return ground.experiment("seed: " + "[" * 5000 + "]" * 5000 + "\n")


@case("larger than")
def a_yaml_without_end(ground):
    return ground.experiment("# " + "x" * 2**21 + "\nseed: 1\n")


@case("leads out of the config folders")
def a_choice_that_climbs(ground):
    (ground.folder / "x.yaml").write_text("seed: 1\n")
    return ["train", *NETWORK, f"experiment=../../../../../../../../..{ground.folder}/x"]


@case("Recursive interpolation")
def an_interpolation_of_itself(ground):
    return ground.experiment({"seed": "${trainer.threads}", "trainer": {"threads": "${seed}"}})


@case("nothing_here")
def a_resolver_of_nobodys(ground):
    return ground.experiment({"seed": f"${{nothing_here:{ground.secret}}}"})


# -- files with pickles


@case("was not executed")
def a_pickle_of_weights(ground):
    return ground.weights("x.bin", pickle.dumps({"a": Mark(ground.mark)}))


@case("was not executed")
def a_checkpoint_with_a_pickle(ground):
    held = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(1)}, "more": Mark(ground.mark)}, held)
    return ground.weights("x.ckpt", held.getvalue())


@case("was not executed")
def a_checkpoint_of_the_old_kind(ground):
    held = io.BytesIO()
    torch.save(Mark(ground.mark), held, _use_new_zipfile_serialization=False)
    return ground.weights("x.pt", held.getvalue())


@case("was not executed")
def a_checkpoint_that_climbs(ground):
    held = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, held)
    new = io.BytesIO()
    with zipfile.ZipFile(held) as old, zipfile.ZipFile(new, "w") as archive:
        for info in old.infolist():
            archive.writestr(info.filename.replace("data/0", "../../../mark"), old.read(info))
    return ground.weights("x.pt", new.getvalue())


@case("was not executed")
def a_script_of_torch(ground):
    held = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), held)
    return ground.weights("x.pt", held.getvalue())


@case("is damaged or not a safetensors file")
def safetensors_that_lie(ground):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    return ground.weights(
        "x.safetensors", struct.pack("<Q", len(header)) + header.encode() + b"\0" * 8
    )


@case("is damaged or not a safetensors file")
def safetensors_with_an_endless_header(ground):
    return ground.weights("x.safetensors", struct.pack("<Q", 2**62) + b"{}")


@case("is damaged or not a safetensors file")
def a_pickle_named_safetensors(ground):
    return ground.weights("x.safetensors", pickle.dumps(Mark(ground.mark)))


def _archive(ground: Ground, **arrays: np.ndarray) -> list[str]:
    path = ground.folder / "p.npz"
    sides = ("train", "val", "test")
    sound = {f"{side}_images": np.zeros((4, 28, 28), np.uint8) for side in sides}
    sound |= {f"{side}_labels": np.zeros((4, 1), np.uint8) for side in sides}
    np.savez(path, **(sound | arrays))
    told = ("dataset=medmnist", "dataset.name=pneumoniamnist", f"dataset.file={path}")
    return ["train", *NETWORK, *told]


@case("p.npz")
def an_archive_of_objects(ground):
    return _archive(ground, train_labels=np.array([Mark(ground.mark)] * 4, dtype=object))


@case("p.npz")
def an_archive_of_objects_as_images(ground):
    return _archive(ground, train_images=np.array([Mark(ground.mark)] * 4, dtype=object))


@case("p.npz")
def an_archive_that_promises_too_much(ground):
    arguments = _archive(ground)
    path, held = ground.folder / "p.npz", io.BytesIO()
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 28, 28), }"
    np.lib.format.write_array_header_1_0(
        held, {"descr": "|u1", "fortran_order": False, "shape": (9_999_999_999, 28, 28)}
    )
    assert text[:20] in held.getvalue().decode("latin-1")
    with zipfile.ZipFile(path) as old:
        parts = {info.filename: old.read(info) for info in old.infolist()}
    parts["train_images.npy"] = held.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return arguments


# -- paths that climb


@case("leads out of the dataset's folder")
def a_manifest_that_climbs(ground):
    return ground.manifest("../secret.txt")


@case("leads out of the dataset's folder")
def a_manifest_that_climbs_inside_of_a_path(ground):
    return ground.manifest("a/../../secret.txt")


@case("leads out of the dataset's folder")
def a_manifest_that_climbs_as_windows_does(ground):
    return ground.manifest("..\\secret.txt")


@case("leads out of the dataset's folder")
def a_manifest_with_an_absolute_path(ground):
    return ground.manifest(str(ground.secret))


@case("leads out of the dataset's folder")
def a_manifest_with_a_link_that_leaves(ground):
    arguments = ground.manifest("link.png")
    outside = ground.images("other.png", root="elsewhere")
    (ground.folder / "data" / "link.png").symlink_to(outside / "other.png")
    return arguments


@case("leads out of the dataset's folder")
def a_manifest_below_a_link_that_leaves(ground):
    arguments = ground.manifest("link/other.png")
    outside = ground.images("other.png", root="elsewhere")
    (ground.folder / "data" / "link").symlink_to(outside)
    return arguments


@case("is not among")
def a_manifest_with_a_formula_for_a_side(ground):
    return ground.manifest("a0.png", "dataset.classes=[b,c]")


def _coco(ground: Ground, name: str) -> list[str]:
    root = ground.images(*(f"images/{i}.png" for i in range(6)))
    files = [f"{i}.png" for i in range(6)] + [name]
    content = {
        "images": [{"id": i, "file_name": each} for i, each in enumerate(files)],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0}
        ],
        "categories": [{"id": 1, "name": "x"}],
    }
    (root / "annotations.json").write_text(json.dumps(content))
    told = ("task=detection", "dataset=coco", f"dataset.root={root}", "dataset.image_size=32")
    return ["train", *NETWORK, *told]


@case("leads out of the dataset's folder")
def annotations_of_coco_that_climb(ground):
    return _coco(ground, "../../secret.txt")


@case("is not JSON")
def annotations_of_coco_without_bottom(ground):
    arguments = _coco(ground, "x.png")
    (ground.folder / "data" / "annotations.json").write_text("[" * 200_000)
    return arguments


def _voc(ground: Ground, text: str) -> list[str]:
    root = ground.images(*(f"JPEGImages/{i}.png" for i in range(6)))
    (root / "Annotations").mkdir()
    for i in range(6):
        (root / "Annotations" / f"{i}.xml").write_text(text)
    told = ("task=detection", "dataset=voc", f"dataset.root={root}", "dataset.classes=[x]")
    more = ("dataset.sets=null", "dataset.split.kind=holdout", "dataset.image_size=32")
    return ["train", *NETWORK, *told, *more]


@case("defines entities")
def an_xml_of_many_laughs(ground):
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    return _voc(ground, f'<!DOCTYPE x [<!ENTITY l0 "ha">{laughs}]><annotation>&l9;</annotation>')


@case("defines entities")
def an_xml_that_reads_a_file(ground):
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{ground.secret}">]>'
    return _voc(ground, f"{entity}<annotation><object><name>&e;</name></object></annotation>")


@case("leads out of the dataset's folder")
def an_xml_behind_a_link(ground):
    arguments = _voc(ground, "<annotation/>")
    for i in range(6):
        path = ground.folder / "data" / "Annotations" / f"{i}.xml"
        path.unlink()
        path.symlink_to(ground.secret)
    return arguments


@case("split")
def a_split_without_bottom(ground):
    path = ground.folder / "split.json"
    path.write_text('{"train": ' + "[" * 200_000)
    told = ("dataset.split.kind=file", f"dataset.split.file={path}")
    return ["train", *NETWORK, *PHANTOM, *told]


# -- images that are none, or too much


def _image(name: str, said: str, write: Callable[[Path], None]) -> Case:
    def make(ground: Ground) -> list[str]:
        ground.classes()
        write(ground.folder / "data" / "a" / name)
        return ground.folders()

    return Case(make, said)


def _png_of(width: int, height: int) -> Callable[[Path], None]:
    def chunk(kind: bytes, content: bytes) -> bytes:
        code = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + code

    def write(path: Path) -> None:
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10**6))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b""))

    return write


def _nifti(path: Path) -> None:
    import nibabel

    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header.set_data_shape((30_000, 30_000, 30_000))
    path.write_bytes(image.header.binaryblock + b"\0" * 100)


def _dicom(path: Path) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.PatientID = SECRET
    data.Rows = data.Columns = 65_000
    data.NumberOfFrames = 10_000
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = b"\0" * 16
    data.save_as(path, enforce_file_format=True)


CASES |= {
    "a PNG that unpacks to too much": _image("x.png", "decompression bomb", _png_of(60000, 60000)),
    "a NIfTI that unpacks to too much": _image("x.nii", "decompression bomb", _nifti),
    "a DICOM that unpacks to too much": _image("x.dcm", "decompression bomb", _dicom),
    "a device for an image": _image("x.png", "a device", lambda p: p.symlink_to("/dev/zero")),
    "a device for a volume": _image("x.nii.gz", "a device", lambda p: p.symlink_to("/dev/zero")),
    "a device for DICOM": _image("x.dcm", "a device", lambda p: p.symlink_to("/dev/zero")),
    "a device without a suffix": _image("x.1", "a device", lambda p: p.symlink_to("/dev/zero")),
    "a pickle for an image": _image(
        "x.png", "not an image", lambda p: p.write_bytes(pickle.dumps(Mark(p.parent / "mark")))
    ),
}


@case("a pipe or a device")
def a_pipe_behind_a_link(ground):
    ground.classes()
    os.mkfifo(ground.folder / "pipe")
    (ground.folder / "data" / "a" / "x.png").symlink_to(ground.folder / "pipe")
    return ground.folders()


@case("is not in")
def a_pipe_in_a_manifest(ground):
    arguments = ground.manifest("pipe.png")
    os.mkfifo(ground.folder / "data" / "pipe.png")
    return arguments


@case("a pipe or a device")
def a_pipe_for_an_annotation(ground):
    arguments = _voc(ground, "<annotation/>")
    path = ground.folder / "data" / "Annotations" / "0.xml"
    path.unlink()
    os.mkfifo(path)
    return arguments

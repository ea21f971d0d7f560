"""What the pages tell to type: commands and options that exist, and code that can be read."""

import re
import tomllib
from contextlib import suppress

import pytest
import yaml

from doc_blocks import ROOT, SHELL, blocks_of, commands_of, pages
from medtransfer.app import App
from medtransfer.cli import _parser
from medtransfer.config import (
    DatasetAuditConfig,
    ExtractConfig,
    PretrainConfig,
    RankConfig,
    TrainConfig,
)
from medtransfer.errors import DataError
from medtransfer.run import check

SCHEMAS = {
    "train": TrainConfig,
    "pretrain": PretrainConfig,
    "extract": ExtractConfig,
    "rank": RankConfig,
    "audit": DatasetAuditConfig,
}
PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def shell_blocks(page):
    return [block for block in blocks_of(page) if block.language in SHELL]


def each(*languages):
    found = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", found, ids=lambda b: f"{b.path}:{b.line}")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Return a function that writes the files which a page shows, and goes to where they lie."""

    def write(page):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path / "own")
        for block in blocks_of(page):
            if block.file is not None:
                (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / block.file).write_text(block.text)

    return write


def complaint(words):
    """Return what is wrong with one command of the program, or nothing."""
    try:
        arguments, rest = _parser().parse_known_args(words[1:])
    except SystemExit:
        return "the parser refuses it"
    if words[1] in SCHEMAS and rest[:2] == ["--cfg", "job"]:
        return ""
    if wrong := [word for word in rest if "=" not in word and not word.startswith("-")]:
        return f"{wrong} is neither an option nor an override"
    if flags := [word for word in rest if word.startswith("-")]:
        return f"{flags} is unknown"
    if words[1] in SCHEMAS:
        many = getattr(arguments, "multirun", False)
        compose(words[1], rest, arguments.config_dir, many=many)
    return ""


def compose(name, overrides, own, *, many):
    """Check what a command would run: of a sweep, jobs in which each choice and key occurs."""
    with App.open(name, own) as app:
        if name == "rank":  # it takes several of these, and is no sweep
            overrides = [re.sub(r"^((?:backbone|weights)=[^,]+),.*", r"\1", o) for o in overrides]
        jobs = [tuple(overrides)]
        if many:
            plan = app.plan(overrides)
            jobs = [*plan.tuning, *plan.jobs]
        seen = set()
        for job in jobs:
            alike = {re.sub(r"=-?[\d.]+(e-?\d+)?$", "=number", each) for each in job}
            if not many or not seen.issuperset(alike):
                seen |= alike
                config = app.compose(job).typed(SCHEMAS[name])
                if isinstance(config, TrainConfig):
                    with suppress(DataError):  # what the pages name is not here
                        check(config)


@pytest.mark.filterwarnings("ignore:\\s*'hydra/launcher/")
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_is_understood_and_composes(page, files, capsys):
    files(page)
    wrong = []
    for block in shell_blocks(page):
        for words in commands_of(block):
            if words[0] == "medtransfer":
                try:
                    found = complaint(words)
                except Exception as error:  # all of them are told together
                    found = str(error)
                if found:
                    wrong.append(f"{page}:{block.line}: {' '.join(words)}: {found}")
    assert not wrong, "\n".join(wrong)


@each("bash", "console")
def test_make_targets_scripts_and_extras_exist(block):
    for words in commands_of(block):
        if words[0] == "make":
            assert set(words[1:]) <= TARGETS
        if words[:1] == ["python"] and words[1].startswith("scripts/"):
            assert (ROOT / words[1]).exists()
        for extras in re.findall(r"(?:medtransfer|\.)\[([\w,]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= set(EXTRAS)


@each("python")
def test_python_compiles(block):
    compile(block.text, f"{block.path}:{block.line}", "exec")


@each("yaml")
def test_yaml_loads(block):
    assert yaml.safe_load(block.text)


def test_a_wrong_command_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaint(["medtransfer", "tran"])
    assert complaint(["medtransfer", "report", "STUDY"])
    assert complaint(["medtransfer", "train", "--fast"])
    assert complaint(["medtransfer", "train", "quick"])
    for override in ("strategy=no_such", "optimizer.lr=abc", "trainer.epochs=3"):
        with pytest.raises(Exception, match=r"unknown|optimizer|lr"):
            complaint(["medtransfer", "train", "-m", override, "seed=0,1"])


def test_commands_are_found_in_all_their_forms():
    from doc_blocks import Block

    text = "A=1 medtransfer list  # all\ncd x && medtransfer ui --port 1\n"
    text += "medtransfer a \\\n  'b=[c]'\n"
    found = list(commands_of(Block("", 1, "bash", text)))
    assert found == [
        ["medtransfer", "list"],
        ["cd", "x"],
        ["medtransfer", "ui", "--port", "1"],
        ["medtransfer", "a", "b=[c]"],
    ]
    shown = "$ medtransfer list\nmedtransfer is what it printed\n"
    assert list(commands_of(Block("", 1, "", shown))) == [["medtransfer", "list"]]

"""Nothing that comes from outside is executed, read behind the user's back, or takes for ever."""

import sys

import pytest

from hostile import CASES, SECRET, Ground


@pytest.fixture
def ground(tmp_path, home, monkeypatch):
    folder = tmp_path / "case"
    folder.mkdir()
    secret = folder / "secret.txt"
    secret.write_text(SECRET)
    monkeypatch.syspath_prepend(folder)  # what is not trusted must not be imported if it could be
    yield Ground(folder, tmp_path / "mark", secret, home)
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        del sys.modules[name]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", CASES)
def test_a_hostile_input_is_refused_and_does_nothing(cli, ground, list_runs, home, name):
    case = CASES[name]
    arguments = case.make(ground)
    there = {path for path in ground.folder.rglob("*") if "__pycache__" not in path.parts}
    result = cli(*arguments)
    assert result.code == case.code, result
    assert result.err.startswith("error: ")
    assert case.said in result.err
    ways_out = result.err.splitlines()[1:]
    assert all(line.startswith(("  choices: ", "  remedy: ")) for line in ways_out), result.err
    assert "Traceback" not in result.out + result.err
    assert result.out == ""
    assert not ground.mark.exists()
    assert SECRET not in result.err
    assert not any(SECRET.encode() in path.read_bytes() for path in files_below(home))
    assert {p for p in ground.folder.rglob("*") if "__pycache__" not in p.parts} == there
    assert list_runs() == []


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]

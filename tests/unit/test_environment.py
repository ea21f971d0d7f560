import subprocess
import sys

import numpy as np
import pytest

from medtransfer.tracking import environment


def git(folder, *arguments):
    name = ("-c", "user.name=x", "-c", "user.email=x@y")
    done = subprocess.run(
        ["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_versions_and_machine_are_told():
    told = environment.describe()
    assert set(told) == {"python", "platform", "processor", "packages", "git_commit"}
    assert set(told["packages"]) == set(environment.PACKAGES)
    assert told["packages"]["numpy"] == np.__version__
    assert told["processor"]


def test_a_package_that_is_absent_is_no_error():
    assert environment.version("no-such-package") == "not installed"


def test_the_commit_is_that_of_the_folder_and_marked_when_files_differ(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag is no commit")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert environment.git_commit() == commit
    (tmp_path / "file").write_text("2")
    assert environment.git_commit() == f"{commit}-dirty"


def test_outside_of_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_commit() is None
    monkeypatch.setenv("PATH", "")
    assert environment.git_commit() is None


PEAKS = """
from medtransfer.tracking.environment import peak_memory_mb, reset_peak_memory
block = bytearray(64 * 2**20)
print(peak_memory_mb())
del block
reset_peak_memory()
print(peak_memory_mb())
block = bytearray(64 * 2**20)
print(peak_memory_mb())
"""


def test_the_peak_of_memory_is_measured_anew_after_a_reset():
    if not environment.CLEAR_REFS.exists():
        pytest.skip("the kernel does not let the peak be reset")
    # in a process of its own, where nothing else moves
    printed = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, check=True).stdout
    first, low, second = map(float, printed.split())
    assert low <= first - 48
    assert second >= low + 48


def test_a_kernel_that_allows_no_reset_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "CLEAR_REFS", tmp_path / "nope" / "clear_refs")
    environment.reset_peak_memory()
    assert environment.peak_memory_mb() > 1

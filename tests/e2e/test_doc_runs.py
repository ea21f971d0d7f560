"""What the pages say can be typed is typed: blocks marked as such, page by page, in order."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from doc_blocks import blocks_of, pages

MARKED = [page for page in pages() if any(block.run for block in blocks_of(page))]
TUTORIAL = Path("docs/tutorial.md")  # it runs a whole study


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] if p == TUTORIAL else []) for p in MARKED],
    ids=str,
)
def test_marked_blocks_run(page, home, tmp_path):
    own = Path(sys.executable).parent  # where `medtransfer` and `python` are
    environment = {**os.environ, "PATH": f"{own}:{os.environ['PATH']}"}
    script = ["set -e"]
    for number, block in enumerate(blocks_of(page)):
        if block.file is not None:
            (tmp_path / block.file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file).write_text(block.text)
        if block.run and block.language == "python":
            (tmp_path / f"block{number}.py").write_text(block.text)
            script.append(f"python block{number}.py")
        elif block.run:
            script.append(block.text)
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_the_tutorial_is_among_them():
    assert TUTORIAL in MARKED

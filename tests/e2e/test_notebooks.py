"""The notebooks run from the first cell to the last, in a folder of their own."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra 'docs' is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra 'docs' is not installed")
pytest.importorskip("ipykernel", reason="the extra 'docs' is not installed")

NOTEBOOKS = sorted(Path(__file__).parents[2].joinpath("docs", "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, home, tmp_path, monkeypatch, socket_enabled):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()  # a cell that fails raises what it raised
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not [
        cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")
    ]


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == {"first_study", "own_data"}

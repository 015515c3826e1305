"""The notebook, cell by cell in a kernel of Jupyter's, on a run of the toy."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from .asking_runs import command

NOTEBOOK = Path(__file__).parents[1] / "tour.ipynb"


def test_the_notebook_is_valid_and_holds_no_output() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_the_notebook_runs_on_the_toy_from_top_to_bottom(collected: Path, tmp_path: Path) -> None:
    shutil.copytree(collected, tmp_path / "demo")
    for stage in ("explain", "score"):
        finished = command(stage, tmp_path / "demo")
        assert finished.returncode == 0, finished.stderr
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    printed = "\n".join(
        output.get("text", "") or output.get("data", {}).get("text/plain", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )
    assert "a label from the notebook" in printed
    assert "cosine" in printed
    assert "plain" in printed

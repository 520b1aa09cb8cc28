"""The notebooks: each cell runs, in emulation where there is no SDK, and shows what it should."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, List

import pytest

NEEDED = "notebooks need the extra `dev`"
for module in ("ipykernel", "matplotlib"):
    pytest.importorskip(module, reason=NEEDED)
nbclient = pytest.importorskip("nbclient", reason=NEEDED)
nbformat = pytest.importorskip("nbformat", reason=NEEDED)

NOTEBOOKS = Path(__file__).parent.parent / "examples" / "notebooks"
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


def executed(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook with outputs, of a kernel that starts in its folder, small."""
    monkeypatch.setitem(os.environ, "BESSKGE_NOTEBOOK_SIZE", "small")
    paths = [str(NOTEBOOKS.parent.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setitem(os.environ, "PYTHONPATH", os.pathsep.join(filter(None, paths)))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources=resources
    ).execute()
    return notebook


def outputs(notebook: Any) -> List[Any]:
    return [x for cell in notebook.cells for x in cell.get("outputs", [])]


def test_there_is_a_notebook_for_each_subject():
    assert [path.stem[:2] for path in PATHS] == ["0_", "1_", "2_", "3_"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_progress_plots_and_costs(path, monkeypatch):
    found = outputs(executed(path, monkeypatch))
    text = "".join(x.text for x in found if x.output_type == "stream" and x.name == "stdout")
    assert re.match("steps run on: (emulate|hardware|model)\n", text)
    if "on: emulate" in text:
        assert "4 IPUs (POD4), predicted memory of each:" in text
    assert "predicted, not measured:" in text and re.search(r"POD16 .* us, most of it ", text)
    assert sum("image/png" in x.get("data", {}) for x in found) >= 2
    assert not [x.text for x in found if x.output_type == "stream" and "Warning" in x.text]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    assert "We have not run this on an IPU" in cells[0].source

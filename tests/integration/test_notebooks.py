"""Every notebook runs from its first cell to its last without a network, and is committed with what it printed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
_SKIPPED = "skip-execution"


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_it_is_committed_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ran = [cell for cell in _code(notebook) if _SKIPPED not in cell.metadata.get("tags", [])]
    left = [cell for cell in _code(notebook) if _SKIPPED in cell.metadata.get("tags", [])]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    assert sum(bool(cell.outputs) for cell in ran) >= len(ran) // 2
    assert not any(cell.outputs for cell in left)
    errors = [out for cell in ran for out in cell.outputs if out.output_type == "error"]
    assert errors == []
    said = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "Few" in said, "a notebook says how few its items are"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_it_runs(path: Path, smollm2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSPRUNE_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Tests run beside notebooks: the package is this checkout's.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=1200,
        kernel_name="python3",
        skip_cells_with_tag=_SKIPPED,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    assert all(cell.execution_count for cell in _code(notebook) if _SKIPPED not in cell.metadata.get("tags", []))

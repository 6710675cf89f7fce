"""Runs the notebooks, and tells what one printed from what it prints now.

``python -m tests.notebooks`` runs each of them in place; names (``01_first_sweep``) choose some.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat

__all__ = ["FOLDER", "NOTEBOOKS", "SKIPPED", "code_cells", "differences", "execute", "images", "plots"]

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SKIPPED = "skip-execution"
ENVIRONMENT = {"LENSPRUNE_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

_PLOTS = re.compile(r"\.plot\(|\bplt\.|_(scatter|heatmaps?|map|figure)\(|;\s*$")
_PASSING = re.compile(r"\d+(\.\d+)?( ?ms| ?s| seconds| minutes| min|it/s| rows/s)\b|\b0x[0-9a-f]+|/\S*/\S+|\d+%\|.*")
_NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?|-?\d+e[-+]?\d+")


def code_cells(notebook: Any) -> list[Any]:
    """The cells that run, in order."""
    return [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.strip() and SKIPPED not in cell.metadata.get("tags", [])
    ]


def execute(path: Path) -> Any:
    """Run a notebook from its first cell to its last, offline, in an empty folder, with this checkout's package."""
    notebook = nbformat.read(path, as_version=4)
    # Tests run beside notebooks: the package is this checkout's.
    environment = {"PYTHONPATH": os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]), **ENVIRONMENT}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with tempfile.TemporaryDirectory() as folder:
            nbclient.NotebookClient(
                notebook,
                timeout=1200,
                kernel_name="python3",
                skip_cells_with_tag=SKIPPED,
                record_timing=False,
                resources={"metadata": {"path": folder}},
            ).execute()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return notebook


def plots(cell: Any) -> bool:
    """Whether a cell draws a figure for its reader: by a call that draws, or by the ``;`` that hides what one gives."""
    return bool(_PLOTS.search(cell.source))


def images(cell: Any) -> int:
    """The images that a cell holds."""
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def _printed(cell: Any) -> list[str]:
    """The texts of a cell's outputs; of a table, as text, and of a figure its size and number of axes. Warnings and
    progress bars, on stderr, are left out."""
    texts: dict[str, str] = {}
    for index, output in enumerate(cell.outputs):
        if output.output_type == "stream":
            if output.name == "stdout":
                texts["stdout"] = texts.get("stdout", "") + output.text
        elif "text/plain" in output.get("data", {}):
            texts[str(index)] = output.data["text/plain"] + "\n" + output.data.get("text/html", "")
    return [" ".join(_PASSING.sub("…", text).split()) for text in texts.values()]


def _same(old: str, new: str) -> bool:
    """Equal texts, where a number of two decimals or more may differ by one in its last place."""
    if _NUMBER.sub("#", old) != _NUMBER.sub("#", new):
        return False
    pairs = zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True)
    return all(abs(float(a) - float(b)) <= _last_place(a) for a, b in pairs)


def _last_place(number: str) -> float:
    mantissa, _, exponent = number.partition("e")
    places = len(mantissa.partition(".")[2])
    return 1.001 * 10.0 ** (int(exponent or 0) - places) if places >= 2 else 0.0


def differences(old: Any, new: Any) -> Iterator[str]:
    """One line for each output of `old` that `new` doesn't print; times, paths and addresses may differ."""
    for index, (before, after) in enumerate(zip(code_cells(old), code_cells(new), strict=True), start=1):
        was, now = _printed(before), _printed(after)
        if len(was) != len(now):
            yield f"cell {index} holds {len(was)} outputs and gives {len(now)} now"
        for a, b in zip(was, now, strict=False):
            if not _same(a, b):
                start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                start = max(0, start - 60)
                yield f"cell {index} holds …{a[start : start + 120]}… and gives …{b[start : start + 120]}… now"


def main(names: list[str]) -> None:
    """Run notebooks in place."""
    for path in NOTEBOOKS:
        if not names or path.stem in names:
            print(f"== {path.name}", flush=True)
            notebook = execute(path)
            # The kernel adds the interpreter's version.
            notebook.metadata = nbformat.read(path, as_version=4).metadata
            nbformat.validate(notebook)
            nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Every notebook runs from its first cell to its last without a network, and shows what it shows now."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

from tests.notebooks import NOTEBOOKS, SKIPPED, code_cells, differences, execute, images, plots  # noqa: E402

IDS = [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_it_is_committed_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ran = code_cells(notebook)
    left = [cell for cell in notebook.cells if SKIPPED in cell.metadata.get("tags", [])]
    assert [cell.execution_count for cell in ran] == list(range(1, len(ran) + 1))
    assert sum(bool(cell.outputs) for cell in ran) >= len(ran) // 2
    assert not any(cell.outputs for cell in left)
    errors = [out for cell in ran for out in cell.outputs if out.output_type == "error"]
    assert errors == []
    said = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "Few" in said, "a notebook says how few its items are"
    _check_figures(notebook)


_DECIMAL = re.compile(r"(?<![\w./])\d+\.\d+(?!\w|\.\d)")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_it_opens_with_a_question_and_ends_with_its_answer(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert re.match(r"# .+\n\n(.*\n)*?\*\*.+\?\*\*", first)
    assert re.search(r"minutes? on two cores", first)
    assert last.startswith("## Answer\n")
    assert "**Try** " in last
    assert (path.parent / _next(last)).is_file()
    # A number of the answer is one that the notebook prints, or the threshold of q.
    printed = "\n".join(_shown(cell) for cell in code_cells(notebook))
    assert set(_DECIMAL.findall(last)) - set(_DECIMAL.findall(printed)) <= {"0.05"}


def _shown(cell: Any) -> str:
    return "\n".join(str(out.get("text", "") or out.get("data", {}).get("text/plain", "")) for out in cell.outputs)


def test_each_leads_to_the_next_and_the_last_to_the_first() -> None:
    following = {path.name: _next(nbformat.read(path, as_version=4).cells[-1].source) for path in NOTEBOOKS}
    read = [NOTEBOOKS[0].name]
    while (name := following[read[-1]]) not in read:
        read.append(name)
    assert name == read[0]
    assert sorted(read) == [path.name for path in NOTEBOOKS]


def _next(last: str) -> str:
    [target] = re.findall(r"\*\*Next:\*\* .*?\]\((\w+\.ipynb)\)", last)
    return str(target)


def test_all_have_one_set_up_cell() -> None:
    assert len({code_cells(nbformat.read(path, as_version=4))[0].source for path in NOTEBOOKS}) == 1


_WITHOUT_LENSPRUNE = """
import importlib.util, sys
from IPython.core.interactiveshell import InteractiveShell

find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "lensprune" else find(name, *rest)
shell = InteractiveShell()
shell.register_magic_function(lambda line: print("pip", line), "line", "pip")
shell.run_cell(sys.stdin.read())
"""


@pytest.mark.parametrize(("there", "said"), [(True, "pip install --quiet lensprune-1.whl"), (False, "put its wheel")])
def test_set_up_installs_a_wheel_where_lensprune_is_missing(there: bool, said: str, tmp_path: Path) -> None:
    cell = code_cells(nbformat.read(NOTEBOOKS[0], as_version=4))[0].source
    if there:
        (tmp_path / "lensprune-1.whl").touch()
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_LENSPRUNE],
        input=cell,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "IPYTHONDIR": str(tmp_path / "ipython")},
    )
    assert said in done.stdout + done.stderr
    assert ("pip install" in done.stdout) == there


def _check_figures(notebook: Any) -> None:
    """Every cell that plots holds an image, and no other does."""
    drawn = {number: images(cell) for number, cell in enumerate(code_cells(notebook), start=1)}
    wanted = {number for number, cell in enumerate(code_cells(notebook), start=1) if plots(cell)}
    assert wanted
    assert {number for number, n in drawn.items() if n} == wanted


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=IDS)
def test_it_runs_and_prints_what_it_is_committed_with(path: Path, smollm2: Any) -> None:
    notebook = execute(path)
    _check_figures(notebook)
    assert list(differences(nbformat.read(path, as_version=4), notebook)) == [], "rerun `make notebooks`"


def _with(text: str, output: str = "stream") -> Any:
    cell = nbformat.v4.new_code_cell("print(1)")
    if output == "stream":
        cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=text)]
    else:
        cell.outputs = [
            nbformat.v4.new_output("execute_result", data={"text/plain": text, "text/html": f"<b>{text}</b>"})
        ]
    return nbformat.v4.new_notebook(cells=[cell])


@pytest.mark.parametrize("output", ["stream", "table"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("accuracy  0.250", "accuracy   0.251"),
        ("took 3.2 s in /tmp/abc/run", "took 17 s in /tmp/xyz/run"),
        ("<object at 0x7f01>", "<object at 0x7eff>"),
        ("q 3.80e-05", "q 3.81e-05"),
    ],
)
def test_what_may_differ(old: str, new: str, output: str) -> None:
    assert list(differences(_with(old, output), _with(new, output))) == []


@pytest.mark.parametrize("output", ["stream", "table"])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("accuracy 0.250", "accuracy 0.292"),
        ("24 items", "23 items"),
        ("gap 0.9", "gap 1.0"),
        ("q 0.0012", "q 3.8e-05"),
        ("L0.skip 0.250", "L1.skip 0.250"),
        ("0.250", "-0.250"),
    ],
)
def test_what_may_not(old: str, new: str, output: str) -> None:
    [found] = differences(_with(old, output), _with(new, output))
    assert re.match("cell 1 holds", found)


def test_a_figure_of_another_size_is_seen() -> None:
    old, new = (_with(f"<Figure size 640x{height} with 1 Axes>", "table") for height in (480, 240))
    for notebook in (old, new):
        notebook.cells[0].outputs[0].data["image/png"] = "iVBORw0KGgo="
    assert list(differences(old, old)) == []
    assert len(list(differences(old, new))) == 1


def test_an_output_that_is_gone_is_seen() -> None:
    silent = _with("")
    silent.cells[0].outputs = []
    assert list(differences(_with("0.5"), silent)) == ["cell 1 holds 1 outputs and gives 0 now"]

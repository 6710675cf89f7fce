"""The order of the packages is checked, and the check catches what it is for."""

from __future__ import annotations

import ast
import importlib
import shutil
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

import lensprune
from lensprune.results.run import Run
from tests.helpers.options import FUNCTIONS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its contracts, to plant something in."""
    shutil.copytree(ROOT / "lensprune", tmp_path / "lensprune", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> tuple[int, str]:
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(command), "--no-cache"], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


def plant(folder: Path, module: str, line: str) -> None:
    """Import inside a function, where a circle hides at run time."""
    with (folder / "lensprune" / f"{module}.py").open("a", encoding="utf-8") as file:
        file.write(f"\n\ndef planted() -> None:\n    {line}\n")


def test_the_contracts_hold_and_catch_an_upward_import(copy: Path) -> None:
    code, text = lint(copy)
    assert (code, "2 kept, 0 broken" in text) == (0, True), text
    plant(copy, "analysis/depth", "from lensprune.results.page import write_report")
    code, text = lint(copy)
    assert code == 1
    assert "lensprune.analysis is not allowed to import lensprune.results" in text
    assert "lensprune.analysis.depth -> lensprune.results.page" in text


def test_the_contracts_catch_a_circle_within_a_package_and_a_package_without_a_place(copy: Path) -> None:
    plant(copy, "analysis/intervals", "from lensprune.analysis.summary import summarise")
    code, text = lint(copy)
    assert code == 1
    assert "No cycles are allowed in lensprune.analysis" in text
    (copy / "lensprune" / "newcomer.py").write_text('"""A module that no layer names."""\n', encoding="utf-8")
    assert "newcomer" in lint(copy)[1]


def imports(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """What each file imports, in functions too but not for type checkers, by the names of the modules."""
    monkeypatch.syspath_prepend(str(folder))
    graph = grimp.build_graph("lensprune", exclude_type_checking_imports=True, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def test_no_files_import_each_other_in_a_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = imports(ROOT, monkeypatch)
    assert len(graph) > 250
    assert "lensprune.results.page" in graph["lensprune.results.run"], "imports within functions count"
    assert sum(len(found) for found in graph.values()) > 1000
    TopologicalSorter(graph).prepare()
    graph["lensprune.runs.spec"].add("lensprune.runs.store")
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()


@pytest.mark.slow
def test_data_and_analysis_load_no_drawing_library() -> None:
    code = (
        "import sys, lensprune.results.run, lensprune.replacement.result\n"
        "print([name for name in ('matplotlib', 'seaborn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_pages_load_no_model_library() -> None:
    code = (
        "import sys, lensprune.studies.report\n"
        "print([name for name in ('torch', 'transformers', 'transformer_lens') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_no_lazy_package_exports_the_name_of_its_own_module() -> None:
    """Importing the module would put it in the name's place."""
    root = Path(lensprune.__file__).parent
    for init in root.rglob("__init__.py"):
        package = importlib.import_module(".".join(["lensprune", *init.parent.relative_to(root).parts]))
        if "__getattr__" in vars(package):
            modules = {path.stem for path in init.parent.iterdir() if path.suffix == ".py" or path.is_dir()}
            assert not modules & set(package.__all__), package.__name__


MAX_PARAMETERS = 8


def public_names() -> set[str]:
    """What may take many options: what `lensprune` and its packages export, methods of `Run`, functions that the
    command line calls, and functions whose options are held to the one declaration."""
    package = ROOT / "lensprune"
    names = {name for name in vars(Run) if not name.startswith("_")} | {function.__name__ for function in FUNCTIONS}
    for init in package.rglob("__init__.py"):
        for node in ast.parse(init.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names |= set(ast.literal_eval(node.value))
    for command in [package / "cli.py", *(package / "commands").glob("*.py")]:
        for node in ast.walk(ast.parse(command.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names |= {alias.name for alias in node.names}
    return names


def long_signatures(source: str, public: set[str]) -> list[str]:
    """Functions with more parameters than others can keep apart; a kernel's are its pointers and strides."""
    long = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            parameters = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            n = len([name for name in parameters if name not in ("self", "cls")])
            kernel = any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
            if n > MAX_PARAMETERS and not kernel and node.name not in public:
                long.append(f"{node.name} takes {n}")
    return long


def test_no_function_outside_the_public_api_takes_more_than_eight_parameters() -> None:
    public = public_names()
    assert {"sweep", "measure_replacement", "heads_report"} <= public
    long = {
        path.relative_to(ROOT).as_posix(): found
        for path in sorted((ROOT / "lensprune").rglob("*.py"))
        if (found := long_signatures(path.read_text(encoding="utf-8"), public))
    }
    assert long == {}
    planted = "class A:\n    def planted(self, a, b, c, d, e, *, f, g, h, i=1): ...\n    def sweep(self, {}): ...\n"
    planted = planted.format(", ".join(f"p{i}" for i in range(12)))
    assert long_signatures(planted, public) == ["planted takes 9"]

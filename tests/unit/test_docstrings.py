"""What docstrings say of arguments is what functions take; the first line is a statement."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lensprune as lp

PACKAGE = Path(lp.__file__).parent
ELSEWHERE = re.compile(r"[Tt]he other arguments are those of")
FUNCTIONS = [name for name in lp.__all__ if inspect.isfunction(getattr(lp, name))]


def documented(text: str) -> set[str]:
    """The names in the section ``Args`` of a docstring; several can share an entry, as in ``limit, seed: …``."""
    section = re.search(r"^Args:\n((?: .*\n|\n)*)", text + "\n", re.MULTILINE)
    if section is None:
        return set()
    entries = re.findall(r"^ {4}(\w[\w, *]*):", section[1], re.MULTILINE)
    return {name.strip(" *") for entry in entries for name in entry.split(",")}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}", node


def test_arguments_that_are_described_exist() -> None:
    wrong, n = [], 0
    for place, node in functions():
        given = node.args
        taken = {a.arg for a in [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg] if a}
        described = documented(ast.get_docstring(node) or "")
        n += len(described)
        wrong += [f"{place}: {name}" for name in sorted(described - taken)]
    assert not wrong
    assert n > 450


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_argument_of_a_public_function_is_described(name: str) -> None:
    function: Any = getattr(lp, name)
    text = inspect.getdoc(function) or ""
    lacking = set(inspect.signature(function).parameters) - documented(text)
    assert not lacking or ELSEWHERE.search(text), f"lensprune.{name} does not describe {sorted(lacking)}"


def test_no_first_line_is_a_question() -> None:
    asking, n = [], 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                n += bool(text)
                if text.partition("\n")[0].endswith("?"):
                    asking.append(f"{path.relative_to(PACKAGE)}: {text.partition(chr(10))[0]}")
    assert not asking
    assert n > 1500


@pytest.mark.parametrize("name", [*FUNCTIONS, "Run.plot", "Run.plot_data", "ReplacementRun.plot"])
def test_no_public_function_takes_anything(name: str) -> None:
    owner, _, method = name.rpartition(".")
    function = getattr(getattr(lp, owner), method) if owner else getattr(lp, method)
    loose = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.VAR_KEYWORD and parameter.annotation in ("Any", Any, parameter.empty)
    ]
    assert not loose


def test_every_public_name_is_in_the_api_reference() -> None:
    pages = (PACKAGE.parent / "docs" / "reference" / "api").glob("*.md")
    listed = {name for page in pages for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.MULTILINE)}
    homes = {getattr(lp, name).__module__ for name in lp.__all__ if hasattr(getattr(lp, name), "__module__")}
    assert len(homes) > 10
    assert homes - listed == set()

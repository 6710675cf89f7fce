"""Every public name has an example in its docstring, and every example of any docstring is true."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

import lensprune as lp
from lensprune.ablation import components, kinds
from lensprune.engine import registry as executors
from lensprune.heads import registry as head_functions
from lensprune.protocols import registry as protocols
from lensprune.registry import Registry
from lensprune.results import analyses
from lensprune.tasks import registry as tasks

TASK = "kv_retrieval[pairs=4,ending=reopened,answer=text]"
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
TABLES: tuple[Registry[Any], ...] = (
    components._PARTS,
    kinds._KINDS,
    protocols._PROTOCOLS,
    executors._EXECUTORS,
    analyses._ANALYSES,
    head_functions._SCORES,
)
CONSTANTS = {"CLEAN": lp.Variant, "__version__": lp}
"""Names without a docstring of their own, and whose example shows them."""


def examples(name: str, documented: Any, namespace: dict[str, Any]) -> doctest.DocTest:
    text, file = inspect.getdoc(documented) or "", inspect.getsourcefile(inspect.unwrap(documented))
    return doctest.DocTestParser().get_doctest(text, namespace, name, file, 0)


def with_examples() -> Iterator[tuple[str, str]]:
    """Module and qualified name of every function, class and method whose docstring has an example."""
    root = Path(lp.__path__[0])
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if ">>>" in text:
            module = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
            yield from ((module, name) for name in _named(ast.parse(text), ""))


def _named(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for inner in node.body:
        if isinstance(inner, (ast.FunctionDef, ast.ClassDef)):
            if ">>>" in (ast.get_docstring(inner) or ""):
                yield prefix + inner.name
            if isinstance(inner, ast.ClassDef):
                yield from _named(inner, f"{prefix}{inner.name}.")


EVERYTHING = list(with_examples())
FURTHER = [found for found in EVERYTHING if found[1] not in lp.__all__]
"""Those that `lensprune` doesn't export."""


@pytest.fixture(scope="module")
def shared() -> Iterator[dict[str, Any]]:
    """What all examples share; see the docstring of `lensprune`. What they register is removed afterwards."""
    dictionaries = [d for table in TABLES for d in (table._rows, table._origins)]
    dictionaries += [components._BY_CLASS, tasks._builders]
    before = [dict(d) for d in dictionaries]
    model = lp.load_model("toy-distilled", device="cpu")
    run = lp.sweep(model, TASK, "generate", lp.each_layer(model), limit=8, progress=False)
    replacement = lp.measure_replacement(
        "toy-base", "toy-distilled", TASK, "generate", component="mlp", layers="0", limit=4, progress=False
    )
    yield {"lp": lp, "model": model, "run": run, "replacement": replacement, "__name__": "examples"}
    for now, then in zip(dictionaries, before, strict=True):
        now.clear()
        now.update(then)


@pytest.mark.parametrize("name", [name for name in lp.__all__ if name not in CONSTANTS])
def test_examples(name: str, shared: dict[str, Any]) -> None:
    test = examples(name, getattr(lp, name), dict(shared))
    assert test.examples, f"lensprune.{name} has no example"
    failed, tried = doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test)
    assert tried == len(test.examples)
    assert failed == 0


@pytest.mark.parametrize(("module", "name"), FURTHER, ids=[name for _, name in FURTHER])
def test_examples_of_names_that_are_not_exported(module: str, name: str, shared: dict[str, Any]) -> None:
    test = examples(name, attrgetter(name)(importlib.import_module(module)), dict(shared))
    assert test.examples
    assert doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test) == (0, len(test.examples))


def test_no_example_is_left_out() -> None:
    found = {name for _, name in EVERYTHING}
    assert {"qk_attribution", "Run.explore"} <= {name for _, name in FURTHER}
    assert {name for name in lp.__all__ if name not in CONSTANTS} <= found


@pytest.mark.parametrize(("name", "documented"), CONSTANTS.items())
def test_constants_are_in_an_example(name: str, documented: Any, shared: dict[str, Any]) -> None:
    assert any(f"lp.{name}" in example.source for example in examples(name, documented, dict(shared)).examples)


def test_the_package_example(shared: dict[str, Any]) -> None:
    assert doctest.DocTestRunner(optionflags=FLAGS).run(examples("lensprune", lp, dict(shared))) == (0, 1)


def test_a_wrong_example_fails(shared: dict[str, Any]) -> None:
    def wrong() -> None:
        """
        >>> lp.Layer(2).label
        'L3'
        """

    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(examples("wrong", wrong, dict(shared)), out=said.append)
    assert result == (1, 1)
    assert "'L2'" in "".join(said)

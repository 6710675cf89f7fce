"""Tables of tests name tests that exist: the page of pitfalls, and those that commands fill in."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import families_table, faults_table

ROOT = Path(__file__).parents[2]
COLUMNS = ["library", "what one expects", "what happens", "what lensprune does", "test"]
NAMED = re.compile(r"`([\w/]+\.py)::([\w:]+)`")


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "explanation" / "pitfalls.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells.count(COLUMNS) == 3
    return [row for row in cells if row != COLUMNS and set("".join(row)) != {"-"}]


def defined_in(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + own.name for own in inner if isinstance(own, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[2][:40])
def test_every_row_is_whole_and_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == len(COLUMNS)
    assert all(row)
    named = NAMED.findall(row[-1])
    assert named
    assert NAMED.sub("", row[-1]).strip(" ,") == ""
    for file, name in named:
        assert name in defined_in(ROOT / "tests" / file), f"{file} has no {name}"
        assert name.rpartition("::")[2].startswith("test_")


@pytest.mark.parametrize(
    "named", [*(test for row in faults_table.ROWS for test in row.tests), *families_table.CHECKS.values()]
)
def test_tables_that_commands_fill_in_name_tests_that_exist(named: str) -> None:
    file, _, name = named.partition("::")
    assert name in defined_in(ROOT / file), f"{file} has no {name}"


def test_a_test_that_is_gone_is_seen() -> None:
    here = defined_in(Path(__file__))
    assert "test_a_test_that_is_gone_is_seen" in here
    assert "test_that_never_was" not in here
    assert len(rows()) >= 30

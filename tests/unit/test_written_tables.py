"""Tables that commands write into pages: pages have the marks that the commands look for, and their headings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.calibration import __main__ as calibration
from tests.estimates.circuits import HEADER
from tests.families_table import CHECKS
from tests.helpers.markdown import write_between

ROOT = Path(__file__).parents[2]
_MARKED = re.compile(r"<!-- (.+?): begin -->\n(.*?)<!-- \1: end -->", re.DOTALL)
_HEADING = re.compile(r"^(\|.*\|)\n\|[ :]*-", re.MULTILINE)
PLACES = {
    (str(page.relative_to(ROOT)), name): _HEADING.findall(text)
    for page in sorted((ROOT / "docs").rglob("*.md"))
    for name, text in _MARKED.findall(page.read_text(encoding="utf-8"))
}


def _strings(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def _headings(path: Path) -> set[str]:
    """Headings of tables in a script: whole lines, and lists of cells."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lists = [n.elts for n in ast.walk(tree) if isinstance(n, (ast.List, ast.Tuple))]
    cells = [[c.value for c in own if isinstance(c, ast.Constant)] for own in lists]
    lines = {f"| {' | '.join(map(str, own))} |" for own in cells if own}
    return lines | {line for text in _strings(tree) for line in text.splitlines() if line.startswith("|")}


def _marks(path: Path) -> set[str]:
    """Names of the marks between which a script writes."""
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    writing = [n.args[1] for n in calls if isinstance(n.func, ast.Name) and n.func.id == "write_between"]
    return set().union(*map(_strings, writing))


WRITERS = {
    path: names for path in (ROOT / "tests").rglob("*.py") if "unit" not in path.parts and (names := _marks(path))
}


@pytest.mark.parametrize(("page", "name"), PLACES)
def test_a_command_writes_each_marked_table_with_its_heading(page: str, name: str) -> None:
    [writer] = [path for path, names in WRITERS.items() if name in names]
    assert 'add_argument("--write"' in writer.read_text(encoding="utf-8")
    beside = writer.parent.glob("*.py") if writer.name == "__main__.py" else [writer]
    known = set().union(*map(_headings, beside))
    known |= {f"| family | {' | '.join(CHECKS)} |", f"| {' | '.join(HEADER)} |"}
    assert not set(PLACES[page, name]) - known


def test_the_page_of_calibration_begins_as_its_command_writes_it() -> None:
    page = (ROOT / "docs/explanation/calibration.md").read_text(encoding="utf-8")
    assert page.startswith(calibration._HEAD)
    line = page.removeprefix(calibration._HEAD).splitlines(keepends=True)[0]
    # A table with one row measured again is the same table.
    assert calibration.page([line], page, whole=False) == page


def test_a_page_without_the_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- a: begin -->\nold\n<!-- a: end -->\nafter\n", encoding="utf-8")
    write_between(page, "a", "new")
    assert page.read_text(encoding="utf-8") == "<!-- a: begin -->\nnew\n<!-- a: end -->\nafter\n"
    with pytest.raises(SystemExit, match="has no <!-- b: begin -->"):
        write_between(page, "b", "new")

"""Relative links of the README, the documentation and the notebooks lead to files, and anchors to headings."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *NOTEBOOKS]
BUILT = re.compile(r"tutorials/\d\w*\.md$")
"""Pages that exist in the built site alone."""

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def text_of(path: Path) -> str:
    """A page without its code; of a notebook the Markdown cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return _CODE.sub(lambda found: found[0] if "](" not in found[0] else "", text)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken(path: Path) -> list[str]:
    wrong = []
    for link in _LINK.findall(text_of(path)):
        if "://" in link or BUILT.search(link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path: Path) -> None:
    assert not broken(path)


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "# One / two\n\n[a](page.md#one--two) [b](page.md#three) [c](gone.md) [d](#one)\n"
    )
    assert broken(tmp_path / "page.md") == ["page.md#three", "gone.md", "#one"]
    readme = ROOT / "README.md"
    assert len(_LINK.findall(text_of(readme))) > 20
    assert len(readme.read_text(encoding="utf-8").splitlines()) <= 150

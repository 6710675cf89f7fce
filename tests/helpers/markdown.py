"""Tables that commands write into Markdown files."""

from __future__ import annotations

from pathlib import Path


def write_between(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` of a Markdown file."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    whole = path.read_text(encoding="utf-8")
    head, first, rest = whole.partition(begin)
    _, last, tail = rest.partition(end)
    if not first or not last:
        raise SystemExit(f"{path} has no {begin} … {end}")
    path.write_text(f"{head}{begin}\n{text}\n{end}{tail}", encoding="utf-8")

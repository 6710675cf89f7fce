"""Licences of the direct dependencies: ``python -m tests.licences [--write FILE.md] [--notice NOTICE]``."""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

from tests.helpers.markdown import write_between


def dependencies() -> dict[str, str]:
    """Name of every direct dependency, and the extra that needs it (empty: always installed)."""
    found: dict[str, str] = {}
    for line in requires("lensprune") or ():
        name = re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0]
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
        found.setdefault(name, extra[1] if extra else "")
    return found


def licence(name: str) -> str:
    """What the package states: its SPDX expression, else its classifiers, else the first line of its licence field."""
    facts = metadata(name)
    expression = facts.get("License-Expression")
    if expression:
        return expression
    classified = [c.rpartition(" :: ")[2] for c in facts.get_all("Classifier") or () if c.startswith("License ::")]
    stated = (facts.get("License") or "").strip().splitlines()
    return ", ".join(classified) or (stated[0] if stated else "not stated")


def table() -> str:
    lines = ["| package | version | licence | needed by |", "| --- | --- | --- | --- |"]
    for name, extra in sorted(dependencies().items()):
        try:
            lines.append(f"| {name} | {version(name)} | {licence(name)} | {extra or 'lensprune'} |")
        except PackageNotFoundError:
            lines.append(f"| {name} | not installed here | - | {extra or 'lensprune'} |")
    return "\n".join(lines)


NOTICE_HEAD = """lensprune
Licensed under the MIT licence, see LICENSE.

The package holds no code and no data of others. It needs these packages, under their own licences, as each states it in
its metadata; in brackets the extra that needs it. Written by: make notice

"""


def notice() -> str:
    """The file NOTICE: each direct dependency, its extra and its licence."""
    lines = []
    for name, extra in sorted(dependencies().items()):
        try:
            stated = licence(name)
        except PackageNotFoundError:
            stated = "not installed where this list was written"
        lines.append(f"{name}{f' [{extra}]' if extra else ''}: {stated}")
    return NOTICE_HEAD + "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="Markdown file to write the table into")
    parser.add_argument("--notice", type=Path, help="text file to write the list into, as NOTICE")
    options = parser.parse_args(arguments)
    if options.notice is not None:
        options.notice.write_text(notice(), encoding="utf-8")
    text = table()
    print(text)
    if options.write is not None:
        write_between(options.write, "licences", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

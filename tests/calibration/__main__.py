"""Run the studies and write the table: ``python -m tests.calibration --write docs/explanation/calibration.md``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from tests.calibration.studies import STUDIES, Row

_HEAD = """# Calibration

How often this package's statistics are right in simulated worlds with a known truth, for the earlier methods (*before*)
and the [current ones](../reference/statistics.md) (*now*). `make calibration` writes this table; every number is
simulated with a fixed seed and the given number of runs, or enumerated (runs 0). A share p has a standard error of
√(p (1 − p) / runs). Worlds are in `tests/calibration/studies.py`, the old methods in `tests/calibration/before.py`.

| question | world | number | before | now | wanted | runs |
|---|---|---|---|---|---|---|
"""
_BEHIND = "\n## "


def _line(row: Row) -> str:
    numbers = ["–" if math.isnan(value) else f"{value:.3g}" for value in (row.before, row.now)]
    return "| " + " | ".join([row.question, row.world, row.number, *numbers, row.aim, str(row.runs)]) + " |\n"


def _names(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.split("|")[1:4])


def page(lines: list[str], text: str, *, whole: bool) -> str:
    """The page with these rows of the table, behind which `text` keeps what is written by hand.

    `whole`: no other row stays; else those of other studies do, in their places.
    """
    table, mark, behind = text.partition(_BEHIND)
    old = [line for line in table.splitlines(keepends=True) if line.startswith("| ")][1:]
    new = {_names(line): line for line in lines}
    kept = [] if whole else [new.pop(_names(line), line) for line in old]
    return _HEAD + "".join([*kept, *new.values()]) + mark + behind


def main() -> None:
    """Print the table, or write it."""
    names = {study.__name__: study for study in STUDIES}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the runs (default: 1)")
    parser.add_argument("--study", action="append", choices=names, help="this one alone; repeat for several")
    parser.add_argument("--write", type=Path, help="the page to write")
    options = parser.parse_args()
    lines = []
    for name in options.study or names:
        for row in names[name](options.scale):
            lines.append(_line(row))
            print(lines[-1], end="", flush=True)
    if options.write is not None:
        before = options.write.read_text(encoding="utf-8") if options.write.exists() else ""
        options.write.write_text(page(lines, before, whole=options.study is None), encoding="utf-8")


if __name__ == "__main__":
    main()

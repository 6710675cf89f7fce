"""Run every study and write the table: ``python -m tests.calibration --write docs/explanation/calibration.md``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from tests.calibration.studies import STUDIES, Row

_HEAD = """# Calibration

How often the statistics of this package are right, in worlds whose truth is known, by the methods before and by those
that are used ([statistics](../reference/statistics.md)). `make calibration` writes this page; every number is simulated
under a seed with so many runs, or (runs 0) enumerated. Worlds are in `tests/calibration/studies.py`, the old methods in
`tests/calibration/before.py`.

| question | world | number | before | now | wanted | runs |
|---|---|---|---|---|---|---|
"""


def _line(row: Row) -> str:
    numbers = ["–" if math.isnan(value) else f"{value:.3g}" for value in (row.before, row.now)]
    return "| " + " | ".join([row.question, row.world, row.number, *numbers, row.aim, str(row.runs)]) + " |\n"


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the runs (default: 1)")
    parser.add_argument("--write", type=Path, help="the page to write")
    options = parser.parse_args()
    text = _HEAD
    for study in STUDIES:
        rows = study(options.scale)
        for row in rows:
            print(_line(row), end="", flush=True)
            text += _line(row)
    if options.write is not None:
        options.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

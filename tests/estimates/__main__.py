"""Measure, and put the tables into their page: ``python -m tests.estimates --write docs/explanation/estimates.md``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from tests.estimates.circuits import circuit_rows
from tests.estimates.removal import SETTINGS, removal_rows
from tests.helpers.markdown import write_between


def _table(rows: Iterable[list[str]]) -> str:
    lines = []
    for row in rows:
        lines.append(f"| {' | '.join(row)} |")
        print(lines[-1], flush=True)
        if len(lines) == 1:
            lines.append("|" + "---|" * len(row))
            print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Print the tables, or put them between their marks in a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="only removal in this model (default: all, and circuits)")
    parser.add_argument("--task", help="only removal on tasks whose name starts so")
    parser.add_argument("--over", action="append", help="only removal of these parts")
    parser.add_argument("--write", type=Path, help="the page with the tables' places")
    options = parser.parse_args()
    chosen = [
        setting
        for setting in SETTINGS
        if (options.model is None or setting.model in options.model)
        and (options.over is None or setting.over in options.over)
        and setting.task.startswith(options.task or "")
    ]
    circuits = "" if options.model else _table(circuit_rows())
    removal = _table(removal_rows(chosen))
    if options.write is not None:
        if circuits:
            write_between(options.write, "circuits", circuits)
        write_between(options.write, "removal", removal)


if __name__ == "__main__":
    main()

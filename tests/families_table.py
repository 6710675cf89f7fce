"""Architecture families × checks as a Markdown table.

``python -m tests.families_table [--write docs/reference/models.md]``.

Runs the property tests behind the table and fills it with what they said; exits with 1 if one failed.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.helpers.families import FAMILIES, LEFT_TO_HOOKED
from tests.helpers.markdown import write_between

IDENTITIES = "tests/unit/ablation/test_identities.py"
HOOKED = "tests/unit/engine/test_hooked.py"
CHECKS: dict[str, str] = {
    "clean = transformers": f"{IDENTITIES}::test_clean_equals_transformers",
    "skip = block bypassed": f"{IDENTITIES}::test_skip_equals_bypassed_block",
    "head zero = W_O columns zeroed": f"{IDENTITIES}::test_zeroed_head_equals_zeroed_projection_columns",
    "KV group = its heads": f"{IDENTITIES}::test_group_is_the_union_of_its_heads_which_differ_singly",
    "batched and padded = one by one": f"{HOOKED}::test_batched_equals_one_by_one",
    "cached = uncached generation": f"{HOOKED}::test_cached_batched_generation_equals_uncached_one_by_one",
    "forked = hooked": "tests/unit/engine/test_forked.py::test_same_numbers_as_hooked",
    "bfloat16 near float32": "tests/unit/models/test_bfloat16.py::test_bfloat16_stays_near_float32",
}


class Outcomes:
    """A pytest plugin that keeps each test's outcome by check and family."""

    def __init__(self) -> None:
        self.by_cell: dict[tuple[str, str], list[bool]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        name, _, parameters = report.nodeid.partition("[")
        check = next((check for check, test in CHECKS.items() if test == name), None)
        for family in set(parameters.rstrip("]").split("-")) & set(FAMILIES):
            if check is not None:
                self.by_cell[family, check].append(report.passed)


def table(outcomes: Outcomes) -> str:
    """The table; a cell is ``yes``, ``NO``, or a dash where no test ran."""

    def cell(family: str, check: str) -> str:
        seen = outcomes.by_cell.get((family, check))
        return "—" if not seen else "yes" if all(seen) else "NO"

    lines = [["family", *CHECKS], ["---"] * (len(CHECKS) + 1)]
    lines += [[family, *(cell(family, check) for check in CHECKS)] for family in FAMILIES]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fallback_sentence() -> str:
    """The families that the forked executor leaves to the hooked one, for docs/reference/models.md."""
    names = sorted((name for name, _ in LEFT_TO_HOOKED.values()), key=str.lower)
    return f"These families take the `hooked` executor, with a warning that says why: {', '.join(names)}."


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="Markdown file to write the table into")
    options = parser.parse_args(arguments)
    outcomes = Outcomes()
    code = pytest.main(["-q", "--no-header", *CHECKS.values()], plugins=[outcomes])
    text = table(outcomes)
    print(text)
    if options.write is not None:
        write_between(options.write, "families", text)
        write_between(options.write, "fallback", fallback_sentence())
    whole = all(outcomes.by_cell.get((family, check)) for family in FAMILIES for check in CHECKS)
    return int(code) or int(not whole)


if __name__ == "__main__":
    sys.exit(main())

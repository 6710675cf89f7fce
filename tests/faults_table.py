"""Faults and hostile inputs as a Markdown table.

``python -m tests.faults_table [--write docs/explanation/reliability.md]``.

Runs the tests behind the table and fills it with what they counted; exits with 1 if one failed.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.markdown import write_between

FAULTS = "tests/unit/robustness/test_faults.py"
FUZZ = "tests/unit/robustness/test_model_files_fuzz.py"
ANSWERS = "tests/unit/sweep/test_answers.py"
BAD = "tests/unit/robustness/test_bad_input.py"


@dataclass(frozen=True)
class Row:
    """A class of faults: what happens then, and the tests that show it."""

    fault: str
    happens: str
    tests: tuple[str, ...]


ROWS = (
    Row(
        "kill -9 at random moments and at every step of a write",
        "resumed; the records are bit-identical to those of an undisturbed run",
        ("tests/unit/robustness/test_kill.py::test_killed_at_any_moment_and_resumed",),
    ),
    Row(
        "kill -9 while texts are written",
        "resumed in the middle of the texts; the records are those of an undisturbed run",
        (
            f"{ANSWERS}::test_a_killed_sweep_asks_only_for_the_rest",
            f"{ANSWERS}::test_a_killed_sweep_goes_on_in_the_middle_of_its_texts",
        ),
    ),
    Row(
        "Ctrl-C",
        "exit code 130 and a line on how to resume",
        (f"{FAULTS}::test_ctrl_c_stops_cleanly_and_says_how_to_go_on",),
    ),
    Row(
        "disk full, at a write, a sync or a rename, and a file system that is really full",
        "one-line error; free space and rerun to resume",
        (f"{FAULTS}::test_disk_full", f"{FAULTS}::test_a_disk_that_is_really_full_and_really_read_only"),
    ),
    Row(
        "read-only run folder",
        "one-line error, nothing written",
        (f"{FAULTS}::test_a_folder_that_may_not_be_written",),
    ),
    Row(
        "stored cell that was truncated, changed, emptied or renamed",
        "found by its checksum, reported, set aside, computed again",
        (f"{FAULTS}::test_a_damaged_cell_is_named_set_aside_and_computed_again",),
    ),
    Row(
        "stored state of running texts that was truncated, changed or emptied",
        "found by its checksums, reported, and these texts begin again",
        ("tests/unit/engine/test_checkpoint.py::test_a_damaged_state_is_passed_over",),
    ),
    Row(
        "weights or rows changed under a run",
        "refused, naming the difference; the folder stays as it is",
        (f"{FAULTS}::test_what_changed_under_a_run_is_named",),
    ),
    Row(
        "out of memory",
        "the budget halves and the sweep continues",
        (f"{FAULTS}::test_out_of_memory_halves_the_budget_and_goes_on",),
    ),
    Row(
        "NaN in the weights", "one-line error that names the weight", (f"{FAULTS}::test_weights_that_are_not_numbers",)
    ),
    Row("clock set back", "no effect", (f"{FAULTS}::test_a_clock_that_goes_backwards",)),
    Row("unreachable hub", "one-line error", (f"{FAULTS}::test_a_hub_that_is_unreachable",)),
    Row(
        "Ray worker that is killed or hangs",
        "another one takes its cells",
        ("tests/integration/test_ray.py::test_a_lost_worker_is_replaced",),
    ),
    Row(
        "workers that die and hang at random (simulated)",
        "every cell is stored once",
        ("tests/unit/sweep/test_scheduler.py::test_workers_that_die_and_hang_at_random_lose_nothing",),
    ),
    Row(
        "variant names that would leave the run folder",
        "a file inside the folder",
        ("tests/unit/sweep/test_store.py::test_any_variant_name_stays_inside_the_folder",),
    ),
    Row(
        "mutated GGUF files", "loaded, or a one-line error", (f"{FUZZ}::test_gguf_files", f"{FUZZ}::test_gguf_metadata")
    ),
    Row("mutated safetensors files", "loaded, or a one-line error", (f"{FUZZ}::test_safetensors_files",)),
    Row(
        "mutated configuration and tokenizer files",
        "loaded, or a one-line error",
        (f"{FUZZ}::test_json_files_of_a_model",),
    ),
    Row(
        "odd options, words and model names on the command line",
        "a result, or a one-line error and exit code 2",
        (f"{BAD}::test_options", f"{BAD}::test_words", f"{BAD}::test_model_names"),
    ),
    Row(
        "task files with wrong rows, or no rows",
        "a result, or a one-line error that names the task",
        (
            f"{BAD}::test_rows_with_a_wrong_column",
            f"{BAD}::test_files_that_are_no_rows",
            f"{BAD}::test_prompts_of_gsm8k",
        ),
    ),
    Row("spec files that were edited", "one-line error; the folder stays as it is", (f"{BAD}::test_spec_files",)),
)


@dataclass
class Seen:
    """What the tests of one row counted."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    tried: int = 0
    lost: int | None = None
    """``None`` where no test compared records."""


class Outcomes:
    """A pytest plugin that adds up what tests recorded as ``tried`` and ``records_lost``, by row.

    A test that records no number counts as one.
    """

    def __init__(self) -> None:
        self.by_fault: dict[str, Seen] = defaultdict(Seen)
        self._counts: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[0]
        for row in ROWS:
            if name in row.tests:
                self._add(self.by_fault[row.fault], report)

    def _add(self, seen: Seen, report: pytest.TestReport) -> None:
        seen.failed += report.failed
        seen.skipped += report.skipped
        if report.when == "call" and report.passed:
            seen.passed += 1
            self._counts.add(report.nodeid)
        if report.when == "teardown" and report.nodeid in self._counts:
            # What a fixture records after its test is in this report alone.
            recorded = dict(report.user_properties)
            seen.tried += int(str(recorded.get("tried", 1)))
            if "records_lost" in recorded:
                seen.lost = (seen.lost or 0) + int(str(recorded["records_lost"]))


def table(outcomes: Outcomes) -> str:
    """The table; a row whose tests were skipped or failed says so."""
    lines = ["| fault or input | tried | what happens | records lost |", "| --- | ---: | --- | ---: |"]
    for row in ROWS:
        seen = outcomes.by_fault[row.fault]
        if seen.failed or not seen.passed:
            said = "FAILED" if seen.failed else "not tried here"
        else:
            said = row.happens + (f" ({seen.skipped} tests skipped here)" if seen.skipped else "")
        lines.append(f"| {row.fault} | {seen.tried} | {said} | {'—' if seen.lost is None else seen.lost} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="Markdown file to write the table into")
    options = parser.parse_args(arguments)
    outcomes = Outcomes()
    code = pytest.main(["-q", "--no-header", *(test for row in ROWS for test in row.tests)], plugins=[outcomes])
    text = table(outcomes)
    print(text)
    if options.write is not None:
        write_between(options.write, "faults", text)
    lost = sum(seen.lost or 0 for seen in outcomes.by_fault.values())
    return 1 if code or lost else 0


if __name__ == "__main__":
    sys.exit(main())

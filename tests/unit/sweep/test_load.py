"""The benchmark of a large sweep, small: every record is there, one file per cell, and memory stays; and what that of
killed sweeps counts as lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import killed
from tests.benchmarks.load import HEADS, lines, measure, model_with_heads


@pytest.mark.slow
def test_many_cells_through_store_and_summary(tmp_path: Path) -> None:
    variants, items = 6 * HEADS, 60
    load = measure(model_with_heads(tmp_path / "model", variants), tmp_path / "run", variants, items)
    cells = (variants + 1) * 3
    assert load.records == cells * items
    # One a cell, and beside them the spec, tables, figures and the lock: not more with more cells.
    assert cells < load.files < cells + 12
    assert load.memory - load.base_memory < 400e6
    assert f"{load.records} records" in lines(load)


def test_starting_again_is_not_lost_work() -> None:
    found = killed.Result(96, 110.0, 10.0, [killed.Killed(60.0, 40, 65.0, 0), killed.Killed(90.0, 80, 30.0, 1)])
    row, other = killed.table(found, 64).splitlines()[2:4]
    assert row == "| 60 s | 40 of 96 | 65 s | 15 s | 10 s | 5% | 0 |"
    assert other == "| 90 s | 80 of 96 | 30 s | 10 s | 10 s | 0% | 1 |"

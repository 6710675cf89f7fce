"""The benchmark of a large sweep, small: every record is there, one file per cell, and memory stays."""

from __future__ import annotations

from pathlib import Path

import pytest

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
